"""The sketch of a plan, which the term spa shows to the judge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from gotr1_jax.plan import Box, Plan, draw_overlay

_SAME = 8  # thousandths: boxes whose edges differ by no more hide each other
_INSET = 12  # thousandths by which the later one is drawn smaller on each side


def draw_canvas(plan: Plan, side: int, aspect: float = 1.0) -> np.ndarray:
    """The plan's boxes on white, each with its object's name at its corner.

    Names do not overlap, stay inside the canvas and are drawn at its own resolution: 15 px high
    at the default 448. Of boxes that coincide each is drawn a little inside the one before, so
    that all outlines are visible.

    Args:
        plan: its objects with a readable box are drawn, at their cleaned boxes.
        side: pixels of the longer side.
        aspect: width over height of the image that the plan is for.

    Returns:
        uint8 (H, W, 3).
    """
    width, height = (side, round(side / aspect)) if aspect >= 1 else (round(side * aspect), side)
    sheet = Image.new("RGB", (max(1, width), max(1, height)), "white")
    return np.asarray(draw_overlay(sheet, _separate(plan.boxes), scale=1))


def _separate(boxes: Sequence[tuple[str, Box]]) -> list[tuple[str, Box]]:
    separate: list[tuple[str, Box]] = []
    cleaned = [box.clean() for _, box in boxes]
    for i, ((name, _), box) in enumerate(zip(boxes, cleaned)):
        inset = _INSET * sum(_same(box, other) for other in cleaned[:i])
        inner = Box(box.x1 + inset, box.y1 + inset, box.x2 - inset, box.y2 - inset)
        separate.append((name, inner if inner.is_valid else box))
    return separate


def _same(a: Box, b: Box) -> bool:
    edges = ((a.x1, b.x1), (a.y1, b.y1), (a.x2, b.x2), (a.y2, b.y2))
    return all(abs(p - q) <= _SAME for p, q in edges)
