"""Captions of the shapes world: specification, English text, splits."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby

import numpy as np

from gotr1_jax.shapes.vocabulary import (
    COLORS,
    DEPTHS,
    HELDOUT_PAIRS,
    HELDOUT_PERCENT,
    MAX_OBJECTS,
    NUMBER_WORDS,
    OPPOSITES,
    PLURALS,
    RELATIONS,
    SHAPES,
    SIDES,
    SIZES,
)

SPLITS = ("train", "heldout", "unseen", "all")
# Kinds of captions and their frequencies.
_KINDS = ("one", "pair", "triple", "quadruple", "count", "list")
_KIND_SHARES = (0.14, 0.44, 0.14, 0.06, 0.12, 0.10)
# Frequency of a depth, next to a side or "next to".
_DEPTH_SHARE = 0.4
# Names that state no size.
_SIZELESS_SHARE = 0.4

_SINGULARS = {plural: shape for shape, plural in PLURALS.items()}
_COUNTS = {word: count for count, word in NUMBER_WORDS.items()}
_RELATION_PATTERN = re.compile(" (" + "|".join(RELATIONS) + ") ")


@dataclass(frozen=True)
class ObjectSpec:
    """One object; `size` is None if a caption states none."""

    shape: str
    color: str
    size: str | None = None

    @property
    def name(self) -> str:
        """ "small red circle", or "red circle" where the size is open."""
        return " ".join(part for part in (self.size, self.color, self.shape) if part)

    @property
    def kind(self) -> tuple[str, str]:
        """(color, shape)."""
        return self.color, self.shape


@dataclass(frozen=True)
class CaptionSpec:
    """One to four objects; `relation` is of the first two, the others may be anywhere.

    A count is a run of equal objects: "two red circles" is (red circle, red circle).
    """

    objects: tuple[ObjectSpec, ...]
    relation: str | None = None


def write_caption(spec: CaptionSpec) -> str:
    """English of a caption, e.g. "a red circle left of a small blue square and a green star"."""
    if spec.relation is None:
        return " and ".join(_phrase(obj, len(list(run))) for obj, run in groupby(spec.objects))
    first, second, *rest = (_phrase(obj, 1) for obj in spec.objects)
    return " and ".join([f"{first} {spec.relation} {second}", *rest])


def parse_caption(text: str) -> CaptionSpec | None:
    """The caption that `write_caption` writes as `text`; None for any other text."""
    relation = _RELATION_PATTERN.search(text)
    pieces = text.split(" and ")
    if relation is not None:
        pieces = [*_RELATION_PATTERN.sub("\n", pieces[0]).split("\n"), *pieces[1:]]
    objects: list[ObjectSpec] = []
    for piece in pieces:
        found = _read_phrase(piece)
        if found is None:
            return None
        objects += [found[0]] * found[1]
    if len(objects) > MAX_OBJECTS or (relation is not None and len(objects) < 2):
        return None
    spec = CaptionSpec(tuple(objects), None if relation is None else relation.group(1))
    return spec if write_caption(spec) == text else None


def _phrase(obj: ObjectSpec, count: int) -> str:
    if count == 1:
        return f"a {obj.name}"
    words = (NUMBER_WORDS[count], obj.size, obj.color, PLURALS[obj.shape])
    return " ".join(word for word in words if word)


def _read_phrase(text: str) -> tuple[ObjectSpec, int] | None:
    number, *words = text.split(" ")
    count = 1 if number == "a" else _COUNTS.get(number, 0)
    size = words.pop(0) if words and words[0] in SIZES else None
    if count == 0 or len(words) != 2 or words[0] not in COLORS:
        return None
    shape = words[1] if count == 1 else _SINGULARS.get(words[1], "")
    return (ObjectSpec(shape, words[0], size), count) if shape in SHAPES else None


@lru_cache(maxsize=65536)
def is_heldout(spec: CaptionSpec) -> bool:
    """Whether a caption is held out of all training.

    It is if it names a held-out (color, shape) pair, or if the composition of its objects falls
    in the held-out share. A composition is the two related objects with their relation, or,
    without a relation, all objects. Sizes and further objects of a relation do not count, and
    "a left of b" is the same composition as "b right of a".
    """
    kinds = [obj.kind for obj in spec.objects]
    if any(kind in HELDOUT_PAIRS for kind in kinds):
        return True
    if len(kinds) == 1:
        return False
    relation = spec.relation
    if relation is not None:
        kinds = kinds[:2]
    if relation in ("right of", "below", "behind"):
        kinds, relation = kinds[::-1], OPPOSITES[relation]
    elif relation in (None, "next to"):
        kinds = sorted(kinds)
    key = f"{relation}:{kinds}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") % 100 < HELDOUT_PERCENT


def sample_caption(
    rng: np.random.Generator, split: str, max_objects: int = MAX_OBJECTS
) -> CaptionSpec:
    """Draw a caption of a split, of at most `max_objects` objects. The splits are disjoint:

    "train"; "heldout": new compositions of training objects; "unseen": with an object of a
    held-out (color, shape) pair, which never occurs in training. "all" draws from all three.

    Raises ValueError for another name.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    while True:
        spec = _sample_any(rng)
        if len(spec.objects) <= max_objects and split in ("all", split_of(spec)):
            return spec


def split_of(spec: CaptionSpec) -> str:
    """The split that a caption belongs to: "train", "heldout" or "unseen"."""
    if not is_heldout(spec):
        return "train"
    return "unseen" if any(obj.kind in HELDOUT_PAIRS for obj in spec.objects) else "heldout"


def contradict(rng: np.random.Generator, spec: CaptionSpec, kind: str) -> CaptionSpec:
    """A caption that contradicts `spec`.

    Kind "side" reverses a side; "next to" becomes above or below, and a depth any side: which of
    two is in front does not show in a plan's boxes, and an image follows its plan. "color" gives
    one object another color. Raises ValueError for "side" without a relation.
    """
    if kind == "side":
        if spec.relation is None:
            raise ValueError(f"{write_caption(spec)!r} has no relation to reverse")
        other = SIDES[int(rng.integers(len(SIDES)))]
        if spec.relation not in DEPTHS:
            other = OPPOSITES.get(spec.relation, ("above", "below")[int(rng.integers(2))])
        return replace(spec, relation=other)
    if kind != "color":
        raise ValueError(f"unknown contradiction {kind!r}; known: side, color")
    index = int(rng.integers(len(spec.objects)))
    old = spec.objects[index]
    taken = {obj.color for obj in spec.objects if obj.shape == old.shape}
    if spec.relation in DEPTHS:  # a depth between equal colors would not show
        taken |= {obj.color for obj in spec.objects[:2]}
    free = [color for color in COLORS if color not in taken]
    new = replace(old, color=free[int(rng.integers(len(free)))])
    return replace(spec, objects=(*spec.objects[:index], new, *spec.objects[index + 1 :]))


def _sample_any(rng: np.random.Generator) -> CaptionSpec:
    kind = _KINDS[int(rng.choice(len(_KINDS), p=_KIND_SHARES))]
    if kind == "one":
        return CaptionSpec(_sample_objects(rng, 1))
    if kind == "count":
        return CaptionSpec(_sample_objects(rng, 1) * int(rng.integers(2, MAX_OBJECTS + 1)))
    if kind == "list":
        return CaptionSpec(_sample_objects(rng, int(rng.integers(2, MAX_OBJECTS))))
    shares = np.array([_DEPTH_SHARE if name in DEPTHS else 1.0 for name in RELATIONS])
    relation = RELATIONS[int(rng.choice(len(RELATIONS), p=shares / shares.sum()))]
    count = {"pair": 2, "triple": 3, "quadruple": 4}[kind]
    while True:
        objects = _sample_objects(rng, count)
        # Between equal colors it would not show which one is in front.
        if relation not in DEPTHS or objects[0].color != objects[1].color:
            return CaptionSpec(objects, relation)


def _sample_objects(rng: np.random.Generator, count: int) -> tuple[ObjectSpec, ...]:
    """`count` objects of different (color, shape); some of them without a size."""
    kinds = rng.choice(len(COLORS) * len(SHAPES), size=count, replace=False)
    colors = tuple(COLORS)
    return tuple(
        ObjectSpec(
            shape=SHAPES[int(kind) % len(SHAPES)],
            color=colors[int(kind) // len(SHAPES)],
            size=None if rng.random() < _SIZELESS_SHARE else SIZES[int(rng.integers(len(SIZES)))],
        )
        for kind in kinds
    )
