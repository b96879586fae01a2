"""Questions about scenes of the shapes world, with the only right answer of each.

Four kinds (count, color, shape, relation), each asked for a word and for yes or no. What a question
names, the scene holds exactly once, so that no answer is a matter of taste; half of the yes-or-no
questions are true.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from gotr1_jax.shapes.captions import sample_caption
from gotr1_jax.shapes.relations import relation_score
from gotr1_jax.shapes.vocabulary import (
    COLORS,
    IMAGE_SIZE,
    MAX_OBJECTS,
    NUMBER_WORDS,
    OPPOSITES,
    PLURALS,
    SHAPES,
)
from gotr1_jax.shapes.world import Scene, SceneObject, sample_scene

_T = TypeVar("_T")

QUESTION_KINDS = ("count", "color", "shape", "relation")
YES_NO = " yes/no"
"""What a kind's name ends with where the answer is yes or no."""


@dataclass(frozen=True)
class SceneQuestion:
    """A question about `scene`: its kind ("color", "color yes/no"), text and answer."""

    scene: Scene
    kind: str
    text: str
    answer: str


def sample_questions(count: int, split: str, seed: int) -> Iterator[SceneQuestion]:
    """`count` questions, each about a scene of its own of a split, kinds and answers in turn.

    Each is a function of (seed, split, its place) alone. Raises ValueError for an unknown split.
    """
    for place in range(count):
        rng = np.random.default_rng((seed, place))
        kind = QUESTION_KINDS[place % len(QUESTION_KINDS)]
        turn = place // len(QUESTION_KINDS)
        truth = None if turn % 2 else bool(turn // 2 % 2)
        question = None
        while question is None:
            scene = sample_scene(rng, sample_caption(rng, split))
            question = ask(rng, scene, kind, truth)
        yield question


def ask(
    rng: np.random.Generator, scene: Scene, kind: str, truth: bool | None
) -> SceneQuestion | None:
    """A question of a kind about a scene, or None where the scene leaves it open.

    truth: whether the answer of a yes-or-no question is yes; None asks for a word.
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
    said = number if truth else _other(rng, range(1, MAX_OBJECTS + 1), number)
    if said == 1:
        return f"Is there exactly one {shape}?", ""
    return f"Are there exactly {NUMBER_WORDS[said]} {PLURALS[shape]}?", ""


def _color(rng: np.random.Generator, scene: Scene, truth: bool | None) -> tuple[str, str] | None:
    known = _once(scene, "shape")
    return _attribute(rng, known, truth, "color", "{0.shape}", tuple(COLORS)) if known else None


def _shape(rng: np.random.Generator, scene: Scene, truth: bool | None) -> tuple[str, str] | None:
    known = _once(scene, "color")
    return _attribute(rng, known, truth, "shape", "{0.color} object", SHAPES) if known else None


def _attribute(
    rng: np.random.Generator,
    known: Sequence[SceneObject],
    truth: bool | None,
    attribute: str,
    name: str,
    values: Sequence[str],
) -> tuple[str, str]:
    """About one attribute of one of the objects `known`, which `name` names by another."""
    spec = _pick(rng, known).spec
    named, value = name.format(spec), getattr(spec, attribute)
    if truth is None:
        return f"What {attribute} is the {named}?", value
    said = value if truth else _other(rng, values, value)
    return f"Is the {named} {'a ' if attribute == 'shape' else ''}{said}?", ""


def _relation(rng: np.random.Generator, scene: Scene, truth: bool | None) -> tuple[str, str] | None:
    """About two objects of which one is clearly on one side of the other."""
    known = _once(scene, "kind")
    pairs = [
        (a, b, relation)
        for a in known
        for b in known
        for relation in OPPOSITES
        if a is not b and relation_score(relation, _box(a), _box(b)) == 1
    ]
    if not pairs:
        return None
    a, b, relation = _pick(rng, pairs)
    names = [f"the {' '.join(o.spec.kind)}" for o in (a, b)]
    if truth is None:
        sides = "left or right of" if relation in ("left of", "right of") else "above or below"
        return f"Is {names[0]} {sides} {names[1]}?", relation.removesuffix(" of")
    said = relation if truth else OPPOSITES[relation]
    return f"Is {names[0]} {said} {names[1]}?", ""


def _once(scene: Scene, attribute: str) -> list[SceneObject]:
    """The objects that share an attribute ("shape", "color", "kind") with no other one."""
    times = Counter(getattr(o.spec, attribute) for o in scene.objects)
    return [o for o in scene.objects if times[getattr(o.spec, attribute)] == 1]


def _box(obj: SceneObject) -> tuple[float, ...]:
    return tuple(v / IMAGE_SIZE for v in obj.box)


def _pick(rng: np.random.Generator, values: Sequence[_T]) -> _T:
    return values[int(rng.integers(len(values)))]


def _other(rng: np.random.Generator, values: Iterable[_T], taken: _T) -> _T:
    return _pick(rng, [value for value in values if value != taken])
