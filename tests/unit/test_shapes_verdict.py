"""The exact verdict of the shapes judge, on images made by hand, and its configuration."""

from __future__ import annotations

import math

import numpy as np
import pytest
from placed import place

from gotr1_jax.config import from_dict
from gotr1_jax.errors import InputError
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.plan import parse_plan
from gotr1_jax.rewards.base import JudgeRequest
from gotr1_jax.rewards.factory import make_judge
from gotr1_jax.rewards.judge_config import JudgeConfig
from gotr1_jax.rewards.shapes import ShapesJudge
from gotr1_jax.shapes.dataset import ShapesSource
from gotr1_jax.shapes.render import render
from gotr1_jax.shapes.vocabulary import COLORS


def image(*placed: tuple[str, tuple[int, int]], hidden_first: bool = False) -> np.ndarray:
    """Named objects ("large red circle") at top-left corners in thousandths."""
    return render(place(*placed, hidden_first=hidden_first))


def judged(caption: str, image: np.ndarray) -> float:
    (result,) = ShapesJudge(("verdict",)).judge([JudgeRequest(caption, parse_plan(""), image)])
    assert set(result.scores) == {"verdict"}
    return result.scores["verdict"]


RED, BLUE, GREEN = "small red circle", "large blue square", "medium green star"
PAIR = image((RED, (60, 370)), (BLUE, (400, 300)))
TWO = image((RED, (60, 60)), (RED, (620, 620)))
FOUR = image(*((RED, (x, y)) for x in (60, 620) for y in (60, 620)))
# Of the square the circle hides a corner, or the square a part of the circle.
OVER = image((RED, (230, 380)), (BLUE, (400, 300)))
UNDER = image((RED, (300, 200)), (BLUE, (430, 330)), hidden_first=True)


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
        ("a red star left of a blue square", PAIR, 0),  # shape
        ("a red circle right of a blue square", PAIR, 0),  # side
        ("a red circle above a blue square", PAIR, 0),
        ("a red circle", PAIR, 0),  # one too many
        ("a red circle left of a blue square and a green star", PAIR, 0),  # one is missing
        (
            "a red circle left of a blue square and a green star",
            image((RED, (60, 370)), (BLUE, (400, 300)), (GREEN, (60, 670))),
            1,
        ),
        ("two red circles", TWO, 1),
        ("two small red circles", TWO, 1),
        ("three red circles", TWO, 0),
        ("two large red circles", TWO, 0),
        ("four red circles", FOUR, 1),
        ("four small red circles", FOUR, 1),
        ("three red circles", FOUR, 0),
        ("a red circle in front of a blue square", OVER, 1),
        ("a blue square behind a red circle", OVER, 1),
        ("a small red circle in front of a large blue square", OVER, 1),
        ("a red circle behind a blue square", OVER, 0),
        ("a red circle and a blue square", OVER, 1),
        ("a red circle behind a blue square", UNDER, 1),
        ("a blue square in front of a red circle", UNDER, 1),
        ("a red circle in front of a blue square", UNDER, 0),
        ("a red circle left of a blue square", UNDER, 0),  # they are on one another
        ("a red circle in front of a blue square", PAIR, 0),  # apart
        ("a red circle behind a blue square", PAIR, 0),
        # The circle without a size must not take the only small one.
        (
            "a red circle and a small red circle",
            image(("large red circle", (60, 60)), (RED, (620, 620))),
            1,
        ),
        ("a red circle", image(), 0),
    ],
)
def test_by_hand(caption: str, image: np.ndarray, true: int) -> None:
    assert judged(caption, image) == true


def test_what_is_no_clear_shape_is_not_true() -> None:
    bar = image()
    bar[40:68, 20:100] = COLORS["red"]
    assert judged("a red square", bar) == 0


def test_captions_of_another_world_have_no_verdict() -> None:
    assert math.isnan(judged("a vase of tulips", PAIR))


def test_faithful_examples_are_true_and_others_are_not() -> None:
    source = ShapesSource("all", 150, 3, 0.5)
    wrong = 0
    for index in range(len(source)):
        example = source[index]
        wrong += judged(example.caption, render(example.scene)) != example.faithful
    assert wrong <= 1  # below 1 %: see test_shapes_judge


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
