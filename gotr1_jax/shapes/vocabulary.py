"""Words, colors and measures of the shapes world; every number of its geometry is here.

Boxes are (x1, y1, x2, y2), origin top left, in thousandths of the image, as plans write them: any
whole thousandth may occur. Images are drawn at IMAGE_SIZE pixels, anti-aliased.
"""

from __future__ import annotations

IMAGE_SIZE = 128

# Near the corners of the RGB cube: any two differ by 147 or more, and each from the background by
# 230 or more, which leaves room for the blur of a lossy tokenizer.
BACKGROUND: tuple[int, int, int] = (240, 240, 240)
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 25, 30),
    "green": (20, 160, 40),
    "blue": (25, 50, 225),
    "yellow": (250, 215, 0),
    "purple": (185, 20, 200),
    "cyan": (0, 195, 225),
}
# Shading: a soft highlight at this place of the box, in fractions of it, fades towards the
# background by at most this much. It falls to nothing at this distance, in box sides.
HIGHLIGHT_AT = (0.35, 0.3)
HIGHLIGHT = 0.22
HIGHLIGHT_REACH = 0.6

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "heart", "moon")
PLURALS: dict[str, str] = {shape: f"{shape}s" for shape in SHAPES}

# Ranges of the geometric mean of width and height, in thousandths; sizes between are ambiguous.
SIZES: tuple[str, ...] = ("small", "medium", "large")
SIZE_RANGES: dict[str, tuple[int, int]] = {
    "small": (210, 240),
    "medium": (295, 325),
    "large": (380, 415),
}
# Longest over shortest side of a box.
MAX_ASPECT = 1.12

SIDES: tuple[str, ...] = ("left of", "right of", "above", "below")
DEPTHS: tuple[str, ...] = ("in front of", "behind")
RELATIONS: tuple[str, ...] = (*SIDES, "next to", *DEPTHS)
OPPOSITES: dict[str, str] = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "in front of": "behind",
    "behind": "in front of",
}

NUMBER_WORDS: dict[int, str] = {2: "two", 3: "three", 4: "four"}
MAX_OBJECTS = 4

# How scenes are laid out, in thousandths.
BORDER = 15
MIN_GAP = 45
NEXT_TO_MAX_GAP = 110
# Scenes keep |across| <= SCENE_TILT * along between the centres of two related objects.
SCENE_TILT = 0.45
# Share of an object behind another one that is hidden; all four of its edges show.
HIDDEN = (0.13, 0.4)

# How a relation is scored, in fractions of the image. These are looser than the layout above,
# so that a box that is off by two pixels still scores 1.
FULL_GAP = 0.03
FULL_TILT, ZERO_TILT = 0.6, 1.5
FULL_NEAR, ZERO_NEAR = 0.16, 0.42
# How depth is scored: the shared area of two boxes as a fraction of the smaller one (below
# FULL_COVER nothing may be hidden) and of the one behind (above FULL_HIDE little of it may show).
FULL_COVER = 0.12
FULL_HIDE, ZERO_HIDE = 0.75, 1.0

# (color, shape) pairs that no training caption names.
HELDOUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    {("purple", "triangle"), ("cyan", "star"), ("yellow", "moon")}
)
HELDOUT_PERCENT = 15
