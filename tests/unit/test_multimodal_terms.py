"""Rewards of a judge whose every answer is scripted, against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from lookup_engine import CUT, NAN, SILENT, LookupEngine, ScoringLookup, plan_text, request, topic

from gotr1_jax.errors import InputError
from gotr1_jax.plan import Box
from gotr1_jax.rewards.base import stack_scores
from gotr1_jax.rewards.combine import combine
from gotr1_jax.rewards.multimodal.questions import QuestionsConfig, make_questions
from gotr1_jax.rewards.multimodal.terms import MultimodalJudge
from gotr1_jax.vlm_engine.answer_cache import AnswerCache
from gotr1_jax.vlm_engine.base import Answer, Question

FOUR = ("sem", "spa", "ri", "pi")
nan = math.nan
# The processed image is 1000 wide and 500 high: x is in thousandths already, y is half.
FULL = '[{"bbox_2d": [0, 0, 500, 250], "label": "cat"}]'
CAT = ("cat", (0, 0, 500, 500))


def score(value: float | str, reason: str = "so it is") -> str:
    return f'{{"score": {value}, "reason": "{reason}"}}'


def boxes(*corners: Sequence[int]) -> str:
    return str([{"bbox_2d": list(c), "label": "thing"} for c in corners])


@dataclass(frozen=True)
class Case:
    plan: str
    script: dict[str, list[str | Answer]]
    expected: tuple[float, float, float, float]  # sem, spa, ri, pi
    v1: float
    v2: float


def case(plan, expected, v1, v2, sem=(), spa=(), pi=(), **names):
    script = {"sem": sem, "spa": spa, "pi": pi, **names}
    listed = {k: [v] if isinstance(v, str | Answer) else list(v) for k, v in script.items()}
    return Case(plan, listed, expected, v1, v2)


TEN = score(10)
CASES = {
    "all right": case(plan_text(CAT), (1, 1, 1, 1), 2, 1, TEN, TEN, TEN, cat=FULL),
    # Found (200,0)-(400,400) of (0,0)-(400,400): half. spa 7: 6/9.
    "half an overlap": case(
        plan_text(("cat", (0, 0, 400, 400))), (0.8, 2 / 3, 0.5, 0.5), 0.5 * (0.8 + 2 / 3) * 0.5,
        0.25 * (0.8 + 2 / 3) * 0.5, score(8), score(7), score(5), cat=boxes((200, 0, 400, 200)),
    ),
    "a missing object": case(
        plan_text(CAT, ("dog", (600, 0, 900, 500))), (1, 1, 0.5, 0.4), 0.4, 0.2,
        TEN, TEN, score(4), cat=FULL, dog="[]",
    ),
    # Listed the other way round: B exactly, A by half.
    "repeated names, listed in another order": case(
        plan_text(("cat", (0, 0, 200, 200)), ("cat", (600, 600, 800, 800))), (1, 1, 0.75, 1), 1.5,
        0.75, TEN, TEN, TEN, cat=boxes((600, 300, 800, 400), (0, 0, 100, 100)),
    ),
    # IoU of the planned [0,400), [0,288) with [0,360), [80,400): .9 .8 / .8 .52. The best pairing
    # is .8 + .8; taking the largest first would give .9 + .52.
    "repeated names, assigned for the largest sum": case(
        plan_text(("cat", (0, 0, 400, 100)), ("Cat ", (0, 0, 288, 100))), (1, 1, 0.8, 1), 1.6, 0.8,
        TEN, TEN, TEN, cat=boxes((0, 0, 360, 50), (80, 0, 400, 50)),
    ),
    "of two the image has one": case(
        plan_text(CAT, ("cat", (600, 600, 800, 800))), (0.9, 1, 0.5, 0.6), 0.57, 0.285,
        score(9), TEN, score(6), cat=FULL,
    ),
    "an object without a box": case(
        plan_text(CAT, ("dog", None)), (1, 1, 0.5, 1), 1, 0.5, TEN, TEN, TEN, cat=FULL
    ),
    "a plan without boxes": case(
        plan_text(("cat", None), ("dog", None)), (0.6, 0, 0, 0.7), 0, 0, score(6), pi=score(7)
    ),
    "an empty plan": case(" ", (0, 0, 0, 0.9), 0, 0, pi=score(9)),
    "an inverted box": case(
        plan_text(("cat", (500, 500, 100, 100)), CAT), (1, 1 / 9, 0.5, 1), 0.5 * (1 + 1 / 9),
        0.25 * (1 + 1 / 9), TEN, score(2), TEN, cat=FULL,
    ),
    # Of four objects the three largest are searched for, "a" is the smallest.
    "more objects than are asked about": case(
        plan_text(("a", (0, 0, 100, 100)), ("b", (0, 0, 200, 200)), ("c", (0, 0, 300, 300)), CAT),
        (1, 1, 0.75, 1), 1.5, 0.75, TEN, TEN, TEN,
        b=boxes((0, 0, 200, 100)), c=boxes((0, 0, 300, 150)), cat=FULL,
    ),
    "unreadable at first": case(
        plan_text(CAT), (0.4, 1, 1, 1), 1.4, 0.7, ["I like it.", score(4)], TEN, TEN, cat=FULL
    ),
    "unreadable twice": case(
        plan_text(CAT), (nan, 1, 1, 1), nan, nan, ["I like it.", "Good."], TEN, TEN, cat=FULL
    ),
    "out of range twice": case(
        plan_text(CAT), (1, nan, 1, 1), nan, nan, TEN, [score(0), score(11)], TEN, cat=FULL
    ),
    "cut off at first": case(
        plan_text(CAT), (1, 1, 1, 0.3), 0.6, 0.3, TEN, TEN, [CUT, score(3)], cat=FULL
    ),
    "logits that are not finite": case(
        plan_text(CAT), (1, 1, 1, nan), nan, nan, TEN, TEN, [NAN, NAN], cat=FULL
    ),
    # Corners swapped, and 200 beyond the right edge, 50 above the top: clipped to 999 and 0.
    "a fenced box that leaves the image": case(
        plan_text(("cat", (800, 0, 999, 400))), (1, 1, 1, 1), 2, 1, TEN, TEN, TEN,
        cat='Here:\n```json\n{"bbox_2d": [1200, 200, 800, -50], "label": "cat"}\n```',
    ),
    "one search unreadable twice": case(
        plan_text(CAT, ("dog", (600, 0, 900, 500))), (1, 1, nan, 1), nan, nan,
        TEN, TEN, TEN, cat=FULL, dog=["On the right.", "There [1, 2]"],
    ),
    "other ways to write it": case(
        plan_text(CAT), (0.8, 0.5, 1, 0.9), 0.9 * 1.3, 0.9 * 0.65, "**Score: 8/10**",
        "{‘score’: 5.5, ‘reason’: ‘mostly’}", "```json\n{“score”: 9}\n```",
        cat="[{'bbox_2d': [0, 0, 500.0, 250], 'label': 'cat'}]",
    ),
    "found elsewhere, and none after an empty answer": case(
        plan_text(CAT, ("dog", (600, 0, 900, 500))), (1, 1, 0, 0), 0, 0, TEN, TEN, score(0),
        cat=boxes((600, 300, 900, 400)), dog=["", "none"],
    ),
}  # fmt: skip


THREE_OBJECTS = QuestionsConfig(max_objects=3)


def judge_of(engine: LookupEngine, terms: Sequence[str] = FOUR) -> MultimodalJudge:
    return MultimodalJudge(engine, terms, THREE_OBJECTS)


@pytest.mark.parametrize("name", CASES)
def test_rewards_by_hand(name: str) -> None:
    given = CASES[name]
    engine = LookupEngine(given.script)
    results = judge_of(engine).judge([request(given.plan)])
    scores = stack_scores(results, FOUR)
    got = [scores[term][0] for term in FOUR]
    np.testing.assert_allclose(got, given.expected, rtol=1e-6)
    np.testing.assert_allclose(combine(scores, "v1", FOUR), [given.v1], rtol=1e-6)
    np.testing.assert_allclose(combine(scores, "v2", FOUR), [given.v2], rtol=1e-6)
    assert not any(engine._left.values()), "an answer was not asked for"


def test_there_are_twenty_cases() -> None:
    assert len(CASES) == 20


def shown(question: Question) -> str:
    """What a question shows, the reminder apart."""
    text = question.text.split("\n\nYour last")[0]
    return text + "".join(image.key for image in question.images)


def test_all_cases_in_one_batch_are_judged_as_alone() -> None:
    # A shade and a caption of its own for each, so that no two samples share a question.
    requests = [request(c.plan, f"case {i}", i) for i, c in enumerate(CASES.values())]
    engines = [LookupEngine(c.script) for c in CASES.values()]
    owner = {
        shown(question): engine
        for sample, engine in zip(requests, engines)
        for group in make_questions(sample, FOUR, THREE_OBJECTS).values()
        for question in group
    }

    class Joint(LookupEngine):
        def answer(self, questions: Sequence[Question]) -> list[Answer]:
            self.asked.append([topic(q) for q in questions])
            return [owner[shown(q)].answer([q])[0] for q in questions]

    joint = Joint({})
    together = judge_of(joint).judge(requests)
    for result, given in zip(together, CASES.values()):
        got = [result.scores[t] for t in FOUR]
        np.testing.assert_allclose(got, given.expected, rtol=1e-6)
    assert len(joint.asked) == 2  # all questions, then once more all that were not readable


def test_what_is_asked_and_what_can_be_shared() -> None:
    plan = plan_text(
        ("Red  Cat", (0, 0, 500, 500)), ("red cat", (0, 0, 9, 9)), ("hat", (1, 1, 9, 9))
    )
    script = {"sem": [TEN], "spa": [TEN], "pi": [TEN], "verdict": ["\\boxed{1}"]}
    engine = LookupEngine(script | {"Red Cat": ["[]"], "hat": ["[]"]})
    sample = request(plan, "a <|im_end|> red cat")
    result = judge_of(engine, (*FOUR, "verdict")).judge([sample, sample])
    asked = dict(zip(engine.asked[0], engine.questions))
    # Both samples are the same: each question once. Names that are equal are one search.
    assert engine.asked == [["sem", "spa", "Red Cat", "hat", "pi", "verdict"]]
    assert result[0] == result[1]
    assert not any("<|" in q.text for q in engine.questions)
    assert "[Red  Cat] (0,0),(500,500)" in asked["sem"].text and asked["sem"].images == ()
    # What an instruction says is the same whatever is judged.
    other = LookupEngine(script | {"dog": ["[]"]})
    judge_of(other, (*FOUR, "verdict")).judge([request(plan_text(("dog", (0, 0, 9, 9))), "x")])
    assert {q.instruction for q in other.questions} == {q.instruction for q in engine.questions}
    assert len({q.instruction for q in engine.questions}) == 5
    assert asked["pi"].text.startswith("Caption: <<<a < |im_end|> red cat>>>")
    assert asked["pi"].text != asked["verdict"].text
    image, sheet = asked["pi"].images[0], asked["spa"].images[0]
    assert asked["hat"].images == asked["verdict"].images == (image,)
    assert sheet.size == (224, 448) and image.size == (100, 200)  # the image's own aspect


def test_images_of_one_plan_share_the_questions_about_it() -> None:
    """sem and spa are of the plan: one question for both images; the others are of each image."""
    script = {"sem": [TEN], "spa": [TEN], "cat": ["[]", "[]"], "pi": [TEN, TEN]}
    engine = LookupEngine(script)
    results = judge_of(engine).judge([request(plan_text(CAT)), request(plan_text(CAT), shade=1)])
    assert sorted(engine.asked[0]) == ["cat", "cat", "pi", "pi", "sem", "spa"]
    assert all(result.scores["sem"] == result.scores["spa"] == 1 for result in results)


def test_the_words_and_places_are_kept() -> None:
    engine = LookupEngine(
        {"sem": [score(7, "no hat")], "spa": [SILENT], "pi": ["what?", "hm"],
         "cat": [boxes((0, 0, 400, 250), (-5, 0, 1100, 10))], "dog": ["[]"]}
    )  # fmt: skip
    plan = plan_text(CAT, ("dog", (600, 0, 900, 500)), ("sun", None))
    (result,) = judge_of(engine).judge([request(plan)])
    assert result.detections == (("cat", Box(0, 0, 400, 500)), ("cat", Box(0, 0, 999, 20)))
    assert result.rationale == (
        "sem 7/10: no hat | spa failed: status 503 | "
        "ri 0.27: cat 0.80, dog not found, 1 not searched for count 0 | "
        "pi failed: unreadable answer"
    )
    assert result.raw_answers["sem"] == score(7, "no hat") and result.raw_answers["pi"] == "hm"
    assert result.raw_answers["ri"].startswith("cat: [{") and result.raw_answers["ri"].endswith(
        "dog: []"
    )
    assert result.scores["ri"] == pytest.approx(0.8 / 3)
    # Nobody who gave no answer at all is asked again; who was not understood is, shorter.
    assert engine.asked[1:] == [["pi"]] and "could not be read" in engine.questions[-1].text


def test_the_verdict() -> None:
    engine = LookupEngine({"verdict": ["A cat: yes. \\boxed{1}", "yes", "All in all \\boxed{0}."]})
    first, second = judge_of(engine, ("verdict",)).judge([request("p"), request("p", shade=1)])
    assert (first.scores["verdict"], second.scores["verdict"]) == (1.0, 0.0)
    assert first.rationale == "verdict 1: A cat: yes. \\boxed{1}"


def test_a_rationale_without_boxes() -> None:
    """Words alone: what asks for words or the image is asked, what needs boxes is 0."""
    text = "The cat [left of it (12,40)] sits.\n\n1. It is **red**; 2 < 3 and 5/7 of it shows."
    engine = LookupEngine({"sem": [score(8)], "pi": [score(4)], "verdict": ["\\boxed{1}"]})
    judge = judge_of(engine, (*FOUR, "verdict"))
    (result,) = judge.judge([request(text, "a red cat")])
    assert result.scores == {"sem": 0.8, "spa": 0, "ri": 0, "pi": 0.4, "verdict": 1}
    assert engine.asked == [["sem", "pi", "verdict"]] and result.detections == ()
    assert f"Plan: <<<{text}>>>" in engine.questions[0].text
    # The verdict hangs on caption and image, not on what was planned.
    assert text not in engine.questions[2].text and "a red cat" in engine.questions[2].text
    assert "ri 0: no object is planned" in result.rationale and result.raw_answers["spa"] == ""
    scores = stack_scores([result], judge.terms)
    assert combine(scores, "sum", ("sem", "pi", "verdict"))[0] == pytest.approx(2.2 / 3)
    assert combine(scores, "v2", ("sem", "pi"))[0] == pytest.approx(0.32)


def test_expected_scores() -> None:
    config = QuestionsConfig(reading="expected")
    script = {"sem": ["7.25"], "spa": ["nan", "5.5"], "pi": ["nan", "11"], "cat": [FULL]}
    judge = MultimodalJudge(ScoringLookup(script), FOUR, config)
    (result,) = judge.judge([request(plan_text(CAT))])
    assert result.scores["sem"] == 0.725 and result.scores["spa"] == 0.5
    assert result.scores["ri"] == 1 and math.isnan(result.scores["pi"])
    assert judge.pop_metrics()["judge/asked_twice_frac"] == 0.5
    with pytest.raises(InputError, match="'expected', which lookup cannot"):
        MultimodalJudge(LookupEngine({}), FOUR, config)
    with pytest.raises(InputError, match="not hps"):
        MultimodalJudge(LookupEngine({}), ("hps",))


def test_the_rates_of_failure() -> None:
    engine = LookupEngine({"sem": ["?", TEN], "spa": ["?", "?"], "pi": [SILENT], "cat": [FULL]})
    judge = judge_of(engine)
    judge.judge([request(plan_text(CAT))])
    assert judge.pop_metrics() == {
        "judge/questions": 4, "judge/cached_frac": 0, "judge/asked_twice_frac": 0.5,
        "judge/no_answer_frac": 0.25, "judge/unread_frac": 0.5,
        "judge/unread_frac/boxes": 0, "judge/unread_frac/score": 2 / 3,
    }  # fmt: skip
    assert judge.pop_metrics() == {"judge/questions": 0}


def test_answers_are_cached_and_failures_are_not(tmp_path) -> None:
    sample = request(plan_text(CAT))
    script = {"sem": ["?", score(4)], "spa": ["?", CUT], "pi": [TEN], "cat": [FULL]}
    first = MultimodalJudge(LookupEngine(script), FOUR, cache=AnswerCache(tmp_path))
    (before,) = first.judge([sample])
    # A new process: only what failed is asked, once, and the words are there again.
    engine = LookupEngine({"spa": [TEN]})
    again = MultimodalJudge(engine, FOUR, cache=AnswerCache(tmp_path))
    (after,) = again.judge([sample])
    assert engine.asked == [["spa"]]
    assert after.scores == {**before.scores, "spa": 1.0} and after.raw_answers["sem"] == score(4)
    assert again.pop_metrics()["judge/cached_frac"] == 0.75
    # Another model, and another caption, are asked everything that depends on them.
    other = LookupEngine({"sem": [TEN], "spa": [TEN], "pi": [TEN], "cat": [FULL]})
    other.identity = "another"
    MultimodalJudge(other, FOUR, cache=AnswerCache(tmp_path)).judge([sample])
    assert len(other.questions) == 4
    caption = LookupEngine({"sem": [TEN], "spa": [TEN], "pi": [TEN]})
    judge = MultimodalJudge(caption, FOUR, cache=AnswerCache(tmp_path))
    judge.judge([dataclasses.replace(sample, caption="a dog")])
    assert caption.asked == [["sem", "spa", "pi"]]  # where the cat is does not depend on it


def test_expected_scores_are_cached_apart(tmp_path) -> None:
    config = QuestionsConfig(reading="expected")
    sample = request(plan_text(CAT))
    for script in ({"sem": ["7.5"]}, {}):
        engine = ScoringLookup(script)
        judge = MultimodalJudge(engine, ("sem",), config, AnswerCache(tmp_path))
        assert judge.judge([sample])[0].scores == {"sem": 0.75}
    text = MultimodalJudge(LookupEngine({"sem": [TEN]}), ("sem",), cache=AnswerCache(tmp_path))
    assert text.judge([sample])[0].scores == {"sem": 1.0}


def test_layout_as_text_asks_the_same_in_numbers() -> None:
    sample = request(plan_text(CAT, ("dog", (600, 0, 900, 500))), "a cat beside a dog")
    shown = QuestionsConfig(layout="text")
    (asked,) = make_questions(sample, ["spa"], shown)["spa"]
    assert asked.images == () and asked.kind == "score" and asked.scale is not None
    assert (asked.scale.low, asked.scale.high) == (1, 10)
    x1, y1, x2, y2 = CAT[1]
    lines = f"Layout: <<<cat ({x1},{y1}),({x2},{y2})\ndog (600,0),(900,500)>>>\n"
    caption = "Caption: <<<a cat beside a dog>>>\n"
    assert asked.text == f"{caption}{lines}Answer with the JSON object."
    # Every word after the description of what is shown is the same.
    (canvas,) = make_questions(sample, ["spa"], QuestionsConfig())["spa"]
    same = canvas.instruction[canvas.instruction.index("Take words of place") :]
    assert asked.instruction.endswith(same)
    # Kept results of before stay known, and the two ways are told apart.
    engine = LookupEngine({})
    identities = [MultimodalJudge(engine, ["spa"], c).identity for c in (shown, QuestionsConfig())]
    assert "layout" not in identities[1] and identities[0].startswith(identities[1])
    assert identities[0] != identities[1]
