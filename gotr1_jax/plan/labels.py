"""Labels of boxes: text that can be drawn, and placement."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from gotr1_jax.plan.grammar import MARKER

Rectangle = tuple[float, float, float, float]
"""Corners x1, y1, x2, y2 in pixels."""

MAX_LABEL = 32
_ACCENTS = range(0x300, 0x370)


def clean_label(name: str, index: int = 0, ascii_only: bool = True) -> str:
    """A name as it is drawn, at most MAX_LABEL characters.

    Plan markers, control and direction characters are removed. With `ascii_only` (the built-in
    font has no other letters) accents are dropped and a run of other letters becomes "?"; a name
    with nothing left becomes "#index".
    """
    name = MARKER.sub(" ", name[: 64 * MAX_LABEL])
    kept = (" " if unicodedata.category(c)[0] in "CZ" else c for c in name)
    label = "".join(kept)
    if ascii_only:
        plain = (c for c in unicodedata.normalize("NFKD", label) if ord(c) not in _ACCENTS)
        label = re.sub(r"[^ -~]+", "?", "".join(plain))
        if label.strip() and not label.strip(" ?"):
            label = f"#{index}"
    return shorten(" ".join(label.split()), MAX_LABEL)


def shorten(label: str, length: int) -> str:
    """At most `length` characters; the end of a longer label becomes dots."""
    if len(label) <= length:
        return label
    return label[: max(1, length - 3)].rstrip() + "..."[: max(0, length - 1)]


def fit_label(label: str, width: Callable[[str], float], limit: float) -> str:
    """The longest shortening of `label` with a `width` up to `limit`, at least one letter."""
    length = len(label)
    while length > 1 and width(shorten(label, length)) > limit:
        length -= 1
    return shorten(label, length)


def _overlaps(places_N4: np.ndarray, others: Sequence[Rectangle]) -> np.ndarray:
    """Summed overlap area (N,) of each place with the others."""
    others_M4 = np.asarray(others, np.float64).reshape(-1, 4)
    low = np.maximum(places_N4[:, None, :2], others_M4[None, :, :2])
    high = np.minimum(places_N4[:, None, 2:], others_M4[None, :, 2:])
    return np.clip(high - low, 0, None).prod(axis=-1).sum(axis=-1)


def touches(a: Rectangle, b: Rectangle) -> bool:
    """Whether two rectangles overlap or are at most one pixel apart."""
    return min(a[2], b[2]) + 1 >= max(a[0], b[0]) and min(a[3], b[3]) + 1 >= max(a[1], b[1])


def _spots(
    rect: Rectangle, size: tuple[float, float], canvas: tuple[int, int]
) -> list[tuple[float, float]]:
    """Top left corners to try: at the box's corners, along its sides, then all over the canvas."""
    x1, y1, x2, y2 = rect
    w, h = size
    spots = [(x1, y1 - h), (x1, y1), (x2 - w, y1 - h), (x1, y2), (x2 - w, y2), (x2 - w, y2 - h)]
    for i in range(int((y2 - y1) // h) + 1):
        spots += [(x, y1 + i * h) for x in (x1, x2 - w, x1 - w, x2)]
    for i in range(1, 1 + int(2 * (x2 - x1) // w)):
        spots += [(x1 + i * w / 2, y) for y in (y1 - h, y2, y1)]
    columns, rows = (int(2 * max(0.0, whole - own) // own) for whole, own in zip(canvas, size))
    return spots + [(i * w / 2, j * h / 2) for j in range(rows + 1) for i in range(columns + 1)]


def place_label(
    rect: Rectangle,
    size: tuple[float, float],
    canvas: tuple[int, int],
    taken: Sequence[Rectangle],
    small: Sequence[Rectangle] = (),
) -> Rectangle:
    """The position of a label of `size` (width, height) inside the canvas (width, height).

    At the box `rect` if it hides no other label (`taken`) and none of the `small` boxes there,
    else at the nearby position that hides least. Hiding a label costs most.
    """
    w, h = size
    corners = np.asarray(_spots(rect, size, canvas))
    corners = np.clip(corners, 0.0, np.maximum(0.0, np.subtract(canvas, size)))
    places = np.concatenate([corners, corners + size], axis=1)
    # Distance of the label from its box, in pixels.
    x1, y1, x2, y2 = rect
    gap = np.maximum(0, np.maximum(places[:, 0] - x2, x1 - places[:, 2]))
    gap = gap + np.maximum(0, np.maximum(places[:, 1] - y2, y1 - places[:, 3]))
    others = [other for other in small if other != rect]
    cost = 20 * _overlaps(places, taken) + _overlaps(places, others) + h * gap / 2
    x, y = places[cost.argmin(), :2].tolist()  # the first of equal ones
    return x, y, x + w, y + h
