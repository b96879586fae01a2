"""One image of samples before and after training, for a page about 1000 pixels wide."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gotr1_jax.plan import Box, box_to_pixels

# In pixels. A sample's image is enlarged by a whole factor to at least _SIDE, or reduced to _MOST.
_SIDE, _MOST = 128, 256
_COLUMNS = 4  # captions next to each other
_MARGIN, _GAP, _BETWEEN = 10, 6, 18
_CAPTION, _SMALL, _LINE = 15, 14, 19  # sizes of letters, height of a line
_MARK = 16
_PAPER, _INK, _PALE = (255, 255, 255), (30, 32, 36), (95, 100, 108)
_TRUE, _FALSE = (26, 138, 62), (205, 44, 44)
_DASH = 4
_FINE = 8  # enlargement while a mark is drawn


@dataclass(frozen=True)
class StripSample:
    """An image, uint8 (H, W, 3), the boxes of its plan, and whether its caption is true of it."""

    image: np.ndarray
    boxes: tuple[Box, ...]
    is_true: bool


@dataclass(frozen=True)
class StripPair:
    """The samples of one caption."""

    caption: str
    before: StripSample
    after: StripSample


def draw_strip(pairs: Sequence[StripPair], title: str, footer: str) -> Image.Image:
    """Caption, image before and image after of each pair, four pairs a row.

    Plan boxes are dashed; a mark under each image says whether its caption is true of it. The
    same pairs give the same pixels.
    """
    small, large = (ImageFont.load_default(size) for size in (_SMALL, _CAPTION))
    side = max(max(_shown(s.image).size) for pair in pairs for s in (pair.before, pair.after))
    wide = 2 * side + _GAP
    columns = min(_COLUMNS, len(pairs))
    captions = [list(_wrapped(pair.caption, large, wide)) for pair in pairs]
    width = max(2 * _MARGIN + columns * (wide + _BETWEEN) - _BETWEEN, 3 * _SIDE)
    heads, feet = (list(_wrapped(text, small, width - 2 * _MARGIN)) for text in (title, footer))
    rows = [range(i, min(i + columns, len(pairs))) for i in range(0, len(pairs), columns)]
    lines = [max(len(captions[i]) for i in row) for row in rows]
    heights = [n * _LINE + _GAP + side + _GAP + _MARK + _BETWEEN for n in lines]
    height = 2 * _MARGIN + _LINE * (len(heads) + len(feet)) + _GAP + sum(heights)
    page = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(page)
    y = _write(draw, (_MARGIN, _MARGIN), heads, small, _PALE) + _GAP
    for row, count, tall in zip(rows, lines, heights):
        for column, i in enumerate(row):
            x = _MARGIN + column * (wide + _BETWEEN)
            # Captions of fewer lines stand right above their images.
            top = y + (count - len(captions[i])) * _LINE
            below = _write(draw, (x, top), captions[i], large, _INK) + _GAP
            both = (("before", pairs[i].before), ("after", pairs[i].after))
            for k, (name, sample) in enumerate(both):
                left = x + k * (side + _GAP)
                page.paste(_with_boxes(sample), (left, below))
                at = (left, below + side + _GAP)
                page.paste(_mark(sample.is_true), at)
                draw.text((at[0] + _MARK + 5, at[1] - 1), name, fill=_INK, font=small)
        y += tall
    _write(draw, (_MARGIN, y), feet, small, _PALE)
    return page


_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def _wrapped(text: str, font: _Font, width: float) -> Iterator[str]:
    """The text in lines of at most `width` pixels; a longer word stands in a line of its own."""
    line = ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if line and font.getlength(longer) > width:
            yield line
            longer = word
        line = longer
    yield line


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], lines: Sequence[str], font: _Font,
    color: tuple[int, int, int],
) -> int:  # fmt: skip
    """Writes lines and returns the height of what follows."""
    x, y = at
    for line in lines:
        draw.text((x, y), line, fill=color, font=font)
        y += _LINE
    return y


def _shown(image: np.ndarray) -> Image.Image:
    """The image as it is shown."""
    shown = Image.fromarray(image)
    if max(shown.size) > _MOST:
        shown.thumbnail((_MOST, _MOST), Image.Resampling.LANCZOS)
    factor = max(1, math.ceil(_SIDE / max(shown.size)))
    size = (shown.width * factor, shown.height * factor)
    return shown.resize(size, Image.Resampling.NEAREST)


def _with_boxes(sample: StripSample) -> Image.Image:
    """The image with its plan's boxes: dashes, dark and light in turn, show on any ground."""
    shown = _shown(sample.image)
    draw = ImageDraw.Draw(shown)
    for box in sample.boxes:
        x1, y1, x2, y2 = (round(v) for v in box_to_pixels(box.clean(), *shown.size))
        right, low = max(x1, min(x2, shown.width) - 1), max(y1, min(y2, shown.height) - 1)
        outline = [(x, y1) for x in range(x1, right + 1)]
        outline += [(right, y) for y in range(y1 + 1, low + 1)]
        outline += [(x, low) for x in range(right - 1, x1 - 1, -1)]
        outline += [(x1, y) for y in range(low - 1, y1, -1)]
        for i, point in enumerate(outline):
            draw.point(point, fill=_INK if i // _DASH % 2 == 0 else _PAPER)
    return shown


def _mark(is_true: bool) -> Image.Image:
    """A green disc with a check, or a red one with a cross."""
    n = _MARK * _FINE
    fine = Image.new("RGB", (n, n), _PAPER)
    draw = ImageDraw.Draw(fine)
    draw.ellipse((0, 0, n - 1, n - 1), fill=_TRUE if is_true else _FALSE)
    check = [[(0.25, 0.53), (0.43, 0.71), (0.75, 0.33)]]
    cross = [[(0.3, 0.3), (0.7, 0.7)], [(0.3, 0.7), (0.7, 0.3)]]
    for line in check if is_true else cross:
        points = [(x * n, y * n) for x, y in line]
        draw.line(points, fill=_PAPER, width=n // 8, joint="curve")
    return fine.reduce(_FINE)
