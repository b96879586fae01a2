"""Pictures of plans: boxes with readable labels drawn over an image."""

from __future__ import annotations

import colorsys
import re
import unicodedata
from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw, ImageFont

from gotr1_jax.plan.boxes import Box, box_to_pixels
from gotr1_jax.plan.grammar import BOX_END, BOX_START, OBJ_END, OBJ_START
from gotr1_jax.plan.matching import match_objects

Color = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]

MIN_SIDE = 384
MAX_LABEL = 32
_MARKERS = re.compile("|".join(map(re.escape, (OBJ_START, OBJ_END, BOX_START, BOX_END))))
_ACCENTS = range(0x300, 0x370)
_HALO: Color = (20, 20, 20)
# Bright and far apart; later colors step round the hues by the golden ratio.
_PALETTE: tuple[Color, ...] = (
    (255, 64, 64),
    (64, 160, 255),
    (80, 220, 80),
    (255, 200, 0),
    (240, 90, 255),
    (0, 225, 225),
    (255, 140, 40),
    (175, 140, 255),
    (190, 255, 60),
    (255, 150, 190),
)


def _color(index: int) -> Color:
    if index < len(_PALETTE):
        return _PALETTE[index]
    hue = (index * 0.61803398875) % 1.0
    r, g, b = colorsys.hsv_to_rgb(hue, 0.65 if index % 2 else 0.9, 1.0)
    return round(255 * r), round(255 * g), round(255 * b)


def clean_label(name: str) -> str:
    """A name as it is drawn: printable ASCII, at most MAX_LABEL characters.

    Accents are dropped, a run of other letters (the built-in font has none) becomes "?";
    plan markers, control and direction characters go.
    """
    name = _MARKERS.sub(" ", name)
    kept = (" " if unicodedata.category(c)[0] in "CZ" else c for c in name)
    letters = (c for c in unicodedata.normalize("NFKD", "".join(kept)) if ord(c) not in _ACCENTS)
    label = " ".join(re.sub(r"[^ -~]+", "?", "".join(letters)).split())
    return label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 3] + "..."


def _fit_scale(width: int, height: int) -> int:
    """The smallest whole scale at which the longer side has at least MIN_SIDE pixels."""
    return max(1, -(-MIN_SIDE // max(width, height)))


def _rectangle(box: Box, width: int, height: int) -> Rectangle:
    """Corners to draw, inside the picture; an empty box becomes a visible dot or bar."""
    x1, y1, x2, y2 = box_to_pixels(box.clean(), width, height)
    x1, y1 = min(x1, width - 7), min(y1, height - 7)
    return x1, y1, max(x2 - 1, x1 + 6), max(y2 - 1, y1 + 6)


def _bars(rect: Rectangle, width: int, dash: float | None) -> Iterator[Rectangle]:
    """Filled bars along the inside of the outline of `rect`, whole or in dashes of `dash`."""
    x1, y1, x2, y2 = rect
    for horizontal, begin, stop in ((True, x1, x2), (False, y1, y2)):
        at = begin
        while at < stop:
            to = stop if dash is None else min(at + dash, stop)
            if horizontal:
                yield from ((at, y1, to, y1 + width - 1), (at, y2 - width + 1, to, y2))
            else:
                yield from ((x1, at, x1 + width - 1, to), (x2 - width + 1, at, x2, to))
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


def _overlap(a: Rectangle, b: Rectangle) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _place_label(
    rect: Rectangle, size: tuple[float, float], canvas: tuple[int, int], taken: list[Rectangle]
) -> Rectangle:
    """Where a label of `size` goes: at a corner of its box, off the other labels if it can be."""
    x1, y1, x2, y2 = rect
    w, h = size
    # Above the top-left corner, then inside it, then the other corners, then down the side.
    spots = [(x1, y1 - h), (x1, y1), (x2 - w, y1 - h), (x1, y2), (x2 - w, y2), (x2 - w, y2 - h)]
    spots += [(x1, y1 + i * h) for i in range(1, 1 + int(max(0.0, canvas[1] - y1) // h))]
    best: tuple[float, Rectangle] | None = None
    for x, y in spots:
        x = min(max(x, 0.0), max(0.0, canvas[0] - w))
        y = min(max(y, 0.0), max(0.0, canvas[1] - h))
        place = (x, y, x + w, y + h)
        hidden = sum(_overlap(place, other) for other in taken)
        if hidden == 0:
            return place
        if best is None or hidden < best[0]:
            best = (hidden, place)
    assert best is not None
    return best[1]


def _draw_label(
    draw: ImageDraw.ImageDraw,
    text: str,
    place: Rectangle,
    color: Color,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    filled: bool,
) -> None:
    x1, y1, x2, y2 = place
    dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 140
    paper = color if filled else _HALO
    ink = ((255, 255, 255) if dark else (0, 0, 0)) if filled else color
    draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=paper, outline=_HALO)
    draw.text(((x1 + x2) / 2, (y1 + y2) / 2), text, fill=ink, font=font, anchor="mm")


def draw_overlay(
    image: Image.Image,
    planned: Sequence[tuple[str, Box]],
    located: Sequence[tuple[str, Box]] = (),
    scale: int | None = None,
) -> Image.Image:
    """Draw planned boxes (solid, named) and located boxes (dashed) over a picture.

    A located box has the color of the planned box it matches by name; only one that matches
    none carries its own label, colored on dark. Boxes are drawn at their cleaned values.

    Args:
        image: the picture; left unchanged.
        planned: (name, box) of the plan's objects.
        located: (name, box) of the objects found in the picture.
        scale: whole factor by which the picture is enlarged (pixels repeated); None takes the
            smallest that makes the longer side at least 384.

    Returns:
        A new RGB picture of `scale` times the size.
    """
    factor = _fit_scale(*image.size) if scale is None else max(1, scale)
    canvas = image.convert("RGB").resize(
        (image.width * factor, image.height * factor), Image.Resampling.NEAREST
    )
    draw = ImageDraw.Draw(canvas)
    side = max(canvas.size)
    line = max(2, round(side / 192))
    font = ImageFont.load_default(size=max(12, round(side / 29)))

    colors = [_color(i) for i in range(len(planned))]
    partner = {j: i for i, j, _ in match_objects(planned, located) if j is not None}
    labels: list[tuple[str, Rectangle, Color, bool]] = []
    for (name, box), color in zip(planned, colors):
        rect = _rectangle(box, *canvas.size)
        _draw_box(draw, rect, color, line, dashed=False)
        labels.append((clean_label(name), rect, color, True))
    spare = len(planned)
    for j, (name, box) in enumerate(located):
        rect = _rectangle(box, *canvas.size)
        if j in partner:
            color = colors[partner[j]]
        else:
            color, spare = _color(spare), spare + 1
            labels.append((clean_label(name), rect, color, False))
        _draw_box(draw, rect, color, line, dashed=True)

    # Labels last, so that no line crosses a name; their places avoid one another.
    taken: list[Rectangle] = []
    for text, rect, color, filled in labels:
        if not text:
            continue
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        ascent = draw.textbbox((0, 0), "Ag", font=font)
        height = max(bottom - top, ascent[3] - ascent[1]) + 6
        place = _place_label(rect, (right - left + 8, height), canvas.size, taken)
        taken.append(place)
        _draw_label(draw, text, place, color, font, filled)
    return canvas
