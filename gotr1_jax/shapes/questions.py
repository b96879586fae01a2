"""Questions about scenes of the shapes world, each with its one right answer.

Four kinds (count, color, shape, relation), each with an open and a yes-or-no form. An object that
a question names occurs exactly once in the scene, so the answer is unambiguous. Half of the
yes-or-no answers are yes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from gotr1_jax.shapes.captions import sample_caption
from gotr1_jax.shapes.scenes import Scene, SceneObject, relation_score, sample_scene
from gotr1_jax.shapes.vocabulary import (
    COLORS,
    MAX_OBJECTS,
    NUMBER_WORDS,
    OPPOSITES,
    PLURALS,
    SHAPES,
    SIDES,
)

_T = TypeVar("_T")

QUESTION_KINDS = ("count", "color", "shape", "relation")
YES_NO = " yes/no"
"""Suffix of the kind of a yes-or-no question."""


@dataclass(frozen=True)
class SceneQuestion:
    """A question about `scene`: its kind ("color", "color yes/no"), text and answer."""

    scene: Scene
    kind: str
    text: str
    answer: str


def sample_questions(count: int, split: str, seed: int) -> Iterator[SceneQuestion]:
    """`count` questions, each about its own scene of a split; kinds and answers alternate.

    Question i is a function of (seed, split, i) alone. Raises ValueError for an unknown split.
    """
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        kind = QUESTION_KINDS[index % len(QUESTION_KINDS)]
        turn = index // len(QUESTION_KINDS)
        truth = None if turn % 2 else bool(turn // 2 % 2)
        question = None
        while question is None:
            scene = sample_scene(rng, sample_caption(rng, split))
            question = ask(rng, scene, kind, truth)
        yield question


def ask(
    rng: np.random.Generator, scene: Scene, kind: str, truth: bool | None
) -> SceneQuestion | None:
    """A question of a kind about a scene; None if the scene has no unambiguous one.

    truth: whether the answer of a yes-or-no question is yes; None: an open question.
    Raises ValueError for an unknown kind.
    """
    if kind not in QUESTION_KINDS:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(QUESTION_KINDS)}")
    make = {"count": _count, "color": _color, "shape": _shape, "relation": _relation}[kind]
    made = make(rng, scene, truth)
    if made is None:
        return None
    text, answer = made
    if truth is None:
        return SceneQuestion(scene, kind, text, answer)
    return SceneQuestion(scene, kind + YES_NO, text, "yes" if truth else "no")


def _count(rng: np.random.Generator, scene: Scene, truth: bool | None) -> tuple[str, str]:
    shape, number = _pick(rng, sorted(Counter(o.spec.shape for o in scene.objects).items()))
    if truth is None:
        return f"How many {PLURALS[shape]} are there?", str(number)
    stated = number if truth else _other(rng, range(1, MAX_OBJECTS + 1), number)
    if stated == 1:
        return f"Is there exactly one {shape}?", ""
    return f"Are there exactly {NUMBER_WORDS[stated]} {PLURALS[shape]}?", ""


def _color(rng: np.random.Generator, scene: Scene, truth: bool | None) -> tuple[str, str] | None:
    known = _unique(scene, "shape")
    return _attribute(rng, known, truth, "color", "{0.shape}", tuple(COLORS)) if known else None


def _shape(rng: np.random.Generator, scene: Scene, truth: bool | None) -> tuple[str, str] | None:
    known = _unique(scene, "color")
    return _attribute(rng, known, truth, "shape", "{0.color} object", SHAPES) if known else None


def _attribute(
    rng: np.random.Generator,
    known: Sequence[SceneObject],
    truth: bool | None,
    attribute: str,
    name: str,
    values: Sequence[str],
) -> tuple[str, str]:
    """About one attribute of one of `known`, identified by another one in the format `name`."""
    spec = _pick(rng, known).spec
    named, value = name.format(spec), getattr(spec, attribute)
    if truth is None:
        return f"What {attribute} is the {named}?", value
    stated = value if truth else _other(rng, values, value)
    return f"Is the {named} {'a ' if attribute == 'shape' else ''}{stated}?", ""


def _relation(rng: np.random.Generator, scene: Scene, truth: bool | None) -> tuple[str, str] | None:
    """About two objects with a relation that scores 1."""
    known = _unique(scene, "kind")
    pairs = [
        (a, b, relation)
        for a in known
        for b in known
        for relation in SIDES
        if a is not b and relation_score(relation, a.relative_box, b.relative_box) == 1
    ]
    if not pairs:
        return None
    a, b, relation = _pick(rng, pairs)
    names = [f"the {' '.join(o.spec.kind)}" for o in (a, b)]
    if truth is None:
        sides = "left or right of" if relation in ("left of", "right of") else "above or below"
        return f"Is {names[0]} {sides} {names[1]}?", relation.removesuffix(" of")
    stated = relation if truth else OPPOSITES[relation]
    return f"Is {names[0]} {stated} {names[1]}?", ""


def _unique(scene: Scene, attribute: str) -> list[SceneObject]:
    """The objects whose attribute ("shape", "color", "kind") occurs once in the scene."""
    counts = Counter(getattr(o.spec, attribute) for o in scene.objects)
    return [o for o in scene.objects if counts[getattr(o.spec, attribute)] == 1]


def _pick(rng: np.random.Generator, values: Sequence[_T]) -> _T:
    return values[int(rng.integers(len(values)))]


def _other(rng: np.random.Generator, values: Iterable[_T], taken: _T) -> _T:
    return _pick(rng, [value for value in values if value != taken])
