"""A box of a plan moved by hand: to any thousandth, a little larger or smaller."""

from __future__ import annotations

import numpy as np

from gotr1_jax.plan import Box, Plan, replace_box
from gotr1_jax.plan.boxes import LAST
from gotr1_jax.shapes.vocabulary import BORDER, MIN_GAP

# Factors of both sides of a moved box.
SCALES = (0.9, 1.1)
_TRIES = 2000


def move_box(rng: np.random.Generator, plan: Plan) -> Plan | None:
    """The plan with one box, drawn uniformly, at a new place and of a new size; else unchanged.

    The place is uniform over all thousandths that leave BORDER to the edges of the image and
    MIN_GAP to every other box, as in scenes, the factor of the size over SCALES; box, place and
    factor are drawn again until they fit. None where the plan has no valid box, or no room for any.
    """
    boxes = [item.box for item in plan.objects]
    valid = [i for i, box in enumerate(boxes) if box is not None and box.is_valid]
    for _ in range(_TRIES if valid else 0):
        index = valid[int(rng.integers(len(valid)))]
        old = boxes[index]
        assert old is not None
        moved = _place(rng, old)
        others = [box for i, box in enumerate(boxes) if i != index and box is not None]
        if moved is not None and all(_is_apart(moved, other) for other in others):
            return replace_box(plan, index, moved)
    return None


def _place(rng: np.random.Generator, box: Box) -> Box | None:
    """A box of about this size anywhere in the image; None if it is too large for the borders."""
    factor = rng.uniform(*SCALES)
    sides = [max(1, round(factor * side)) for side in (box.x2 - box.x1, box.y2 - box.y1)]
    room = [LAST - 2 * BORDER - side for side in sides]
    if min(room) < 0:
        return None
    x, y = (BORDER + int(rng.integers(free + 1)) for free in room)
    return Box(x, y, x + sides[0], y + sides[1])


def _is_apart(a: Box, b: Box) -> bool:
    return max(a.x1 - b.x2, b.x1 - a.x2, a.y1 - b.y2, b.y1 - a.y2) >= MIN_GAP
