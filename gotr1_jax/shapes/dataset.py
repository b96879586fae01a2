"""The shapes world as a data set: examples and captions of a split."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.shapes.captions import (
    SPLITS,
    contradict,
    is_heldout,
    sample_caption,
    write_caption,
)
from gotr1_jax.shapes.plans import write_plan, write_rationale
from gotr1_jax.shapes.render import render
from gotr1_jax.shapes.scenes import Scene, sample_scene
from gotr1_jax.shapes.vocabulary import MAX_OBJECTS

# Part of cache names: increase it when the same (seed, index) gives another example.
_WORLD_VERSION = 3
# Captions in a row that were there already, after which `shapes_captions` gives up.
_MAX_REPEATS = 5000


@dataclass(frozen=True)
class Example:
    """A training sample; plan and image (`render(scene)`) always agree with each other, and with
    the caption when `faithful`."""

    caption: str
    plan: str
    scene: Scene
    faithful: bool


def sample_example(
    rng: np.random.Generator,
    split: str,
    unfaithful_fraction: float = 0.0,
    max_objects: int = MAX_OBJECTS,
) -> Example:
    """Draw caption, plan and scene; in `unfaithful_fraction` of them plan and image contradict
    the caption (another side, or one color wrong).

    Plan and image of a training caption never show a held-out composition either: such a
    contradiction is drawn anew with its caption, so that of "train" about an eighth fewer than
    that contradict (0.35 where the fraction is 0.4).
    """
    while True:
        spec = sample_caption(rng, split, max_objects)
        faithful = bool(rng.random() >= unfaithful_fraction)
        drawn = spec
        if not faithful:
            side = spec.relation is not None and rng.random() < 0.5
            drawn = contradict(rng, spec, "side" if side else "color")
        if split != "train" or not is_heldout(drawn):
            break
    placed = sample_scene(rng, drawn)
    scene = Scene(spec, placed.objects, placed.hidden_first)
    return Example(write_caption(spec), write_plan(scene), scene, faithful)


class ShapesSource:
    """`length` examples of the shapes world; each is a function of (seed, split, index) alone.

    `unfaithful_fraction` of the plans and images contradict their captions. `plans` selects plans
    with boxes or rationales; images, and so `key`, are the same for both. `max_objects` leaves out
    captions of more.
    Raises InputError for an unknown split, a fraction outside [0, 1], or a number of objects that
    no caption has.
    """

    def __init__(
        self,
        split: str,
        length: int,
        seed: int = 0,
        unfaithful_fraction: float = 0.0,
        plans: Literal["boxes", "rationale"] = "boxes",
        max_objects: int = MAX_OBJECTS,
    ) -> None:
        if split not in SPLITS:
            raise InputError(f"shapes split {split!r} is unknown; use one of {', '.join(SPLITS)}")
        if not 0.0 <= unfaithful_fraction <= 1.0:
            raise InputError(f"unfaithful fraction {unfaithful_fraction} is not within 0..1")
        if not 1 <= max_objects <= MAX_OBJECTS:
            raise InputError(f"max_objects is {max_objects}; captions have 1 to {MAX_OBJECTS}")
        if length < 1:
            raise InputError(f"number of examples {length} must be at least 1")
        self._split, self._length, self._seed = split, length, seed
        self._unfaithful_fraction = unfaithful_fraction
        self._plans, self._max_objects = plans, max_objects

    @property
    def key(self) -> str:
        few = f" objects={self._max_objects}" if self._max_objects < MAX_OBJECTS else ""
        return (
            f"shapes v{_WORLD_VERSION} split={self._split} seed={self._seed} "
            f"unfaithful={self._unfaithful_fraction!r}{few}"
        )

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        stream = (self._seed, zlib.crc32(self._split.encode()), index)
        rng = np.random.default_rng(stream)
        return sample_example(rng, self._split, self._unfaithful_fraction, self._max_objects)

    def text(self, index: int) -> tuple[str, str]:
        """(caption, plan)."""
        example = self[index]
        rationale = self._plans == "rationale"
        return example.caption, write_rationale(example.scene) if rationale else example.plan

    def image(self, index: int) -> np.ndarray:
        """uint8 (128, 128, 3)."""
        return render(self[index].scene)


def shapes_captions(split: str, count: int, seed: int = 0) -> tuple[str, ...]:
    """`count` distinct captions of a split, in an order fixed by the seed.

    Raises InputError if the split has fewer.
    """
    rng = np.random.default_rng((seed, zlib.crc32(split.encode())))
    found: dict[str, None] = {}
    repeats = 0
    while len(found) < count and repeats < _MAX_REPEATS:
        before = len(found)
        found[write_caption(sample_caption(rng, split))] = None
        repeats = 0 if len(found) > before else repeats + 1
    if len(found) < count:
        raise InputError(
            f"cannot draw {count} different captions of split {split!r}, which has about "
            f"{len(found)}; ask for fewer"
        )
    return tuple(found)
