"""The sketch of a plan that the judge of layout looks at."""

from __future__ import annotations

import numpy as np
from PIL import Image

from gotr1_jax.plan import Plan, draw_overlay


def draw_canvas(plan: Plan, side: int, aspect: float = 1.0) -> np.ndarray:
    """The plan's boxes on white, each with its object's name at its corner.

    Names keep off one another and inside the canvas, and are drawn at the canvas's own
    resolution: 15 px high at the default 448.

    Args:
        plan: its objects with a readable box are drawn, at their cleaned boxes.
        side: pixels of the longer side.
        aspect: width over height of the picture that the plan is for.

    Returns:
        uint8 (H, W, 3).
    """
    width, height = (side, round(side / aspect)) if aspect >= 1 else (round(side * aspect), side)
    sheet = Image.new("RGB", (max(1, width), max(1, height)), "white")
    return np.asarray(draw_overlay(sheet, plan.boxes, scale=1))
