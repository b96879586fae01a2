"""Scenes of the shapes world: objects placed so that a caption is true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from gotr1_jax.shapes.captions import CaptionSpec, ObjectSpec
from gotr1_jax.shapes.vocabulary import (
    BORDER,
    FULL_GAP,
    FULL_NEAR,
    FULL_TILT,
    GRID_STEP,
    IMAGE_SIZE,
    MIN_GAP,
    NEXT_TO_MAX_GAP,
    OPPOSITES,
    RELATIONS,
    SCENE_TILT,
    SIZE_PIXELS,
    SIZES,
    ZERO_NEAR,
    ZERO_TILT,
)

PixelBox = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels of the 64 px image, half open, origin top left."""


@dataclass(frozen=True)
class SceneObject:
    """A drawn object; `spec.size` is set, and `box` is its exact extent."""

    spec: ObjectSpec
    box: PixelBox

    @property
    def relative_box(self) -> tuple[float, ...]:
        """The box in fractions 0..1 of the image."""
        return tuple(v / IMAGE_SIZE for v in self.box)


@dataclass(frozen=True)
class Scene:
    """What is drawn for a caption; objects are in the caption's order."""

    caption: CaptionSpec
    objects: tuple[SceneObject, ...]


def relation_score(relation: str, box_a: Sequence[float], box_b: Sequence[float]) -> float:
    """Degree in [0, 1] to which box `a` is `relation` box `b`.

    Boxes are (x1, y1, x2, y2) in fractions 0..1 of the image, origin top left. A side relation
    is the product of two parts: separation (1 once the boxes are apart along the axis, falling
    linearly to 0 where the centres are level) and direction (1 while the centres' offset across
    the axis is at most FULL_TILT of that along it, 0 from ZERO_TILT). "next to" means left or
    right of; its gap may also not exceed FULL_NEAR, and scores 0 from ZERO_NEAR.

    Raises ValueError for an unknown relation.
    """
    if relation not in RELATIONS:
        raise ValueError(f"unknown relation {relation!r}; known: {', '.join(RELATIONS)}")
    if relation in ("right of", "below"):
        box_a, box_b = box_b, box_a
    axis = 1 if relation in ("above", "below") else 0
    offset = [(box_b[k] + box_b[k + 2] - box_a[k] - box_a[k + 2]) / 2 for k in (0, 1)]
    along, across = offset[axis], abs(offset[1 - axis])
    if relation == "next to":
        along = abs(along)
    half_a, half_b = ((box[2 + axis] - box[axis]) / 2 for box in (box_a, box_b))
    separation = _clip(along / max(half_a + half_b + FULL_GAP, 1e-6))
    tilt = across / max(along, 1e-6)
    score = separation * _clip((ZERO_TILT - tilt) / (ZERO_TILT - FULL_TILT))
    if relation == "next to":
        score *= _clip((ZERO_NEAR - (along - half_a - half_b)) / (ZERO_NEAR - FULL_NEAR))
    return float(score)


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def sample_scene(rng: np.random.Generator, spec: CaptionSpec) -> Scene:
    """Place the objects of a caption so that it is true of the image.

    Open sizes are sampled; boxes are BORDER pixels inside the image and MIN_GAP apart; a
    relation scores 1 under `relation_score`.
    """
    objects = tuple(
        obj if obj.size else replace(obj, size=SIZES[int(rng.integers(len(SIZES)))])
        for obj in spec.objects
    )
    sides = [SIZE_PIXELS[obj.size or ""] for obj in objects]
    while (boxes := _place(rng, sides, spec.relation)) is None:
        pass
    return Scene(spec, tuple(SceneObject(obj, box) for obj, box in zip(objects, boxes)))


def _place(
    rng: np.random.Generator, sides: list[int], relation: str | None
) -> list[PixelBox] | None:
    """Boxes for squares of the given sides; None if no room is left for the last ones."""
    boxes: list[PixelBox] = []
    if relation is not None:
        pairs = _pair_corners(relation, sides[0], sides[1])
        corners = pairs[int(rng.integers(len(pairs)))].reshape(2, 2)
        boxes = [_box(x, y, side) for (x, y), side in zip(corners.tolist(), sides)]
    for side in sides[len(boxes) :]:
        room = _free_corners(side, boxes)
        if not len(room):
            return None
        x, y = room[int(rng.integers(len(room)))].tolist()
        boxes.append(_box(x, y, side))
    return boxes


def _box(x: int, y: int, side: int) -> PixelBox:
    return x, y, x + side, y + side


@cache
def _corners(side: int) -> np.ndarray:
    """Every allowed top-left corner (x, y) of a square, int64 (N, 2)."""
    steps = np.arange(BORDER, IMAGE_SIZE - BORDER - side + 1, GRID_STEP)
    return np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)


def _free_corners(side: int, boxes: list[PixelBox]) -> np.ndarray:
    """Corners where a square keeps MIN_GAP from all boxes."""
    corners = _corners(side)
    free = np.ones(len(corners), bool)
    for box in np.asarray(boxes, int).reshape(-1, 4):
        clear = (corners + side + MIN_GAP <= box[:2]) | (corners >= box[2:] + MIN_GAP)
        free &= clear.any(axis=1)
    return corners[free]


@cache
def _pair_corners(relation: str, side_a: int, side_b: int) -> np.ndarray:
    """Every pair of corners (ax, ay, bx, by) that makes the relation true, int16 (N, 4)."""
    if relation in ("right of", "below"):
        return _pair_corners(OPPOSITES[relation], side_b, side_a)[:, [2, 3, 0, 1]]
    if relation == "next to":
        left, right = (_pair_corners(name, side_a, side_b) for name in ("left of", "right of"))
        both = np.concatenate([left, right])
        gap = np.maximum(both[:, 2] - both[:, 0] - side_a, both[:, 0] - both[:, 2] - side_b)
        return both[gap <= NEXT_TO_MAX_GAP]
    axis = 0 if relation == "left of" else 1
    a, b = _corners(side_a)[:, None], _corners(side_b)[None]
    offset = (b - a) + (side_b - side_a) / 2
    along, across = offset[..., axis], np.abs(offset[..., 1 - axis])
    apart = b[..., axis] - a[..., axis] - side_a >= MIN_GAP
    index_a, index_b = np.nonzero(apart & (across <= SCENE_TILT * along))
    pairs = np.concatenate([_corners(side_a)[index_a], _corners(side_b)[index_b]], axis=1)
    return pairs.astype(np.int16)
