"""Boxes with readable labels drawn over an image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from gotr1_jax.errors import InputError
from gotr1_jax.plan.boxes import Box, box_to_pixels
from gotr1_jax.plan.colors import Color, distinct_color, ink_on
from gotr1_jax.plan.labels import Rectangle, clean_label, fit_label, place_label, touches
from gotr1_jax.plan.matching import match_objects

MIN_SIDE = 384
_HALO: Color = (20, 20, 20)
_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


@dataclass(frozen=True)
class _Item:
    """A box to draw; `label` is empty for none, `detected` false for a planned box."""

    rect: Rectangle
    color: Color
    label: str
    detected: bool


def _rectangle(box: Box, width: int, height: int) -> Rectangle:
    """Corners inside the image; an empty box becomes a visible dot or bar."""
    x1, y1, x2, y2 = box_to_pixels(box.clean(), width, height)
    x1, y1 = min(x1, width - 7), min(y1, height - 7)
    return x1, y1, max(x2 - 1, x1 + 6), max(y2 - 1, y1 + 6)


def _bars(rect: Rectangle, width: int, dash: float | None) -> Iterator[Rectangle]:
    """Filled bars along the inside of the outline of `rect`; `dash`: length of dashes in pixels."""
    x1, y1, x2, y2 = rect
    more = width - 1  # x1 + width - 1 can be rounded to less than x1
    for horizontal, begin, stop in ((True, x1, x2), (False, y1, y2)):
        at = begin
        while at < stop:
            to = stop if dash is None else min(at + dash, stop)
            if horizontal:
                yield from ((at, y1, to, y1 + more), (at, y2 - more, to, y2))
            else:
                yield from ((x1, at, x1 + more, to), (x2 - more, at, x2, to))
            at = to if dash is None else at + 1.8 * dash


def _draw_box(
    draw: ImageDraw.ImageDraw, rect: Rectangle, color: Color, width: int, dashed: bool
) -> None:
    bars = list(_bars(rect, width, 4.0 * width if dashed else None))
    # A dark halo keeps a colored line visible on a shape of the same color.
    for x1, y1, x2, y2 in bars:
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), fill=_HALO)
    for bar in bars:
        draw.rectangle(bar, fill=color)


def _size(draw: ImageDraw.ImageDraw, text: str, font: _Font) -> tuple[float, float]:
    """Width and height of a label with margins; at least the height of "Ag"."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    _, high, _, low = draw.textbbox((0, 0), "Ag", font=font)
    return right - left + 8, max(bottom - top, low - high) + 6


def _draw_lead(draw: ImageDraw.ImageDraw, item: _Item, place: Rectangle, line: int) -> None:
    """A line from a label to its box."""
    x, y = (place[0] + place[2]) / 2, (place[1] + place[3]) / 2
    x1, y1, x2, y2 = item.rect
    ends = (x, y, min(max(x, x1), x2), min(max(y, y1), y2))
    draw.line(ends, fill=_HALO, width=line + 2)
    draw.line(ends, fill=item.color, width=line)


def _draw_label(draw: ImageDraw.ImageDraw, item: _Item, place: Rectangle, font: _Font) -> None:
    x1, y1, x2, y2 = place
    paper = _HALO if item.detected else item.color
    ink = item.color if item.detected else ink_on(item.color)
    draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=paper, outline=_HALO)
    draw.text(((x1 + x2) / 2, (y1 + y2) / 2), item.label, fill=ink, font=font, anchor="mm")


def _draw_labels(
    draw: ImageDraw.ImageDraw, items: Sequence[_Item], canvas: tuple[int, int], font: _Font
) -> None:
    sizes = [_size(draw, item.label, font) for item in items]
    high = max((h for _, h in sizes), default=0.0)
    sides = [(i.rect, max(i.rect[2] - i.rect[0], i.rect[3] - i.rect[1])) for i in items]
    small = [rect for rect, side in sides if side < 3 * high]
    placed: list[tuple[_Item, Rectangle]] = []
    for item, size in zip(items, sizes, strict=True):
        if item.label:
            taken = [place for _, place in placed]
            placed.append((item, place_label(item.rect, size, canvas, taken, small)))
    for item, place in placed:
        if not touches(place, item.rect):
            _draw_lead(draw, item, place, max(1, round(max(canvas) / 384)))
    for item, place in placed:
        _draw_label(draw, item, place, font)


def _items(
    planned: Sequence[tuple[str, Box]],
    detected: Sequence[tuple[str, Box]],
    canvas: tuple[int, int],
    ascii_only: bool,
) -> list[_Item]:
    """All boxes, planned ones first; a detected box has the color of its planned match."""
    partner = {j: i for i, j, _ in match_objects(planned, detected) if j is not None}
    items = [
        _Item(_rectangle(box, *canvas), distinct_color(i), clean_label(name, i, ascii_only), False)
        for i, (name, box) in enumerate(planned)
    ]
    spare = len(planned)
    for j, (name, box) in enumerate(detected):
        label, number = "", partner.get(j)
        if number is None:
            label, number, spare = clean_label(name, spare, ascii_only), spare, spare + 1
        items.append(_Item(_rectangle(box, *canvas), distinct_color(number), label, True))
    return items


def _load_font(font: str | Path | None, size: int) -> _Font:
    if font is None:
        return ImageFont.load_default(size=size)
    try:
        return ImageFont.truetype(str(font), size)
    except OSError as error:
        raise InputError(f"the font {font} cannot be read: {error}") from error


def draw_overlay(
    image: Image.Image,
    planned: Sequence[tuple[str, Box]],
    detected: Sequence[tuple[str, Box]] = (),
    scale: int | None = None,
    font: str | Path | None = None,
) -> Image.Image:
    """Draw planned boxes (solid, named) and detected boxes (dashed) over an image.

    A detected box has the color of the planned box that it matches by name; only one without a
    match has its own label, colored on dark. Boxes are drawn at their cleaned values. Labels do
    not overlap if possible; one that does not fit at its box is connected to it by a line.

    Args:
        image: the image; left unchanged.
        planned: (name, box) of the plan's objects.
        detected: (name, box) of the objects found in the image.
        scale: whole factor of enlargement (pixels repeated); None takes the smallest that makes
            the longer side at least 384.
        font: TrueType or OpenType file for the labels. The built-in font has ASCII letters only:
            it labels a name in another script by the object's index, "#0" being the first.

    Returns:
        A new RGB image of `scale` times the size.

    Raises:
        InputError: the font cannot be read.

    >>> image = Image.new("RGB", (64, 64), "gray")
    >>> draw_overlay(image, [("cat", Box(100, 200, 500, 800))]).size
    (384, 384)
    """
    factor = -(-MIN_SIDE // max(image.size)) if scale is None else scale
    factor = max(1, factor)
    canvas = image.convert("RGB").resize(
        (image.width * factor, image.height * factor), Image.Resampling.NEAREST
    )
    draw = ImageDraw.Draw(canvas)
    side = max(canvas.size)
    label_font = _load_font(font, max(9, round(side / 29)))
    items = [
        replace(
            item,
            label=fit_label(item.label, lambda t: _size(draw, t, label_font)[0], canvas.width),
        )
        for item in _items(planned, detected, canvas.size, ascii_only=font is None)
    ]
    line = max(1 if side < 192 else 2, round(side / 192))
    for item in items:
        _draw_box(draw, item.rect, item.color, line, dashed=item.detected)
    # Labels last, so that no line crosses a name.
    _draw_labels(draw, items, canvas.size, label_font)
    return canvas
