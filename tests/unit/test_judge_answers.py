"""A judge's right answers: read back by the multimodal judge, they are the exact judge's scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from tiny_judge import TINY_JUDGE

from gotr1_jax.errors import ConfigError
from gotr1_jax.judge_sft.answers import (
    INVENTORY,
    boxes_answer,
    grade,
    right_answer,
    score_answer,
    search_answer,
    verdict_answer,
)
from gotr1_jax.judge_sft.config import JudgeShapesConfig
from gotr1_jax.judge_sft.new_model import new_preprocessing
from gotr1_jax.judge_sft.shapes_source import _STREAM, JudgedShapes
from gotr1_jax.plan import Box, parse_plan
from gotr1_jax.rewards.base import JudgeRequest
from gotr1_jax.rewards.multimodal.box_answers import parse_boxes
from gotr1_jax.rewards.multimodal.questions import QuestionsConfig, make_questions
from gotr1_jax.rewards.multimodal.terms import MultimodalJudge
from gotr1_jax.shapes.judge import judge_sample
from gotr1_jax.vlm_engine.base import Answer, Question, Scale

SHOWN = QuestionsConfig(canvas=112)
PREPROCESSING = new_preprocessing(TINY_JUDGE)
SOURCE = JudgedShapes(JudgeShapesConfig(questions=SHOWN), PREPROCESSING, seed=1)


def test_answers_by_hand() -> None:
    ten = Scale(0, 10, '{"score": ')
    assert score_answer(0.74, ten, "so") == '{"score": 7, "reason": "so"}'
    assert score_answer(0.5, replace(ten, low=1), 'a "b"') == (
        '{"score": 6, "reason": "a \\"b\\""}'  # 1 + 4.5, halves up
    )
    # 140 px high, 280 wide: x is 0.28 px a thousandth, y 0.14.
    boxes = boxes_answer([("cat", Box(100, 200, 500, 999)), ("cat", Box(0, 0, 10, 10))], (140, 280))
    assert boxes == (
        '[{"bbox_2d": [28, 28, 140, 140], "label": "cat"}, '
        '{"bbox_2d": [0, 0, 3, 1], "label": "cat"}]'
    )
    assert boxes_answer([], (140, 140)) == "[]"
    checks = [("1 red circle", True), ("nothing else", False)]
    assert verdict_answer(checks, "the image shows x", False) == (
        "the image shows x\n1 red circle: yes\nnothing else: no\n\\boxed{0}"
    )


def test_an_inventory_holds_all_objects_from_left_to_right() -> None:
    config = JudgeShapesConfig(terms=("ri",), searches=1, questions=SHOWN, inventory=True)
    source = JudgedShapes(config, PREPROCESSING, seed=1)
    assert source.turns == 2
    for index in range(12):
        rng = np.random.default_rng((_STREAM, 1, index))
        sample = grade(source.draw_request(rng))
        turn = source[index].turns[-1]
        assert (turn.instruction, turn.text, len(turn.images)) == (INVENTORY, "", 1)
        found = json.loads(turn.answer)
        assert [item["label"] for item in found] == [name for name, _ in sample.shown]
        lefts = [item["bbox_2d"][0] for item in found]
        assert lefts == sorted(lefts) and len(found) == len(sample.scores.detections)


class ExactEngine:
    """Answers every question about some samples as it is taught."""

    identity = "exact"

    def __init__(
        self, samples: Sequence[JudgeRequest], terms: Sequence[str], config: QuestionsConfig
    ) -> None:
        self._answers: dict[str, str] = {}
        for request in samples:
            sample = grade(request)
            for term, asked in make_questions(request, terms, config).items():
                for question in asked:
                    self._answers[question.key] = self._right(term, question, sample)

    def _right(self, term: str, question: Question, sample: object) -> str:
        if question.kind == "boxes":
            name = question.text.split("<<<")[1].split(">>>")[0]
            return search_answer(name, sample, self.image_size(*question.images[0].size))
        return str(right_answer(term, question, sample))

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        return [Answer(self._answers[q.key]) for q in questions]

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        return 140, 140


@pytest.mark.parametrize("layout", ["canvas", "text"])
def test_right_answers_are_read_as_the_exact_scores(layout: str) -> None:
    rng = np.random.default_rng(0)
    samples = [SOURCE.draw_request(rng) for _ in range(40)]
    terms = ("sem", "spa", "ri", "pi", "verdict")
    shown = replace(SHOWN, layout=layout)
    judge = MultimodalJudge(ExactEngine(samples, terms, shown), terms, shown)
    results = judge.judge(samples)
    exact = [judge_sample(s.caption, s.plan, s.image).scores for s in samples]
    # Half a step of each scale; a whole pixel of 140 at each edge of a box, as IoU.
    slack = {"sem": 0.05, "spa": 0.5 / 9, "pi": 0.05, "verdict": 0, "ri": 0.12}
    for given, right in zip(results, exact):
        for term in terms:
            assert given.scores[term] == pytest.approx(right[term], abs=slack[term] + 1e-6), given
    verdicts = [right["verdict"] for right in exact]
    assert 0.15 < np.mean(verdicts) < 0.7, "one answer would do"
    assert np.std([right["ri"] for right in exact]) > 0.1
    metrics = judge.pop_metrics()
    assert metrics["judge/unread_frac"] == 0 and metrics["judge/asked_twice_frac"] == 0


def test_examples_hold_every_question_once_and_depend_on_seed_and_index() -> None:
    assert SOURCE.turns == 1 + 2 + 2 + 1 + 1  # sem, two layouts of spa, two searches, pi, verdict
    again = JudgedShapes(JudgeShapesConfig(questions=SHOWN), PREPROCESSING, seed=1)
    one, same, other = SOURCE[5], again[5], SOURCE[6]
    assert one.turns == same.turns and one.turns != other.turns
    assert len(one.turns) == SOURCE.turns
    instructions = {turn.instruction for turn in one.turns}
    assert len(instructions) == 6
    canvas, text = [t for t in one.turns if "Two rectangles of the same" in t.instruction]
    assert canvas.answer == text.answer and canvas.images and not text.images
    np.testing.assert_array_equal(one.images[0].patches_NE, same.images[0].patches_NE)


def test_a_model_of_thousandths_is_taught_them() -> None:
    config = JudgeShapesConfig(questions=SHOWN)
    taught = JudgedShapes(config, PREPROCESSING, seed=1, thousandths=True)
    seen = 0
    for index in range(6):
        for pixels, thousandths in zip(SOURCE[index].turns, taught[index].turns):
            if "bbox_2d" not in pixels.answer:
                assert pixels == thousandths
                continue
            one, other = (np.array(parse_boxes(t.answer)) for t in (pixels, thousandths))
            # The model gets images of 140 by 140 pixels; both answers are rounded.
            np.testing.assert_allclose(other * 0.14, one, atol=0.5 + 0.07 + 1e-6)
            seen += one.size
    assert seen > 16


def test_another_image_passes_through_and_a_foreign_caption_gives_searches_alone() -> None:
    config = JudgeShapesConfig(questions=SHOWN, vq_fraction=1.0)
    black = JudgedShapes(config, PREPROCESSING, 1, lambda image: np.zeros_like(image))
    assert black[3].turns != SOURCE[3].turns
    sample = grade(JudgeRequest("a cat", parse_plan("a cat"), np.full((64, 64, 3), 240, np.uint8)))
    (question,) = make_questions(sample.request, ["pi"], SHOWN)["pi"]
    assert right_answer("pi", question, sample) is None


def test_settings_that_ask_nothing_are_refused() -> None:
    for wrong in ({"terms": ()}, {"terms": ("sem", "sem")}, {"terms": ("style",)}, {"layouts": ()}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            JudgeShapesConfig(**wrong)
