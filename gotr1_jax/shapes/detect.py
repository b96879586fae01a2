"""Finding the shapes world's objects in an image, from its pixels alone.

Each pixel is the background moved some way towards a color. Its direction from the background
names the color, however far an anti-aliased or blurred edge has moved it; how far it has moved
is its coverage, and half coverage is the edge. The outline of a component, stretched to its
box, is compared with the renderer's own mask of each shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image
from scipy import ndimage

from gotr1_jax.plan import Box, box_from_pixels
from gotr1_jax.shapes.render import shape_mask
from gotr1_jax.shapes.vocabulary import BACKGROUND, COLORS, IMAGE_SIZE, SHAPES, SIZE_PIXELS, SIZES

_COLOR_NAMES = tuple(COLORS)
_OTHER = len(_COLOR_NAMES) + 1  # foreground of no known color
MIN_AREA = 40  # pixels; the smallest true object, a small triangle, has about 98
MAX_FOUND = 16
# Cosine to the direction of a color below which a pixel is of no known color: 19 degrees. Two
# colors are at least 35 apart, and grey is 20 from green.
_MIN_COSINE = 0.945
_MIN_OTHER = 110.0  # distance from the background (RGB) at which such a pixel is foreground
_FAINT = 0.12  # coverage at which the tip of a triangle shows: a quarter when drawn
# Growing the cores back: enough for the tip of a triangle, too little for a long noise tail.
_REGROW = 4
# Where the extent leaves the two sizes of the world: 0 credit, full credit, full, 0 (pixels).
_EXTENTS = (7.0, 11.0, 30.0, 40.0)


@dataclass(frozen=True)
class DetectedObject:
    """One object found in an image.

    Attributes:
        color: a color of the world, or None for anything else that is no background.
        shape: the shape whose mask fits best.
        size: "small" or "large", by the extent.
        fit: in [0, 1], how surely it is that shape at a size of this world; 1 for whatever
            the renderer draws.
        box: half-open pixels (x1, y1, x2, y2) of the 64 px image.
    """

    color: str | None
    shape: str
    size: str
    fit: float
    box: tuple[int, int, int, int]

    @property
    def kind(self) -> tuple[str, str] | None:
        """(color, shape), or None for a patch that is no object of the world."""
        return (self.color, self.shape) if self.color is not None and self.fit > 0 else None

    @property
    def name(self) -> str:
        """ "small red circle"; "red patch" or "patch" where there is no kind."""
        if self.kind is not None:
            return f"{self.size} {self.color} {self.shape}"
        return f"{self.color} patch" if self.color else "patch"

    @property
    def plan_box(self) -> Box:
        """The box in thousandths of the image."""
        return box_from_pixels(*self.box, IMAGE_SIZE, IMAGE_SIZE)


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Class (0 background, 1.. colors, last other) and faint class of every 5-bit RGB value.

    The faint table names the color of a pixel from the coverage _FAINT on. uint8 (32768,) each.
    """
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
    coverage = along[rows, best] / length[best]
    solid = np.where(known & (coverage >= 0.5), best + 1, 0)
    solid = np.where(~known & (distance >= _MIN_OTHER), _OTHER, solid)
    faint = np.where(known & (coverage >= _FAINT), best + 1, 0)
    return solid.astype(np.uint8), faint.astype(np.uint8)


def _shifted(mask: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """`mask` (H, W) moved by one pixel each way along an axis; zero comes in at the border."""
    back, forth = np.zeros_like(mask), np.zeros_like(mask)
    if axis == 0:
        back[:-1], forth[1:] = mask[1:], mask[:-1]
    else:
        back[:, :-1], forth[:, 1:] = mask[:, 1:], mask[:, :-1]
    return back, forth


def _erode(mask: np.ndarray) -> np.ndarray:
    """Binary erosion by a 3×3 square."""
    for axis in (0, 1):
        back, forth = _shifted(mask, axis)
        mask = mask & back & forth
    return mask


def _regrow(labels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Grow labelled cores by up to _REGROW pixels into the rest of their mask."""
    for _ in range(_REGROW):
        grown = labels
        for axis in (0, 1):
            back, forth = _shifted(grown, axis)
            grown = np.maximum(grown, np.maximum(back, forth))
        labels = np.where(labels > 0, labels, np.where(mask, grown, 0))
    return labels


@lru_cache(maxsize=4096)
def _template(shape: str, width: int, height: int) -> np.ndarray:
    return shape_mask(shape, width, height) >= 0.5


def _ramp(value: float, zero: float, full: float) -> float:
    return min(1.0, max(0.0, (value - zero) / (full - zero)))


def _measure(
    mask: np.ndarray, faint: np.ndarray, x1: int, y1: int, color: str | None
) -> DetectedObject:
    """Shape, size and box of one component.

    Args:
        mask: bool (h, w), the component cropped to its box.
        faint: bool (w,), the row above the box: faint pixels of the same color.
        x1, y1: corner of the crop in the image.
        color: its color, or None.
    """
    height, width = mask.shape
    candidates = []
    for shape in SHAPES:
        outline = mask
        if shape == "triangle" and faint.any():
            # Half coverage misses the tip of a triangle, which fills a row by a quarter.
            outline = np.concatenate([np.zeros((1, width), bool), mask])
        other = _template(shape, width, outline.shape[0])
        overlap = np.count_nonzero(outline & other) / np.count_nonzero(outline | other)
        candidates.append((overlap, shape, outline.shape[0]))
    overlap, shape, full_height = max(candidates)
    extent = (width + full_height) / 2
    size = SIZES[0] if extent < sum(SIZE_PIXELS.values()) / 2 else SIZES[1]
    fit = _ramp(overlap, 0.6, 0.85)
    fit *= _ramp(min(width, full_height) / max(width, full_height), 0.5, 0.8)
    fit *= _ramp(extent, *_EXTENTS[:2]) * _ramp(-extent, -_EXTENTS[3], -_EXTENTS[2])
    top = y1 + height - full_height
    return DetectedObject(color, shape, size, fit, (x1, top, x1 + width, y1 + height))


def _to_world_size(image: np.ndarray) -> np.ndarray:
    """The image at 64×64 px, its pixels averaged; uint8 (64, 64, 3)."""
    if image.shape[:2] == (IMAGE_SIZE, IMAGE_SIZE):
        return image
    small = Image.fromarray(image).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)
    return np.asarray(small)


def find_objects(image: np.ndarray) -> list[DetectedObject]:
    """The objects in an image, largest box first, at most MAX_FOUND.

    Args:
        image: uint8 (H, W, 3) RGB of any size; it is judged at 64×64.

    A component counts when it has at least MIN_AREA pixels and a solid 3×3 core; two that are
    joined by a bridge of one or two pixels are split.
    """
    pixels = _to_world_size(image) >> 3
    index = (pixels[..., 0].astype(np.int32) << 10) | (pixels[..., 1].astype(np.int32) << 5)
    index |= pixels[..., 2]
    solid_table, faint_table = _tables()
    classes, faint = solid_table[index], faint_table[index]
    counts = np.bincount(classes.ravel(), minlength=_OTHER + 1)
    found: list[DetectedObject] = []
    for value in range(1, _OTHER + 1):
        if counts[value] < MIN_AREA:
            continue
        mask = classes == value
        labels, number = ndimage.label(_erode(mask))
        if number == 0:
            continue
        labels = _regrow(labels, mask)
        for label, place in enumerate(ndimage.find_objects(labels), start=1):
            crop = labels[place] == label
            if np.count_nonzero(crop) < MIN_AREA:
                continue
            rows, columns = place
            y1, x1 = rows.start, columns.start
            above = faint[y1 - 1, columns] == value if y1 > 0 else np.zeros(crop.shape[1], bool)
            color = _COLOR_NAMES[value - 1] if value < _OTHER else None
            found.append(_measure(crop, above, x1, y1, color))
    found.sort(key=lambda f: (f.box[0] - f.box[2]) * (f.box[3] - f.box[1]))
    return found[:MAX_FOUND]
