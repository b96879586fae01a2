"""Scenes of the shapes world: objects placed so that a caption is true, plans, and examples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from gotr1_jax.plan import box_from_pixels, format_object
from gotr1_jax.shapes.captions import (
    CaptionSpec,
    ObjectSpec,
    contradict,
    is_heldout,
    sample_caption,
    write_caption,
)
from gotr1_jax.shapes.relations import relation_score
from gotr1_jax.shapes.vocabulary import (
    BORDER,
    GRID_STEP,
    IMAGE_SIZE,
    MIN_GAP,
    NEXT_TO_MAX_GAP,
    SCENE_TILT,
    SIZE_PIXELS,
    SIZES,
)

__all__ = [
    "Example",
    "PixelBox",
    "Scene",
    "SceneObject",
    "make_plan",
    "relation_score",
    "sample_example",
    "sample_scene",
]

PixelBox = tuple[int, int, int, int]


@dataclass(frozen=True)
class SceneObject:
    """A drawn object: its size is given; box (x1, y1, x2, y2) in pixels, half open, exact."""

    spec: ObjectSpec
    box: PixelBox


@dataclass(frozen=True)
class Scene:
    """What is drawn for a caption; objects stand in the caption's order."""

    caption: CaptionSpec
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True)
class Example:
    """A training sample: plan and image (`render(scene)`) agree with each other always, and
    with the caption when `faithful`."""

    caption: str
    plan: str
    scene: Scene
    faithful: bool


def sample_scene(rng: np.random.Generator, spec: CaptionSpec) -> Scene:
    """Place the objects of a caption so that it is true of the image.

    Open sizes are drawn; boxes lie BORDER pixels inside the image and MIN_GAP apart; a
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


def make_plan(scene: Scene) -> str:
    """The plan of what is drawn: every object with its size and its true box, in caption order,
    joined by the caption's relation and by "and"."""
    pieces = [
        format_object(obj.spec.name, box_from_pixels(*obj.box, IMAGE_SIZE, IMAGE_SIZE))
        for obj in scene.objects
    ]
    if scene.caption.relation is not None:
        pieces[:2] = [f"{pieces[0]} {scene.caption.relation} {pieces[1]}"]
    return " and ".join(pieces)


def sample_example(
    rng: np.random.Generator, split: str, unfaithful_fraction: float = 0.0
) -> Example:
    """Draw caption, plan and scene; in `unfaithful_fraction` of them plan and image contradict
    the caption (sides swapped, or one color wrong).

    What is drawn then stays in the caption's split, too: no held-out composition reaches
    training through a mistake.
    """
    while True:
        spec = sample_caption(rng, split)
        faithful = bool(rng.random() >= unfaithful_fraction)
        drawn = spec
        if not faithful:
            side = spec.relation is not None and rng.random() < 0.5
            drawn = contradict(rng, spec, "side" if side else "color")
        if split != "train" or not is_heldout(drawn):
            break
    scene = Scene(spec, sample_scene(rng, drawn).objects)
    return Example(write_caption(spec), make_plan(scene), scene, faithful)


def _place(
    rng: np.random.Generator, sides: list[int], relation: str | None
) -> list[PixelBox] | None:
    """Boxes for squares of the given sides, or None when the last ones found no room."""
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
        swapped = {"right of": "left of", "below": "above"}[relation]
        return _pair_corners(swapped, side_b, side_a)[:, [2, 3, 0, 1]]
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
