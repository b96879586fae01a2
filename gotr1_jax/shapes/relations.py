"""How well two boxes stand in a named relation: one geometric definition for world and judges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gotr1_jax.shapes.vocabulary import (
    FULL_GAP,
    FULL_NEAR,
    FULL_TILT,
    RELATIONS,
    ZERO_NEAR,
    ZERO_TILT,
)


def relation_score(relation: str, box_a: Sequence[float], box_b: Sequence[float]) -> float:
    """Degree in [0, 1] to which `a` is `relation` `b`.

    Boxes are (x1, y1, x2, y2) in fractions 0..1 of the image, origin top left. A side relation
    is the product of two parts: separation (1 once the boxes are apart along the axis, falling
    linearly to 0 where the centres are level) and direction (1 while the centres' offset across
    the axis is at most FULL_TILT of that along it, 0 from ZERO_TILT). "next to" means beside, on
    either side: its separation may also not exceed FULL_NEAR, and is worth 0 from ZERO_NEAR.

    Raises ValueError for an unknown relation.
    """
    return float(relation_scores(relation, np.asarray(box_a, float), np.asarray(box_b, float)))


def relation_scores(relation: str, boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """`relation_score` over broadcast arrays of boxes (..., 4); returns float64 (...)."""
    if relation not in RELATIONS:
        raise ValueError(f"unknown relation {relation!r}; known: {', '.join(RELATIONS)}")
    if relation in ("right of", "below"):
        boxes_a, boxes_b = boxes_b, boxes_a
    axis = 1 if relation in ("above", "below") else 0
    half_a = (boxes_a[..., 2 + axis] - boxes_a[..., axis]) / 2
    half_b = (boxes_b[..., 2 + axis] - boxes_b[..., axis]) / 2
    offset = (boxes_b[..., :2] + boxes_b[..., 2:] - boxes_a[..., :2] - boxes_a[..., 2:]) / 2
    along, across = offset[..., axis], np.abs(offset[..., 1 - axis])
    if relation == "next to":
        along = np.abs(along)
    needed = half_a + half_b + FULL_GAP
    separation = np.clip(along / np.maximum(needed, 1e-6), 0.0, 1.0)
    tilt = across / np.maximum(along, 1e-6)
    score = separation * np.clip((ZERO_TILT - tilt) / (ZERO_TILT - FULL_TILT), 0.0, 1.0)
    if relation == "next to":
        gap = along - half_a - half_b
        score = score * np.clip((ZERO_NEAR - gap) / (ZERO_NEAR - FULL_NEAR), 0.0, 1.0)
    return score
