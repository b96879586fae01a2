"""Questions about scenes: the answers are worked out anew from the boxes and names drawn."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from gotr1_jax.plan import Box
from gotr1_jax.shapes.captions import CaptionSpec, ObjectSpec, split_of
from gotr1_jax.shapes.questions import QUESTION_KINDS, YES_NO, ask, sample_questions
from gotr1_jax.shapes.scenes import Scene, SceneObject

QUESTIONS = list(sample_questions(160, "heldout", 7))
_NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4}


def truth_of(question) -> str:
    """The answer, read from the question's own words."""
    kind = question.kind.removesuffix(YES_NO)
    objects = question.scene.objects
    words = question.text.rstrip("?").lower().split()
    yes = question.kind.endswith(YES_NO)
    if kind == "count":
        shape = words[2] if not yes else words[-1]
        number = sum(o.spec.shape in (shape, shape.removesuffix("s"), shape.removesuffix("es"))
                     for o in objects)  # fmt: skip
        return ("yes" if number == _NUMBERS[words[3]] else "no") if yes else str(number)
    if kind == "color":
        (spec,) = [o.spec for o in objects if o.spec.shape in words]
        return ("yes" if spec.color in words else "no") if yes else spec.color
    if kind == "shape":
        (spec,) = [o.spec for o in objects if o.spec.color in words]
        return ("yes" if spec.shape in words else "no") if yes else spec.shape
    first, second = (
        next(o for o in objects if o.spec.kind == tuple(words[at : at + 2]))
        for at in (2, len(words) - 2)
    )
    a, b = first.box, second.box
    true = {
        "left": a.x2 <= b.x1, "right": a.x1 >= b.x2, "above": a.y2 <= b.y1, "below": a.y1 >= b.y2,
    }  # fmt: skip
    if yes:
        return "yes" if true[words[4]] else "no"
    # The two sides that are named exclude each other.
    (side,) = [side for side in true if side in words and true[side]]
    return side


def test_answers_are_true_of_the_scenes():
    assert [q.answer for q in QUESTIONS] == [truth_of(q) for q in QUESTIONS]


def test_kinds_and_answers_are_balanced_and_scenes_held_out():
    kinds = Counter(q.kind for q in QUESTIONS)
    assert kinds == {k + end: 20 for k in QUESTION_KINDS for end in ("", YES_NO)}
    for kind in QUESTION_KINDS:
        answers = Counter(q.answer for q in QUESTIONS if q.kind == kind + YES_NO)
        assert answers == {"yes": 10, "no": 10}
    assert {split_of(q.scene.caption) for q in QUESTIONS} == {"heldout"}


def test_a_question_depends_on_seed_and_place_alone():
    few = list(sample_questions(8, "heldout", 7))
    assert few == QUESTIONS[:8]
    assert list(sample_questions(8, "heldout", 8)) != few


def scene(*objects: tuple[str, str, int]) -> Scene:
    """Objects (color, shape, x) of 220 thousandths, side by side."""
    specs = [ObjectSpec(shape, color, "small") for color, shape, _ in objects]
    boxes = [Box(x, 300, x + 220, 520) for *_, x in objects]
    return Scene(CaptionSpec(tuple(specs)), tuple(map(SceneObject, specs, boxes)))


def test_what_is_not_unique_is_not_asked_about():
    rng = np.random.default_rng(0)
    twins = scene(("red", "circle", 60), ("red", "circle", 620))
    assert [ask(rng, twins, kind, None) is None for kind in QUESTION_KINDS] == [
        False, True, True, True,
    ]  # fmt: skip
    assert ask(rng, twins, "count", None).answer == "2"
    mixed = scene(("red", "circle", 60), ("blue", "circle", 620))
    assert ask(rng, mixed, "color", None) is None  # two circles
    assert ask(rng, mixed, "shape", None).answer == "circle"
    assert ask(rng, mixed, "relation", True).answer == "yes"
    with pytest.raises(ValueError, match="size"):
        ask(rng, mixed, "size", None)


def test_objects_on_one_another_have_no_side():
    over = scene(("red", "circle", 60), ("blue", "circle", 100))
    assert ask(np.random.default_rng(0), over, "relation", None) is None


def test_as_many_as_there_are_at_most_are_counted():
    four = scene(*(("red", "moon", x) for x in (15, 255, 495, 735)))
    rng = np.random.default_rng(0)
    assert ask(rng, four, "count", None).answer == "4"
    assert ask(rng, four, "count", True).text == "Are there exactly four moons?"
    denied = {ask(rng, four, "count", False).text for _ in range(40)}
    assert denied == {
        "Is there exactly one moon?", "Are there exactly two moons?",
        "Are there exactly three moons?",
    }  # fmt: skip
