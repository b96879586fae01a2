"""The embedded judge on samples that it has not seen: it locates, and its scores go with the exact
ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gotr1_jax.config import from_dict
from gotr1_jax.convert.find import EMBEDDED_JUDGE_NAME, find_checkpoint
from gotr1_jax.errors import InputError
from gotr1_jax.images.qwen import Geometry, Preprocessing
from gotr1_jax.judge_sft.answers import GradedSample, grade, search_answer
from gotr1_jax.judge_sft.config import JudgeShapesConfig
from gotr1_jax.judge_sft.shapes_source import JudgedShapes
from gotr1_jax.plan import Box, match_objects
from gotr1_jax.plan.boxes import SCALE
from gotr1_jax.rewards.factory import make_judge
from gotr1_jax.rewards.judge_config import JudgeConfig
from gotr1_jax.rewards.multimodal.box_answers import parse_boxes
from gotr1_jax.rewards.multimodal.client import EngineClient
from gotr1_jax.rewards.multimodal.questions import QuestionsConfig, make_questions
from gotr1_jax.vlm_engine.config import QwenEngineConfig
from gotr1_jax.vlm_engine.engine import QwenEngine

SHOWN = QuestionsConfig(canvas=192)


@pytest.fixture(scope="module")
def engine() -> QwenEngine:
    return QwenEngine.from_config(QwenEngineConfig(EMBEDDED_JUDGE_NAME, "float32"))


@pytest.fixture(scope="module")
def samples() -> list[GradedSample]:
    # The settings of images are for the questions of training alone.
    unused = Preprocessing(Geometry(), 784, 784, (0.5,) * 3, (0.5,) * 3)
    source = JudgedShapes(JudgeShapesConfig(), unused, seed=12345)
    return [grade(source.draw_request(np.random.default_rng(i))) for i in range(48)]


def test_it_locates_objects(engine: QwenEngine, samples: list[GradedSample]) -> None:
    asked, right = [], []
    for sample in samples[:24]:
        for question in make_questions(sample.request, ["ri"], SHOWN)["ri"]:
            name = question.text.split("<<<")[1].split(">>>")[0]
            boxes = parse_boxes(search_answer(name, sample, (SCALE, SCALE)))
            asked.append(question)
            right.append([("", Box(*map(int, box))) for box in boxes])
    answers = EngineClient(engine).ask(asked)
    assert all(answer.boxes is not None for answer in answers)
    sides = SCALE / np.array([*engine.image_size(*asked[0].images[0].size)[::-1]] * 2)
    ious = []
    for answer, boxes in zip(answers, right, strict=True):
        found = [("", Box(*map(int, np.rint(box * sides)))) for box in answer.boxes or ()]
        ious += [iou for _, _, iou in match_objects(boxes, found)]
    # Boxes drawn by chance have an IoU of about .05 with any object.
    assert np.mean(ious) > 0.2


def test_its_scores_go_with_the_exact_ones(engine: QwenEngine, samples: list[GradedSample]) -> None:
    client = EngineClient(engine, expected=True)
    exact = [sample.scores.scores["pi"] for sample in samples]
    asked = [make_questions(sample.request, ["pi"], SHOWN)["pi"][0] for sample in samples]
    own = [answer.score for answer in client.ask(asked)]
    assert np.corrcoef(exact, own)[0, 1] > 0.25


@pytest.mark.parametrize(
    "asked, warns",
    [
        ({}, True),
        ({"canvas": 192}, False),
        ({"layout": "text"}, False),
    ],
)
def test_another_sketch_than_it_was_taught_is_warned_of(
    asked: dict[str, Any], warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"kind": "qwen_vl", "terms": ["sem", "spa"], "questions": asked}
    config["qwen_vl"] = {"checkpoint": EMBEDDED_JUDGE_NAME, "dtype": "float32"}
    make_judge(from_dict(JudgeConfig, config))
    warned = [r.getMessage() for r in caplog.records if "sketches of 192 pixels" in r.getMessage()]
    assert len(warned) == warns
    assert not warns or "asked with 448; set judge.questions.canvas=192" in warned[0]


def test_its_name_takes_no_revision() -> None:
    assert (find_checkpoint(EMBEDDED_JUDGE_NAME) / "tokenizer.json").is_file()
    with pytest.raises(InputError, match="not to embedded_judge"):
        find_checkpoint(EMBEDDED_JUDGE_NAME, revision="main")
