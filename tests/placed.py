"""Scenes of the shapes world with objects at given places."""

from __future__ import annotations

from gotr1_jax.plan import Box
from gotr1_jax.shapes.captions import CaptionSpec, ObjectSpec
from gotr1_jax.shapes.scenes import Scene, SceneObject
from gotr1_jax.shapes.vocabulary import SIZE_RANGES

# Sides of square objects, in thousandths: the middle of each size.
SIDES = {size: sum(ends) // 2 for size, ends in SIZE_RANGES.items()}


def place(*placed: tuple[str, tuple[int, int]], hidden_first: bool = False) -> Scene:
    """Named objects ("large red circle") at top-left corners in thousandths."""
    objects = []
    for name, (x, y) in placed:
        size, color, shape = name.split()
        box = Box(x, y, x + SIDES[size], y + SIDES[size])
        objects.append(SceneObject(ObjectSpec(shape, color, size), box))
    return Scene(CaptionSpec(tuple(o.spec for o in objects)), tuple(objects), hidden_first)
