"""Finding the shapes world's objects in an image, from its pixels alone.

Each pixel is a mixture of the background and one color. Its direction from the background in RGB
gives the color, even on an anti-aliased or blurred edge; its distance along that direction gives
the coverage, and half coverage is the edge. The mask of a component is compared with the
renderer's mask of each shape, stretched to the component's box; pixels that another object covers
are left out of the comparison, so that a partly hidden object is known by what shows of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations

import numpy as np
from PIL import Image
from scipy import ndimage

from gotr1_jax.plan import Box, box_from_pixels
from gotr1_jax.shapes.outlines import label_parts, shape_mask
from gotr1_jax.shapes.vocabulary import (
    BACKGROUND,
    COLORS,
    FULL_COVER,
    IMAGE_SIZE,
    SHAPES,
    SIZE_RANGES,
    SIZES,
)

_COLOR_NAMES = tuple(COLORS)
_OTHER = len(_COLOR_NAMES) + 1  # foreground of no known color
MIN_AREA = 120  # pixels; the smallest true object, a small star, has about 300
MAX_FOUND = 16
# Cosine to the direction of a color below which a pixel is of no known color: 19 degrees. Two
# colors are at least 31 apart, and grey is 20 from green.
_MIN_COSINE = 0.945
_MIN_OTHER = 110.0  # distance from the background (RGB) at which such a pixel is foreground
# Extents in thousandths at which the fit is 0, 1, 1 and 0, linear between.
_EXTENTS = (120.0, 180.0, 460.0, 600.0)
# Overlap with the best shape at which the fit is 0 and 1.
_OVERLAPS = (0.6, 0.85)
# Share by which more of the shared area shows the front object's color than the other one's.
_FRONT = 0.4
# Two components may fit by this much better together before one is taken to hide the other.
_GAIN_OF_HIDING = 0.03
# An edge between two colors may show a third one: so wide a rim is left out as well.
_RIM = np.ones((5, 5), bool)


@dataclass(frozen=True)
class DetectedObject:
    """One object found in an image.

    Attributes:
        color: a color of the world, or None for any other foreground.
        shape: the shape whose mask fits best.
        size: "small", "medium" or "large", by the extent.
        fit: in [0, 1], how well it fits that shape at a size of this world; 1 for anything the
            renderer draws.
        box: its box in thousandths, hidden parts between its visible edges included.
        in_front: for each object found in the image, in order, the degree in [0, 1] to which this
            one covers a part of it.
    """

    color: str | None
    shape: str
    size: str
    fit: float
    box: Box
    in_front: tuple[float, ...] = ()

    @property
    def kind(self) -> tuple[str, str] | None:
        """(color, shape); None for a patch that is no object of the world."""
        return (self.color, self.shape) if self.color is not None and self.fit > 0 else None

    @property
    def name(self) -> str:
        """ "small red circle"; "red patch" or "patch" where there is no kind."""
        if self.kind is not None:
            return f"{self.size} {self.color} {self.shape}"
        return f"{self.color} patch" if self.color else "patch"


@dataclass(frozen=True)
class _Component:
    """Connected pixels of one class: its value, rows and columns of its box, and its mask there."""

    value: int
    rows: slice
    columns: slice
    mask: np.ndarray


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Of every 5-bit RGB value: its class (0 background, 1.. colors, last other), uint8 (32768,),
    and its coverage by each color, float32 (colors, 32768); 0 for other directions."""
    level = np.arange(32) * 8.0 + 4.0
    rgb = np.stack(np.meshgrid(level, level, level, indexing="ij"), axis=-1).reshape(-1, 3)
    moved = rgb - np.asarray(BACKGROUND, float)
    distance = np.linalg.norm(moved, axis=1)
    towards = np.asarray(list(COLORS.values()), float) - np.asarray(BACKGROUND, float)
    length = np.linalg.norm(towards, axis=1)
    along = moved @ towards.T / length  # (N, colors), RGB units
    cosine = along / np.maximum(distance, 1e-6)[:, None]
    best = cosine.argmax(axis=1)
    rows = np.arange(len(rgb))
    known = cosine[rows, best] >= _MIN_COSINE
    share = along[rows, best] / length[best]
    solid = np.where(known & (share >= 0.5), best + 1, 0)
    solid = np.where(~known & (distance >= _MIN_OTHER), _OTHER, solid)
    coverage = np.zeros((len(_COLOR_NAMES), len(rgb)), np.float32)
    coverage[best, rows] = np.where(known, np.clip(share, 0, 1), 0)
    return solid.astype(np.uint8), coverage


def find_objects(image: np.ndarray) -> list[DetectedObject]:
    """The objects in an image, largest box first, at most MAX_FOUND.

    Args:
        image: uint8 (H, W, 3) RGB of any size; it is resized to IMAGE_SIZE.

    A component counts when it has at least MIN_AREA pixels and a solid 5×5 core; two that are
    joined by a thinner bridge are split.
    """
    pixels = _to_world_size(image) >> 3
    index = (pixels[..., 0].astype(np.int32) << 10) | (pixels[..., 1].astype(np.int32) << 5)
    index |= pixels[..., 2]
    solid, coverage = _tables()
    classes = solid[index]
    parts: list[_Component] = []
    counts = np.bincount(classes.ravel(), minlength=_OTHER + 1)
    for value in range(1, _OTHER + 1):
        if counts[value] >= MIN_AREA:
            parts += _components(classes == value, value)
    parts = sorted(parts, key=lambda part: -part.mask.size)[:MAX_FOUND]
    hidden = _hidden_pixels(parts)
    found = [
        _measure(part, hides, None if part.value == _OTHER else coverage[part.value - 1][index])
        for part, hides in zip(parts, hidden)
    ]
    order = sorted(range(len(found)), key=lambda i: -found[i].box.area)
    return [
        replace(
            found[i],
            in_front=tuple(_covers(found[i], parts[i], found[j], parts[j], classes) for j in order),
        )
        for i in order
    ]


def _to_world_size(image: np.ndarray) -> np.ndarray:
    """The image at IMAGE_SIZE, its pixels averaged; uint8 (IMAGE_SIZE, IMAGE_SIZE, 3)."""
    if image.shape[:2] == (IMAGE_SIZE, IMAGE_SIZE):
        return image
    small = Image.fromarray(image).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)
    return np.asarray(small)


def _components(mask: np.ndarray, value: int) -> list[_Component]:
    """The connected parts of the pixels of one class that count."""
    labels = label_parts(mask)
    found = []
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        part = labels[rows, columns] == label
        if np.count_nonzero(part) >= MIN_AREA:
            found.append(_Component(value, rows, columns, part))
    return found


def _linear(value: float, zero: float, full: float) -> float:
    """0 at `zero`, 1 at `full`, linear between, clipped to [0, 1]."""
    return min(1.0, max(0.0, (value - zero) / (full - zero)))


def _overlaps(mask: np.ndarray, hidden: np.ndarray | None) -> list[float]:
    """IoU of a component's mask with the mask of each of SHAPES, without the pixels `hidden`."""
    height, width = mask.shape
    result = []
    for shape in SHAPES:
        template = _half_mask(shape, width, height)
        either = mask | template
        if hidden is not None:
            either &= ~hidden
        result.append(float(np.count_nonzero(mask & template) / np.count_nonzero(either)))
    return result


def _hidden_pixels(parts: Sequence[_Component]) -> list[np.ndarray | None]:
    """Of each component the pixels of its box that another one in front of it covers; None: none.

    Of two components whose boxes meet, the one is in front as which both fit their shapes best:
    what is in front shows its whole shape.
    """
    hidden: list[np.ndarray | None] = [None] * len(parts)
    whole = [max(_overlaps(part.mask, None)) for part in parts]
    for i, j in combinations(range(len(parts)), 2):
        if parts[i].value == parts[j].value:
            continue
        # (how much better both fit together if `back` is behind `front`, back, its hidden pixels)
        options = [
            (max(_overlaps(parts[back].mask, pixels)) - whole[back], back, pixels)
            for back, front in ((i, j), (j, i))
            if (pixels := _pixels_of(parts[front], parts[back])) is not None
        ]
        gain, back, pixels = max(options, key=lambda option: option[0], default=(0.0, 0, None))
        if pixels is None or gain <= _GAIN_OF_HIDING:
            continue
        before = hidden[back]
        hidden[back] = pixels if before is None else before | pixels
    return hidden


def _pixels_of(other: _Component, part: _Component) -> np.ndarray | None:
    """The pixels of another component in the box of a component, bool (h, w); None: none."""
    canvas = np.zeros((IMAGE_SIZE, IMAGE_SIZE), bool)
    canvas[other.rows, other.columns] = other.mask
    inside = ndimage.binary_dilation(canvas, _RIM)[part.rows, part.columns] & ~part.mask
    return inside if np.count_nonzero(canvas[part.rows, part.columns]) else None


def _measure(
    part: _Component, hidden: np.ndarray | None, soft: np.ndarray | None
) -> DetectedObject:
    """The detected object of a component.

    Args:
        hidden: pixels of its box that another one covers, bool (h, w); None: none.
        soft: coverage of every pixel by the component's color; None if it has no known one.
    """
    height, width = part.mask.shape
    overlap, shape = max(zip(_overlaps(part.mask, hidden), SHAPES))
    edges = _edges(part, soft)
    insets = _insets(shape, width, height)
    x1, y1, x2, y2 = (e + i for e, i in zip(edges, insets))
    extent = (max(x2 - x1, 1) * max(y2 - y1, 1)) ** 0.5 * 1000 / IMAGE_SIZE
    fit = _linear(overlap, *_OVERLAPS)
    fit *= _linear(min(width, height) / max(width, height), 0.5, 0.8)
    fit *= _linear(extent, *_EXTENTS[:2]) * _linear(-extent, -_EXTENTS[3], -_EXTENTS[2])
    color = _COLOR_NAMES[part.value - 1] if part.value < _OTHER else None
    box = box_from_pixels(x1, y1, x2, y2, IMAGE_SIZE, IMAGE_SIZE)
    return DetectedObject(color, shape, _size_of(extent), float(fit), box)


def _size_of(extent: float) -> str:
    """The size whose range is nearest to an extent in thousandths."""
    return min(SIZES, key=lambda size: abs(sum(SIZE_RANGES[size]) / 2 - extent))


def _edges(part: _Component, soft: np.ndarray | None) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of a component in pixels, between which some pixel is at least half covered;
    from the coverage, linear between the centres of pixels."""
    rows, columns = part.rows, part.columns
    if soft is None:
        return columns.start, rows.start, columns.stop, rows.stop
    inside = np.where(part.mask, soft[rows, columns], 0)
    result = []
    for axis, (start, stop) in enumerate(((columns.start, columns.stop), (rows.start, rows.stop))):
        across = rows if axis == 0 else columns
        for at, step in ((start, -1), (stop - 1, 1)):
            edge_line = inside.max(axis=axis)[0 if step < 0 else -1]
            beyond = at + step
            line = np.zeros(1)
            if 0 <= beyond < soft.shape[1 - axis]:
                line = soft[across, beyond] if axis == 0 else soft[beyond, across]
            outer = min(float(line.max()), 0.499)
            # From the centre of the last pixel inside to that of the first one outside.
            part_way = (float(edge_line) - 0.5) / (float(edge_line) - outer)
            result.append(at + 0.5 + step * part_way)
    x1, x2, y1, y2 = result
    return x1, y1, x2, y2


@lru_cache(maxsize=8192)
def _half_mask(shape: str, width: int, height: int) -> np.ndarray:
    return shape_mask(shape, width, height) >= 0.5


@lru_cache(maxsize=8192)
def _insets(shape: str, width: int, height: int) -> tuple[float, float, float, float]:
    """What to add to the edges that `_edges` finds of a drawn shape to get its box, in pixels.

    The tips of a star, a triangle, a heart and a moon fade before their box ends.
    """
    grown = [width, height]
    for _ in range(3):  # the size of which the half-covered part has this width and height
        mask = shape_mask(shape, *grown)
        seen = [np.flatnonzero((mask >= 0.5).any(axis=axis)) for axis in (0, 1)]
        grown = [g + side - (s[-1] - s[0] + 1) for g, side, s in zip(grown, (width, height), seen)]
    mask = np.pad(shape_mask(shape, *grown), 1)
    seen = [np.flatnonzero((mask >= 0.5).any(axis=axis)) for axis in (0, 1)]
    rows, columns = (slice(int(s[0]), int(s[-1]) + 1) for s in (seen[1], seen[0]))
    part = _Component(1, rows, columns, mask[rows, columns] >= 0.5)
    x1, y1, x2, y2 = _edges(part, mask)
    return 1 - x1, 1 - y1, grown[0] + 1 - x2, grown[1] + 1 - y2


def _covers(
    a: DetectedObject, part_a: _Component, b: DetectedObject, part_b: _Component,
    classes: np.ndarray,
) -> float:  # fmt: skip
    """Degree in [0, 1] to which object `a` is in front of `b`, of another color.

    1 if their boxes share FULL_COVER of the smaller one, and where both shapes would be, the color
    of `a` shows on clearly more pixels than that of `b`.
    """
    if part_a.value == part_b.value:
        return 0.0
    rows = slice(max(part_a.rows.start, part_b.rows.start), min(part_a.rows.stop, part_b.rows.stop))
    columns = slice(
        max(part_a.columns.start, part_b.columns.start),
        min(part_a.columns.stop, part_b.columns.stop),
    )
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return 0.0
    both = np.ones((rows.stop - rows.start, columns.stop - columns.start), bool)
    for obj, part in ((a, part_a), (b, part_b)):
        template = _half_mask(obj.shape, part.mask.shape[1], part.mask.shape[0])
        top, left = rows.start - part.rows.start, columns.start - part.columns.start
        both &= template[top : top + both.shape[0], left : left + both.shape[1]]
    shared = np.count_nonzero(both)
    if shared == 0:
        return 0.0
    there = classes[rows, columns][both]
    ahead = np.count_nonzero(there == part_a.value) - np.count_nonzero(there == part_b.value)
    area = min(part_a.mask.size, part_b.mask.size)
    cover = _linear(both.size / area, 0.0, FULL_COVER)
    return float(cover * _linear(ahead / shared, 0.0, _FRONT))
