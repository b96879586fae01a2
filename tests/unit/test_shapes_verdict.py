"""The exact verdict of the shapes judge, on images made by hand, and its configuration."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gotr1_jax.config import from_dict
from gotr1_jax.errors import InputError
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.plan import parse_plan
from gotr1_jax.rewards.base import JudgeRequest
from gotr1_jax.rewards.factory import make_judge
from gotr1_jax.rewards.judge_config import JudgeConfig
from gotr1_jax.rewards.shapes import ShapesJudge
from gotr1_jax.shapes.captions import CaptionSpec, ObjectSpec
from gotr1_jax.shapes.dataset import ShapesSource
from gotr1_jax.shapes.render import render
from gotr1_jax.shapes.scenes import Scene, SceneObject
from gotr1_jax.shapes.vocabulary import SIZE_PIXELS


def image(*placed: tuple[str, tuple[int, int]]) -> np.ndarray:
    """Named objects ("large red circle") at top-left corners in pixels."""
    objects = []
    for name, (x, y) in placed:
        size, color, shape = name.split()
        side = SIZE_PIXELS[size]
        objects.append(SceneObject(ObjectSpec(shape, color, size), (x, y, x + side, y + side)))
    return render(Scene(CaptionSpec(()), tuple(objects)))


def judged(caption: str, image: np.ndarray) -> float:
    (result,) = ShapesJudge(("verdict",)).judge([JudgeRequest(caption, parse_plan(""), image)])
    assert set(result.scores) == {"verdict"}
    return result.scores["verdict"]


RED, BLUE, GREEN = "small red circle", "large blue square", "small green cross"
PAIR = image((RED, (4, 24)), (BLUE, (36, 20)))
TWO = image((RED, (4, 4)), (RED, (40, 40)))


@pytest.mark.parametrize(
    ("caption", "image", "true"),
    [
        ("a red circle left of a blue square", PAIR, 1),
        ("a small red circle left of a large blue square", PAIR, 1),
        ("a blue square right of a red circle", PAIR, 1),
        ("a red circle next to a blue square", PAIR, 1),
        ("a red circle and a blue square", PAIR, 1),
        ("a large red circle left of a blue square", PAIR, 0),  # size
        ("a green circle left of a blue square", PAIR, 0),  # color
        ("a red cross left of a blue square", PAIR, 0),  # shape
        ("a red circle right of a blue square", PAIR, 0),  # side
        ("a red circle above a blue square", PAIR, 0),
        ("a red circle", PAIR, 0),  # one too many
        ("a red circle left of a blue square and a green cross", PAIR, 0),  # one is missing
        (
            "a red circle left of a blue square and a green cross",
            image((RED, (4, 24)), (BLUE, (36, 20)), (GREEN, (24, 48))),
            1,
        ),
        ("two red circles", TWO, 1),
        ("two small red circles", TWO, 1),
        ("three red circles", TWO, 0),
        ("two large red circles", TWO, 0),
        # The circle without a size must not take the only small one.
        (
            "a red circle and a small red circle",
            image(("large red circle", (4, 4)), (RED, (40, 40))),
            1,
        ),
        ("a red circle", image(), 0),
    ],
)
def test_by_hand(caption: str, image: np.ndarray, true: int) -> None:
    assert judged(caption, image) == true


def test_what_is_no_clear_shape_is_not_true() -> None:
    bar = image()
    bar[20:34, 10:50] = (225, 25, 30)
    assert judged("a red square", bar) == 0


def test_captions_of_another_world_have_no_verdict() -> None:
    assert math.isnan(judged("a vase of tulips", PAIR))


def test_faithful_examples_are_true_and_others_are_not() -> None:
    source = ShapesSource("all", 200, 3, 0.5)
    for index in range(len(source)):
        example = source[index]
        assert judged(example.caption, render(example.scene)) == example.faithful


def test_it_is_scored_where_it_is_named() -> None:
    usual = make_judge(JudgeConfig())
    assert usual.terms == ("sem", "spa", "ri", "pi")
    named = make_judge(JudgeConfig(terms=("pi", "verdict")))
    (result,) = named.judge([JudgeRequest("a red circle", parse_plan(""), PAIR)])
    assert named.terms == ("pi", "verdict") and set(result.scores) == {"pi", "verdict"}


def test_a_reward_of_verdicts_needs_a_judge_that_gives_them() -> None:
    values = {"run_dir": "x", "reward": {"rule": "sum", "terms": ["verdict"]}}
    with pytest.raises(InputError, match="verdict.*but the judge gives sem, spa, ri, pi"):
        from_dict(GrpoConfig, values)
    config = from_dict(GrpoConfig, {**values, "judge": {"terms": ["verdict"]}})
    assert config.judge.scored_terms == ("verdict",)
