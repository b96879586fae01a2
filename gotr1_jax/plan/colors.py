"""Distinguishable colors, and black or white text on them."""

from __future__ import annotations

import colorsys
from functools import cache

import numpy as np

Color = tuple[int, int, int]

MAX_DISTINCT = 64
"""Number of colors before they repeat."""

# The first ones are chosen by hand: bright, in a familiar order.
_FIRST: tuple[Color, ...] = (
    (255, 64, 64),
    (64, 160, 255),
    (80, 220, 80),
    (255, 200, 0),
    (240, 90, 255),
    (0, 225, 225),
    (255, 140, 40),
    (175, 140, 255),
)
_MIN_LIGHTNESS, _MIN_CHROMA = 55.0, 35.0
# sRGB (linear) to XYZ divided by the white point D65, IEC 61966-2-1.
_TO_XYZ = np.array([[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0178, 0.1095, 0.8727]])


def _linear(colors: np.ndarray) -> np.ndarray:
    values = colors / 255.0
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def to_lab(colors: np.ndarray) -> np.ndarray:
    """CIELAB, float64 (N, 3), of sRGB colors (N, 3) in 0..255: distances match perception."""
    xyz = _linear(np.asarray(colors, np.float64)) @ _TO_XYZ.T
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


@cache
def _palette() -> tuple[Color, ...]:
    """The first colors, then greedily the candidate farthest from all chosen ones."""
    candidates = np.array(
        [
            [round(255 * c) for c in colorsys.hsv_to_rgb(h / 30, s, v)]
            for h in range(30)
            for s in (1.0, 0.7, 0.4)
            for v in (1.0, 0.8, 0.6)
        ]
    )
    lab = to_lab(candidates)
    # A dark line vanishes on its dark outline, a dull one on a gray image.
    clear = (lab[:, 0] >= _MIN_LIGHTNESS) & (np.hypot(lab[:, 1], lab[:, 2]) >= _MIN_CHROMA)
    candidates, lab = candidates[clear], lab[clear]
    chosen = list(_FIRST)
    nearest = np.full(len(lab), np.inf)
    for color in to_lab(np.array(chosen)):
        nearest = np.minimum(nearest, np.linalg.norm(lab - color, axis=-1))
    while len(chosen) < MAX_DISTINCT:
        best = int(nearest.argmax())
        r, g, b = candidates[best].tolist()
        chosen.append((r, g, b))
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[best], axis=-1))
    return tuple(chosen)


def distinct_color(index: int) -> Color:
    """Color of the object `index`; the first MAX_DISTINCT are all different."""
    return _palette()[index % MAX_DISTINCT]


def ink_on(color: Color) -> Color:
    """Black or white, whichever has the higher contrast on `color` (WCAG 2, relative luminance)."""
    luminance = float(_linear(np.array(color, np.float64)) @ _TO_XYZ[1])
    black = (luminance + 0.05) / 0.05
    white = 1.05 / (luminance + 0.05)
    return (0, 0, 0) if black >= white else (255, 255, 255)
