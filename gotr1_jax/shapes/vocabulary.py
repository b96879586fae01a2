"""Words, colors and measures of the shapes world; every number of its geometry is here.

Pixel coordinates are (x, y), origin top left, boxes half open. Positions and sizes are even, so
a box written in per-mille of the image uses one of only 31 numbers per coordinate.
"""

from __future__ import annotations

IMAGE_SIZE = 64

# Near the corners of the RGB cube: any two differ by about 170 or more, and so does each from
# the background, which leaves room for the blur of a lossy tokenizer.
BACKGROUND: tuple[int, int, int] = (240, 240, 240)
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 25, 30),
    "green": (20, 160, 40),
    "blue": (25, 50, 225),
    "yellow": (250, 215, 0),
    "purple": (185, 20, 200),
    "cyan": (0, 195, 225),
}

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross")
PLURALS: dict[str, str] = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "cross": "crosses",
}

SIZES: tuple[str, ...] = ("small", "large")
SIZE_PIXELS: dict[str, int] = {"small": 14, "large": 24}

RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below", "next to")
OPPOSITES: dict[str, str] = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}

NUMBER_WORDS: dict[int, str] = {2: "two", 3: "three"}
MAX_OBJECTS = 3

# How scenes are laid out, in pixels of the 64 px image.
GRID_STEP = 2
BORDER = 2
MIN_GAP = 4
NEXT_TO_MAX_GAP = 8
# Scenes keep |across| <= SCENE_TILT * along between the centres of two related objects.
SCENE_TILT = 0.45

# How a relation is scored, in fractions of the image. These are looser than the layout above,
# so that a box that is off by one pixel still scores 1.
FULL_GAP = 0.03
FULL_TILT, ZERO_TILT = 0.6, 1.5
FULL_NEAR, ZERO_NEAR = 0.16, 0.42

# (color, shape) pairs that no training caption names.
HELDOUT_PAIRS: frozenset[tuple[str, str]] = frozenset({("purple", "triangle"), ("cyan", "cross")})
HELDOUT_PERCENT = 15
