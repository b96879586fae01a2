"""Finding the shapes world's objects in an image, from its pixels alone.

Each pixel is a mixture of the background and one color. Its direction from the background in RGB
gives the color, even on an anti-aliased or blurred edge; its distance along that direction gives
the coverage, and half coverage is the edge. The mask of a component is compared with the
renderer's mask of each shape, stretched to the component's box.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image
from scipy import ndimage

from gotr1_jax.plan import Box, box_from_pixels
from gotr1_jax.shapes.render import shape_mask
from gotr1_jax.shapes.scenes import PixelBox
from gotr1_jax.shapes.vocabulary import BACKGROUND, COLORS, IMAGE_SIZE, SHAPES, SIZE_PIXELS, SIZES

_COLOR_NAMES = tuple(COLORS)
_OTHER = len(_COLOR_NAMES) + 1  # foreground of no known color
MIN_AREA = 40  # pixels; the smallest true object, a small triangle, has about 98
MAX_FOUND = 16
# Cosine to the direction of a color below which a pixel is of no known color: 19 degrees. Two
# colors are at least 35 apart, and grey is 20 from green.
_MIN_COSINE = 0.945
_MIN_OTHER = 110.0  # distance from the background (RGB) at which such a pixel is foreground
_CORE = np.ones((3, 3), bool)
_FAINT = 0.12  # coverage at which the tip of a triangle shows: a quarter when drawn
# Pixels by which eroded cores are grown: enough for the tip of a triangle, too little for a long
# noise tail.
_REGROW = 4
# Extents in pixels at which the fit is 0, 1, 1 and 0, linear between.
_EXTENTS = (7.0, 11.0, 30.0, 40.0)


@dataclass(frozen=True)
class DetectedObject:
    """One object found in an image.

    Attributes:
        color: a color of the world, or None for any other foreground.
        shape: the shape whose mask fits best.
        size: "small" or "large", by the extent.
        fit: in [0, 1], how well it fits that shape at a size of this world; 1 for anything the
            renderer draws.
        box: (x1, y1, x2, y2) in pixels of the 64 px image, half open.
    """

    color: str | None
    shape: str
    size: str
    fit: float
    box: PixelBox

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


def _grow(labels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Grow labelled cores by up to _REGROW pixels within the mask."""
    for _ in range(_REGROW):
        grown = ndimage.maximum_filter(labels, size=3, mode="constant")
        labels = np.where(labels > 0, labels, np.where(mask, grown, 0))
    return labels


@lru_cache(maxsize=4096)
def _template(shape: str, width: int, height: int) -> np.ndarray:
    return shape_mask(shape, width, height) >= 0.5


def _linear(value: float, zero: float, full: float) -> float:
    """0 at `zero`, 1 at `full`, linear between, clipped to [0, 1]."""
    return min(1.0, max(0.0, (value - zero) / (full - zero)))


def _measure(
    mask: np.ndarray, faint: np.ndarray, x1: int, y1: int, color: str | None
) -> DetectedObject:
    """The detected object of one component.

    Args:
        mask: bool (h, w), the component cropped to its box.
        faint: bool (w,), faint pixels of the same color in the row above the box.
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
    fit = _linear(overlap, 0.6, 0.85)
    fit *= _linear(min(width, full_height) / max(width, full_height), 0.5, 0.8)
    fit *= _linear(extent, *_EXTENTS[:2]) * _linear(-extent, -_EXTENTS[3], -_EXTENTS[2])
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
        image: uint8 (H, W, 3) RGB of any size; it is resized to 64×64.

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
        labels, number = ndimage.label(ndimage.binary_erosion(mask, _CORE))
        if number == 0:
            continue
        labels = _grow(labels, mask)
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
