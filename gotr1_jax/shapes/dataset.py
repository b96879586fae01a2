"""The shapes world as a data source: examples and captions of a split."""

from __future__ import annotations

import zlib
from typing import Literal

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.shapes.captions import SPLITS, sample_caption, write_caption
from gotr1_jax.shapes.rationales import write_rationale
from gotr1_jax.shapes.render import render
from gotr1_jax.shapes.world import Example, sample_example

# Bumped when the world draws something else for the same (seed, index): caches hang on it.
_WORLD_VERSION = 1


# Draws before a request for distinct captions is given up.
_TRIES_PER_CAPTION = 200


class ShapesSource:
    """`length` examples of the shapes world; each is a function of (seed, split, index) alone.

    `unfaithful_fraction` of the plans and images contradict their captions. `plans` says how
    these are written; the images, and so `key`, are the same either way.
    Raises InputError for an unknown split, or a fraction outside [0, 1].
    """

    def __init__(
        self,
        split: str,
        length: int,
        seed: int = 0,
        unfaithful_fraction: float = 0.0,
        plans: Literal["boxes", "rationale"] = "boxes",
    ) -> None:
        if split not in SPLITS:
            raise InputError(f"shapes split {split!r} is unknown; use one of {', '.join(SPLITS)}")
        if not 0.0 <= unfaithful_fraction <= 1.0:
            raise InputError(f"unfaithful fraction {unfaithful_fraction} is not within 0..1")
        if length < 1:
            raise InputError(f"number of examples {length} must be at least 1")
        self._split = split
        self._length = length
        self._seed = seed
        self._unfaithful_fraction = unfaithful_fraction
        self._plans = plans

    @property
    def key(self) -> str:
        return (
            f"shapes v{_WORLD_VERSION} split={self._split} seed={self._seed} "
            f"unfaithful={self._unfaithful_fraction!r}"
        )

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        stream = (self._seed, zlib.crc32(self._split.encode()), index)
        rng = np.random.default_rng(stream)
        return sample_example(rng, self._split, self._unfaithful_fraction)

    def text(self, index: int) -> tuple[str, str]:
        """(caption, plan)."""
        example = self[index]
        rationale = self._plans == "rationale"
        return example.caption, write_rationale(example.scene) if rationale else example.plan

    def image(self, index: int) -> np.ndarray:
        """uint8 (64, 64, 3)."""
        return render(self[index].scene)


def shapes_captions(split: str, count: int, seed: int = 0) -> tuple[str, ...]:
    """`count` different captions of a split, in an order fixed by the seed.

    Raises InputError when the split has not that many.
    """
    rng = np.random.default_rng((seed, zlib.crc32(split.encode())))
    found: dict[str, None] = {}
    for _ in range(_TRIES_PER_CAPTION * count):
        found[write_caption(sample_caption(rng, split))] = None
        if len(found) == count:
            return tuple(found)
    raise InputError(f"cannot draw {count} different captions of split {split!r}; ask for fewer")
