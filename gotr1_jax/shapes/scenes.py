"""Scenes of the shapes world: objects placed so that a caption is true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gotr1_jax.plan.boxes import SCALE, Box, box_to_pixels
from gotr1_jax.shapes.captions import CaptionSpec, ObjectSpec, write_caption
from gotr1_jax.shapes.outlines import drawn_mask, label_parts
from gotr1_jax.shapes.vocabulary import (
    BORDER,
    DEPTHS,
    FULL_COVER,
    FULL_GAP,
    FULL_HIDE,
    FULL_NEAR,
    FULL_TILT,
    HIDDEN,
    IMAGE_SIZE,
    MAX_ASPECT,
    MIN_GAP,
    NEXT_TO_MAX_GAP,
    RELATIONS,
    SCENE_TILT,
    SIZE_RANGES,
    SIZES,
    ZERO_HIDE,
    ZERO_NEAR,
    ZERO_TILT,
)

# Places tried at once for an object or a pair, and scenes tried in all.
_TRIES = 192
_SCENES = 2000
# Pairs with a larger share of the box behind are not tried: little of the object would show.
_MAX_COVERED = 0.6


@dataclass(frozen=True)
class SceneObject:
    """A drawn object; `spec.size` is set, and `box` is its exact extent (hidden parts as well)."""

    spec: ObjectSpec
    box: Box

    @property
    def relative_box(self) -> tuple[float, float, float, float]:
        """The box in fractions 0..1 of the image."""
        return box_to_pixels(self.box, 1, 1)


@dataclass(frozen=True)
class Scene:
    """What is drawn for a caption; objects are in the caption's order.

    Attributes:
        hidden_first: whether the first object is behind the second one, where they overlap;
            otherwise an earlier object is in front of a later one.
    """

    caption: CaptionSpec
    objects: tuple[SceneObject, ...]
    hidden_first: bool = False

    @property
    def draw_order(self) -> tuple[SceneObject, ...]:
        """The objects from the back to the front."""
        return self.objects if self.hidden_first else self.objects[::-1]


def relation_score(relation: str, box_a: Sequence[float], box_b: Sequence[float]) -> float:
    """Degree in [0, 1] to which box `a` is `relation` box `b`.

    Boxes are (x1, y1, x2, y2) in fractions 0..1 of the image, origin top left. A side relation
    is the product of two parts: separation (1 once the boxes are apart along the axis, falling
    linearly to 0 where the centres are level) and direction (1 while the centres' offset across
    the axis is at most FULL_TILT of that along it, 0 from ZERO_TILT). "next to" means left or
    right of; its gap may also not exceed FULL_NEAR, and scores 0 from ZERO_NEAR. A depth asks for
    a shared area, 1 from FULL_COVER of the smaller box on, and that at most FULL_HIDE of the box
    behind is covered, 0 from ZERO_HIDE; boxes alone leave open which one is in front.

    Raises ValueError for an unknown relation.
    """
    if relation not in RELATIONS:
        raise ValueError(f"unknown relation {relation!r}; known: {', '.join(RELATIONS)}")
    if relation in DEPTHS:
        shared = _shared_area(box_a, box_b)
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (box_a, box_b)]
        hidden = shared / max(areas[1] if relation == "in front of" else areas[0], 1e-9)
        covered = _clip(shared / max(FULL_COVER * min(areas), 1e-9))
        return covered * _clip((ZERO_HIDE - hidden) / (ZERO_HIDE - FULL_HIDE))
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


def _shared_area(a: Sequence[float], b: Sequence[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def sample_scene(rng: np.random.Generator, spec: CaptionSpec) -> Scene:
    """Place the objects of a caption so that it is true of the image.

    Open sizes are sampled; boxes are BORDER inside the image and MIN_GAP apart, except for a pair
    of which one hides a part of the other; a relation scores 1 under `relation_score`.

    Raises ValueError if there is no such scene: a depth between two objects of one color.
    """
    if spec.relation in DEPTHS and spec.objects[0].color == spec.objects[1].color:
        raise ValueError(f"{write_caption(spec)!r}: which one is in front would not show")
    for _ in range(_SCENES):
        objects = tuple(
            obj if obj.size else replace(obj, size=SIZES[int(rng.integers(len(SIZES)))])
            for obj in spec.objects
        )
        sides = np.array([_sample_sides(rng, obj.size or "") for obj in objects])
        boxes = _place(rng, objects, sides, spec.relation)
        if boxes is not None:
            drawn = tuple(SceneObject(o, Box(*map(int, b))) for o, b in zip(objects, boxes))
            return Scene(spec, drawn, spec.relation == "behind")
    raise ValueError(f"{write_caption(spec)!r}: no room for all objects")


def _sample_sides(rng: np.random.Generator, size: str) -> tuple[int, int]:
    """Width and height of an object, in thousandths."""
    side = rng.uniform(*SIZE_RANGES[size])
    aspect = MAX_ASPECT ** (rng.uniform(-1, 1) / 2)
    return round(side * aspect), round(side / aspect)


def _place(
    rng: np.random.Generator, objects: Sequence[ObjectSpec], sides: np.ndarray, relation: str | None
) -> np.ndarray | None:
    """Boxes int (N, 4) for objects of the given sides (N, 2); None if no room was found."""
    boxes = np.empty((0, 4), int)
    if relation is not None:
        pairs = np.stack([_random_boxes(rng, side) for side in sides[:2]], axis=1)
        pairs = pairs[_related(relation, pairs[:, 0], pairs[:, 1])]
        fits = (p for p in pairs if relation not in DEPTHS or _hides_well(objects, p, relation))
        first = next(fits, None)
        if first is None:
            return None
        boxes = first
    for side in sides[len(boxes) :]:
        room = _random_boxes(rng, side)
        apart = _gaps(room[:, None], boxes[None]).max(axis=-1) >= MIN_GAP
        room = room[apart.all(axis=1)]
        if not len(room):
            return None
        boxes = np.concatenate([boxes, room[:1]])
    return boxes


def _random_boxes(rng: np.random.Generator, side: np.ndarray) -> np.ndarray:
    """Boxes of one size anywhere in the image, int (_TRIES, 4)."""
    corner = rng.integers(BORDER, SCALE - BORDER - side + 1, (_TRIES, 2))
    return np.concatenate([corner, corner + side], axis=1)


def _gaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance of boxes (..., 4) along x and y, (..., 2); negative where they overlap."""
    return np.maximum(b[..., :2] - a[..., 2:], a[..., :2] - b[..., 2:])


def _related(relation: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Which boxes a (N, 4) are `relation` boxes b, as far as boxes tell; bool (N,)."""
    gaps = _gaps(a, b)
    if relation in DEPTHS:
        # Too large where one box is within the other along an axis; `_hides_well` is exact.
        shared = np.clip(-gaps, 0, None).prod(axis=1)
        back = b if relation == "in front of" else a
        share = shared / (back[:, 2:] - back[:, :2]).prod(axis=1)
        return (share >= HIDDEN[0]) & (share <= _MAX_COVERED)
    axis = 1 if relation in ("above", "below") else 0
    offset = (b[:, :2] + b[:, 2:] - a[:, :2] - a[:, 2:]) / 2
    along, across = offset[:, axis], np.abs(offset[:, 1 - axis])
    if relation in ("right of", "below"):
        along = -along
    elif relation == "next to":
        along = np.abs(along)
    true = (along > 0) & (gaps[:, axis] >= MIN_GAP) & (across <= SCENE_TILT * along)
    return true & (gaps[:, 0] <= NEXT_TO_MAX_GAP) if relation == "next to" else true


def _hides_well(objects: Sequence[ObjectSpec], pair: np.ndarray, relation: str) -> bool:
    """Whether the front one of two overlapping objects hides a part within HIDDEN of the other,
    which still shows all of its edges, in one piece."""
    drawn = []
    for obj, box in zip(objects, pair):
        x1, y1, x2, y2 = box * (IMAGE_SIZE / SCALE)
        drawn.append(drawn_mask(obj.shape, x1, y1, x2, y2, IMAGE_SIZE))
    front, back = drawn if relation == "in front of" else drawn[::-1]
    visible = back & ~front
    share = 1 - np.count_nonzero(visible) / np.count_nonzero(back)
    if not HIDDEN[0] <= share <= HIDDEN[1]:
        return False
    extent = _extent(back)
    if (_extent(visible) != extent).any():  # quick, and true of most
        return False
    part = label_parts(visible)
    return part.max() == 1 and bool((_extent(part > 0) == extent).all())


def _extent(mask: np.ndarray) -> np.ndarray:
    """First and last column and row of a mask, int (4,)."""
    return np.concatenate([np.flatnonzero(mask.any(axis=k))[[0, -1]] for k in (0, 1)])
