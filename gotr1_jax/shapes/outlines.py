"""The shapes as polygons, how much of each pixel they cover, and the parts of a mask."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

_SUPERSAMPLE = 8
_ARC_STEPS = 64
_INNER_RADIUS = 0.5  # of a star, whose outer radius is 1
# A moon is a disc of radius 1 without a disc of this radius whose centre is so far to the right.
_BITE_RADIUS, _BITE_SHIFT = 0.75, 0.6
# Parts of a mask hold such a square, and squares of one part touch.
_CORE = np.ones((5, 5), bool)
# Pixels by which these are grown: enough for the tips of a star or a moon, too little for a long
# noise tail.
_REGROW = 14


def coverage(
    shape: str, x1: float, y1: float, x2: float, y2: float, size: int
) -> tuple[int, int, np.ndarray]:
    """Coverage in [0, 1] of each pixel by a shape that fills the box (x1, y1, x2, y2) in pixels.

    Returns:
      left, top of the patch in the image of size × size pixels, and the patch, float32 (h, w).

    Raises ValueError for an unknown shape.
    """
    left, top = max(math.floor(x1), 0), max(math.floor(y1), 0)
    right, bottom = min(math.ceil(x2), size), min(math.ceil(y2), size)
    outline = shape_outline(shape)
    corner, sides = np.array([x1 - left, y1 - top]), np.array([x2 - x1, y2 - y1])
    # Pillow's coordinates name the centres of pixels.
    points = (corner + outline * sides) * _SUPERSAMPLE - 0.5
    fine = Image.new("L", ((right - left) * _SUPERSAMPLE, (bottom - top) * _SUPERSAMPLE), 0)
    ImageDraw.Draw(fine).polygon([(float(x), float(y)) for x, y in points], fill=255)
    return left, top, np.asarray(fine.reduce(_SUPERSAMPLE), np.float32) / 255.0


def drawn_mask(shape: str, x1: float, y1: float, x2: float, y2: float, size: int) -> np.ndarray:
    """About the half-covered pixels of a shape in a box in pixels; bool (size, size). Quick."""
    points = np.array([x1, y1]) + shape_outline(shape) * np.array([x2 - x1, y2 - y1]) - 0.5
    image = Image.new("1", (size, size), 0)
    ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in points], fill=1)
    return np.asarray(image, bool)


@lru_cache(maxsize=8192)
def shape_mask(shape: str, width: int, height: int) -> np.ndarray:
    """Coverage of a shape that fills a box of whole pixels exactly; float32 (height, width).

    Read-only, since it is shared. Raises ValueError for an unknown shape.
    """
    mask = coverage(shape, 0, 0, width, height, max(width, height))[2]
    mask.flags.writeable = False
    return mask


@lru_cache(maxsize=16)
def shape_outline(shape: str) -> np.ndarray:
    """The polygon of a shape, stretched to the unit square; float64 (N, 2) of (x, y).

    Raises ValueError for an unknown shape.
    """
    turn = 2 * np.pi * np.arange(_ARC_STEPS) / _ARC_STEPS
    if shape == "circle":
        points = np.stack([np.cos(turn), np.sin(turn)], -1)
    elif shape == "square":
        points = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    elif shape == "triangle":
        points = np.array([[0.5, 0.0], [1, 1], [0, 1]])
    elif shape == "star":
        angle = np.pi * np.arange(10) / 5
        radius = np.where(np.arange(10) % 2, _INNER_RADIUS, 1.0)
        points = np.stack([radius * np.sin(angle), -radius * np.cos(angle)], -1)
    elif shape == "heart":
        x = 16 * np.sin(turn) ** 3
        y = sum(a * np.cos(k * turn) for k, a in enumerate((-13, 5, 2, 1), start=1))
        points = np.stack([x, y], -1)
    elif shape == "moon":
        points = _moon()
    else:
        raise ValueError(f"unknown shape {shape!r}")
    low, high = points.min(0), points.max(0)
    return (points - low) / (high - low)


def _moon() -> np.ndarray:
    """A crescent that is open to the right; float64 (N, 2)."""
    # The two circles meet at x = horn, above and below the middle.
    horn = (1 - _BITE_RADIUS**2 + _BITE_SHIFT**2) / (2 * _BITE_SHIFT)
    outer = np.arccos(horn)
    inner = np.arccos((horn - _BITE_SHIFT) / _BITE_RADIUS)
    there = np.linspace(outer, 2 * np.pi - outer, _ARC_STEPS)
    back = np.linspace(2 * np.pi - inner, inner, _ARC_STEPS)
    disc = np.stack([np.cos(there), np.sin(there)], -1)
    bite = np.stack([_BITE_SHIFT + _BITE_RADIUS * np.cos(back), _BITE_RADIUS * np.sin(back)], -1)
    return np.concatenate([disc, bite])


def label_parts(mask: np.ndarray) -> np.ndarray:
    """The solid parts of a mask, bool (h, w): int32 (h, w), 0 where there is none, else 1, 2, ...

    A part has a core of 5×5 pixels; two that are joined by a thinner bridge are two.
    """
    result = np.zeros(mask.shape, np.int32)
    inside = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
    if not inside[0].size:
        return result
    # Only where the mask is: the filters cost as much as their pixels.
    within = tuple(slice(at[0], at[-1] + 1) for at in inside)
    mask = mask[within]
    labels, number = ndimage.label(ndimage.binary_opening(mask, _CORE))
    for _ in range(_REGROW if number else 0):
        grown = np.where(mask, ndimage.maximum_filter(labels, size=3, mode="constant"), 0)
        grown = np.where(labels > 0, labels, grown)
        if (grown == labels).all():
            break
        labels = grown
    result[within] = labels
    return result
