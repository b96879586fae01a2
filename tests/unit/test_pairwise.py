"""Win rates within a caption, with numbers worked out by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lookup_engine import request

from gotr1_jax.config import from_dict
from gotr1_jax.errors import ConfigError, InputError
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.plan import parse_plan
from gotr1_jax.rewards.base import JudgeRequest, JudgeResult, is_group_wise, pop_metrics
from gotr1_jax.rewards.composite import SharedJudge
from gotr1_jax.rewards.factory import JudgeMaker, make_judge, make_term_judge
from gotr1_jax.rewards.judge_config import JudgeConfig
from gotr1_jax.rewards.multimodal.comparison import QuestionComparer
from gotr1_jax.rewards.multimodal.questions import QuestionsConfig
from gotr1_jax.rewards.pairwise import PairwiseConfig, PairwiseJudge, ScoreComparer
from gotr1_jax.rewards.preferences import PairComparison, compare_scores, draw_pairs, win_rates
from gotr1_jax.rewards.terms import TermConfig
from gotr1_jax.shapes.dataset import sample_example
from gotr1_jax.shapes.render import render
from gotr1_jax.vlm_engine.answer_cache import AnswerCache
from gotr1_jax.vlm_engine.base import Answer, Question

NAN = math.nan


class Viewer:
    """Answers by the pictures' shades (first, second); counts what it is asked."""

    identity = "viewer"

    def __init__(self, answers: Mapping[tuple[int, int], str]) -> None:
        self.answers = dict(answers)
        self.asked: list[tuple[int, int]] = []
        self.questions: list[Question] = []

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        return [Answer(self.answers.get(shades, "?")) for shades in self._see(questions)]

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def _see(self, questions: Sequence[Question]) -> list[tuple[int, int]]:
        seen = [tuple(int(p.pixels.max()) for p in q.images) for q in questions]
        self.asked += seen  # type: ignore[arg-type]
        self.questions += questions
        return seen  # type: ignore[return-value]


class Reader(Viewer):
    """One that reads probabilities: 1 + that of "2"."""

    def expected_scores(self, questions: Sequence[Question]) -> list[float]:
        return [float(self.answers[shades]) for shades in self._see(questions)]


def example(seed: int) -> JudgeRequest:
    """A sample of the shapes world whose plan and image are right."""
    made = sample_example(np.random.default_rng(seed), "all")
    return JudgeRequest(made.caption, parse_plan(made.plan), render(made.scene))


class Shade:
    terms, identity = ("pi", "ri"), "shade"

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        shades = [float(r.image.max()) for r in requests]
        return [JudgeResult({"pi": NAN if s == 9 else s, "ri": 2.0}) for s in shades]


def samples(*shades: int, group: int = 0) -> list[JudgeRequest]:
    return [replace(request("a plan", shade=s), group=group) for s in shades]


def rates(results: Sequence[JudgeResult]) -> list[float]:
    return [round(result.scores["pref"], 6) for result in results]


@pytest.mark.parametrize(
    "forward, backward, value",
    [
        (1, 1, 1), (1, 0, 0.5), (0, 0, 0), (0.8, 0.4, 0.6),
        (0.5, 1, 1), (0, 0.5, 0), (0.5, 0.5, 0.5),
        (NAN, 1, 1), (0, NAN, 0), (NAN, 0.5, 0.5), (NAN, NAN, NAN),
    ],
)  # fmt: skip
def test_both_orders_make_one_value(forward: float, backward: float, value: float) -> None:
    assert PairComparison(forward, backward).value == pytest.approx(value, nan_ok=True)


def test_win_rates() -> None:
    """0 beats 1, ties with 2; 1 against 2 could not be read; 3 meets nobody."""
    found = win_rates(4, [(0, 1), (0, 2), (1, 2)], [1.0, 0.5, NAN])
    np.testing.assert_array_equal(found, [0.75, 0.0, 0.5, NAN])
    # Three samples, probabilities: 0 has (0.9 + 0.6) / 2, 1 (0.1 + 0.3) / 2, 2 (0.4 + 0.7) / 2.
    found = win_rates(3, [(0, 1), (0, 2), (1, 2)], [0.9, 0.6, 0.3])
    np.testing.assert_allclose(found, [0.75, 0.2, 0.55])
    assert [compare_scores(*p) for p in ((2, 1), (1, 2), (1, 1))] == [1, 0, 0.5]
    assert math.isnan(compare_scores(NAN, 1))


@pytest.mark.parametrize(
    "size, opponents", [(8, 2), (8, 3), (7, 4), (7, 3), (5, 1), (6, 1), (2, 1)]
)
def test_every_sample_meets_as_many(size: int, opponents: int) -> None:
    pairs = draw_pairs(size, opponents, "key")
    assert pairs == draw_pairs(size, opponents, "key") == sorted(set(pairs))
    met = Counter(place for pair in pairs for place in pair)
    assert all(i < j for i, j in pairs)
    assert set(met.values()) == {opponents + (size % 2 and opponents % 2)}


def test_all_pairs_and_other_keys() -> None:
    assert draw_pairs(3, 0, "") == draw_pairs(3, 5, "") == [(0, 1), (0, 2), (1, 2)]
    assert draw_pairs(1, 0, "") == draw_pairs(0, 0, "") == []
    assert len({tuple(draw_pairs(8, 2, key)) for key in "abcd"}) > 1


def test_scores_win_within_their_caption() -> None:
    """Shades 9 have no score; the last sample is alone."""
    comparer = ScoreComparer(Shade(), "pi * ri")
    judge = PairwiseJudge("pref", comparer)
    assert is_group_wise(judge) and judge.terms == ("pref",)
    requests = samples(1, 3, 3) + samples(50, 9, 40, group=1) + samples(8, group=2)
    results = judge.judge(requests)
    assert rates(results)[:4] == [0, 0.75, 0.75, 1] and rates(results)[5] == 0
    assert math.isnan(results[4].scores["pref"]) and math.isnan(results[6].scores["pref"])
    assert results[1].rationale == "pref 0.75: 1 against 0, 0.5 against 2"
    assert results[6].rationale == "pref failed: no other sample of the caption"
    metrics = judge.pop_metrics()
    assert metrics["judge/pairwise/pref/pairs"] == 6
    assert metrics["judge/pairwise/pref/tie_frac"] == pytest.approx(1 / 6)
    assert metrics["judge/pairwise/pref/no_answer_frac"] == pytest.approx(2 / 6)
    assert judge.pop_metrics() == {"judge/pairwise/pref/pairs": 0.0}
    assert judge.judge([]) == []


def test_captions_in_one_group_are_not_compared() -> None:
    judge = PairwiseJudge("pref", ScoreComparer(Shade(), "pi"))
    mixed = [*samples(1, 2), *(replace(r, caption="a dog") for r in samples(3, 4))]
    assert rates(judge.judge(mixed)) == [0, 1, 0, 1]


def test_questions_in_both_orders(tmp_path: Path) -> None:
    """1 against 2: the second both times, so by order; 1 against 3: 3 twice; 2 against 3: a tie
    and a decision for 2. Sample 4 looks like 3 and is no question of its own."""
    first, second, tie = '{"score": 1}', '{"score": 2, "reason": "b"}', "0"
    answers = {
        (1, 2): second, (2, 1): second, (1, 3): second, (3, 1): first, (2, 3): tie, (3, 2): second,
    }  # fmt: skip
    engine, cache = Viewer(answers), AnswerCache(tmp_path)
    judge = PairwiseJudge("pref", QuestionComparer(engine, cache=cache))
    results = judge.judge(samples(1, 2, 3, 3))
    # 1: (0.5 + 0 + 0) / 3; 2: (0.5 + 1 + 1) / 3; 3, twice: (1 + 0 + 0.5) / 3.
    assert rates(results) == [0.166667, 0.833333, 0.5, 0.5]
    assert sorted(engine.asked) == sorted(answers)
    metrics = judge.pop_metrics()
    assert (
        metrics["judge/pairwise/pref/questions"] == 6 and metrics["judge/pairwise/pref/pairs"] == 6
    )
    # Decided in both orders: 1-2 (by order), 1-3 twice. Of 8 decisions two are for the first.
    assert metrics["judge/pairwise/pref/position_bias"] == pytest.approx(1 / 3)
    assert metrics["judge/pairwise/pref/first_frac"] == pytest.approx(2 / 8)
    assert metrics["judge/pairwise/pref/unread_frac"] == 0
    assert results[0].raw_answers["pref"].startswith(f"shown before 1: {second}")
    (text,) = {q.text for q in engine.questions}
    assert "a cat" in text and "a plan" not in text
    # The same samples again, by a judge of the same cache: no question is put to the engine.
    again = PairwiseJudge("pref", QuestionComparer(Viewer({}), cache=cache))
    assert rates(again.judge(samples(3, 2, 1))) == [0.5, 0.75, 0.25]
    assert again.pop_metrics()["judge/pairwise/pref/questions"] == 0


def test_an_order_that_cannot_be_read_leaves_the_other() -> None:
    engine = Viewer({(1, 2): '{"score": 2}', (1, 3): '{"score": 1.5}'})
    judge = PairwiseJudge("pref", QuestionComparer(engine))
    results = judge.judge(samples(1, 2, 3))
    assert rates(results)[:2] == [0, 1] and math.isnan(results[2].scores["pref"])
    assert results[2].rationale == "pref failed: unread against 0, unread against 1"
    metrics = judge.pop_metrics()
    assert metrics["judge/pairwise/pref/unread_frac"] == pytest.approx(5 / 6)
    assert metrics["judge/pairwise/pref/no_answer_frac"] == pytest.approx(2 / 3)
    assert "judge/pairwise/pref/position_bias" not in metrics


def test_probabilities_and_plans() -> None:
    """P(second) 0.9 and, turned, 0.3: the second sample wins by (0.9 + 0.7) / 2."""
    engine = Reader({(1, 2): "1.9", (2, 1): "1.3"})
    expected = QuestionsConfig(reading="expected")
    comparer = QuestionComparer(engine, expected, plans=True)
    assert rates(PairwiseJudge("pref", comparer).judge(samples(1, 2))) == [0.2, 0.8]
    text = engine.questions[0].text
    assert (
        "First picture. Plan: <<<a plan>>>" in text
        and "0 = " not in engine.questions[0].instruction
    )
    # Equal pictures of other plans are a question where the plans are shown.
    engine = Reader({(1, 1): "1.9"})
    two = [*samples(1), replace(request("another plan", shade=1))]
    judge = PairwiseJudge("pref", QuestionComparer(engine, expected, plans=True))
    assert rates(judge.judge(two)) == [0.5, 0.5] and len(engine.asked) == 2
    assert judge.pop_metrics()["judge/pairwise/pref/position_bias"] == 1
    with pytest.raises(InputError, match="'expected', which viewer cannot"):
        QuestionComparer(Viewer({}), expected)


def test_fewer_opponents_are_the_same_pairs_in_another_batch() -> None:
    judge = PairwiseJudge("pref", ScoreComparer(Shade(), "pi"), opponents=2)
    group = samples(*range(10, 18))
    alone = judge.judge(group)
    assert judge.pop_metrics()["judge/pairwise/pref/pairs"] == 8
    assert judge.judge(samples(1, 2, group=5) + group)[2:] == alone
    moved = Shade()
    moved.identity = "the same one at another address"
    other = PairwiseJudge("mine", ScoreComparer(moved, "pi"), opponents=2).judge(group)
    met = [[r.rationale.partition(": ")[2] for r in results] for results in (alone, other)]
    assert met[0] == met[1] and met[0][0].count("against") == 2


@pytest.mark.parametrize(
    "values, message",
    [
        ({"by": "scores"}, "of is '' and by is scores; give the expression"),
        ({"of": "pi"}, "of is 'pi' and by is questions; leave out"),
        ({"by": "scores", "of": "pi", "plans": True}, "plans are shown in questions only"),
        ({"opponents": -1}, "opponents"),
        ({"by": "scores", "of": "2 + 1"}, "equal for all samples; name a term"),
        ({"by": "scores", "of": "pi *"}, r"of is 'pi \*'; character 5: "),
    ],
)
def test_settings_that_cannot_be(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PairwiseConfig(**values)  # type: ignore[arg-type]


def test_a_term_of_a_reward() -> None:
    """The exact judge is asked once for both; its scores and the win rate stand side by side."""
    terms = {"pref": TermConfig(pairwise=PairwiseConfig(by="scores", of="pi * ri"))}
    judge = make_judge(JudgeConfig("shapes"), terms=terms)
    assert judge.terms == ("sem", "spa", "ri", "pi", "pref") and is_group_wise(judge)
    scenes = [example(i) for i in range(3)]
    requests = [replace(r, caption=scenes[0].caption) for r in scenes]
    results = judge.judge(requests)
    products = [r.scores["pi"] * r.scores["ri"] for r in results]
    assert products[0] > max(products[1:]) and results[0].scores["pref"] == 1
    assert "judge/pairwise/pref/pairs" in pop_metrics(judge)
    for name, config, message in (
        ("shapes", PairwiseConfig(), "pref.pairwise asks questions, and the judge is shapes"),
        ("shapes", PairwiseConfig(by="scores", of="hps"), "does not score hps; it scores sem, spa"),
        ("none", PairwiseConfig(by="scores", of="pi"), "no judge gives other terms"),
    ):
        kind: Any = name
        with pytest.raises(InputError, match=message):
            make_judge(JudgeConfig(kind), terms={"pref": TermConfig(pairwise=config)})
    with pytest.raises(InputError, match="pref takes its score from the judge of a reward"):
        make_term_judge(terms, JudgeMaker())


def test_a_single_sample_cannot_be_compared() -> None:
    values: dict[str, Any] = {"reward": {"terms": {"pref": {"pairwise": {"by": "scores"}}}}}
    values["reward"]["terms"]["pref"]["pairwise"]["of"] = "pi"
    values["reward"]["total"] = "pref"
    from_dict(GrpoConfig, {"run_dir": "run", "steps": 1, **values})
    one = [("evaluation.samples", "1")]
    message = "evaluation.samples is 1, and reward.terms.pref.pairwise compares"
    with pytest.raises(ConfigError, match=message):
        from_dict(GrpoConfig, {"run_dir": "run", "steps": 1, **values}, overrides=one)


def test_a_shared_judge_is_asked_once() -> None:
    class Counting(Shade):
        calls = 0

        def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
            self.calls += 1
            return super().judge(requests)

    inner = Counting()
    shared, group = SharedJudge(inner, 2), samples(1, 2)
    assert shared.judge(group) == shared.judge(list(group)) and inner.calls == 1
    shared.judge(group)  # a third time: as often as it is used, it is asked anew
    assert inner.calls == 2
    shared.judge(group[::-1])
    assert inner.calls == 3
