"""Images as Qwen2.5-VL and Qwen3-VL read them: sizes, pixels, patches, and the order of windows.

An image's side is a multiple of 28 pixels (Qwen3-VL: 32): `merge_size` patches of `patch_size`.
Four patches (2 by 2) are one unit, which the text model sees as one token. Patches are listed unit
by unit, units row by row: the shape (rows of units, columns of units, 2, 2) of the released
preprocessing (arXiv 2502.13923). Its two temporal frames are equal for a still image; they are
stored once here and `models.qwen_vision` adds the two halves of the kernel instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from gotr1_jax.errors import InputError

MAX_ASPECT = 200  # of an image's sides


@dataclass(frozen=True)
class Geometry:
    """Sizes that preprocessing and the vision tower must agree on; pixels but for `merge_size`.

    Attributes:
      patch_size: side of a patch.
      merge_size: patches a side of a unit.
      temporal_patch_size: frames of a patch; all equal in a still image.
      window_size: side of an attention window, a whole number of units; 0: there are no windows.
    """

    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    window_size: int = 112

    def __post_init__(self) -> None:
        if min(self.patch_size, self.merge_size, self.temporal_patch_size) < 1:
            raise ValueError(f"{self}: sizes are 1 or more")
        if self.window_size < 0 or self.window_size % self.unit_size:
            raise ValueError(
                f"window_size {self.window_size} is not a multiple of a unit's "
                f"{self.unit_size} pixels"
            )

    @property
    def unit_size(self) -> int:
        """Pixels a side of a unit."""
        return self.patch_size * self.merge_size

    @property
    def unit_patches(self) -> int:
        """Patches of a unit."""
        return self.merge_size**2

    @property
    def window_units(self) -> int:
        """Units a side of a window."""
        return self.window_size // self.unit_size

    @property
    def window_patches(self) -> int:
        """Patches of a whole window."""
        return self.window_units**2 * self.unit_patches


@dataclass(frozen=True)
class Preprocessing:
    """A checkpoint's preprocessor_config.json.

    Attributes:
      geometry: of patches and units.
      min_pixels, max_pixels: bounds of height times width after resizing.
      mean, std: of red, green, blue after scaling to [0, 1].
    """

    geometry: Geometry
    min_pixels: int
    max_pixels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(f"pixels from {self.min_pixels} to {self.max_pixels} are not a range")


@dataclass(frozen=True)
class QwenImage:
    """An image ready for the vision tower.

    Attributes:
      patches_NE: float32, normalised; E = 3 · patch_size², channel by channel, row by row.
      grid: units (rows, columns); N = rows · columns · unit_patches.
      size: (height, width) in pixels after resizing: what the model's coordinates refer to.
    """

    patches_NE: np.ndarray
    grid: tuple[int, int]
    size: tuple[int, int]

    @property
    def units(self) -> int:
        """Tokens of the text model that the image takes."""
        return self.grid[0] * self.grid[1]


def resized_size(height: int, width: int, settings: Preprocessing) -> tuple[int, int]:
    """(height, width) in pixels that an image is resized to.

    Each side is the multiple of a unit nearest to it (halves to even); outside the bounds on
    pixels both sides are scaled by the same factor, then rounded down (up) to multiples. Raises
    InputError for an empty image and for sides whose ratio is above 200.
    """
    if min(height, width) < 1:
        raise InputError(f"an image of {width} by {height} pixels is empty")
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise InputError(
            f"an image of {width} by {height} pixels is too long: its sides may differ by a "
            f"factor of {MAX_ASPECT}; crop it"
        )
    unit = settings.geometry.unit_size
    tall, wide = (round(side / unit) * unit for side in (height, width))
    if tall * wide > settings.max_pixels:
        factor = math.sqrt(height * width / settings.max_pixels)
        tall, wide = (max(unit, math.floor(s / factor / unit) * unit) for s in (height, width))
    elif tall * wide < settings.min_pixels:
        factor = math.sqrt(settings.min_pixels / (height * width))
        tall, wide = (math.ceil(s * factor / unit) * unit for s in (height, width))
    return tall, wide


def image_grid(height: int, width: int, settings: Preprocessing) -> tuple[int, int]:
    """Units (rows, columns) of an image of this size in pixels. InputError as `resized_size`."""
    tall, wide = resized_size(height, width, settings)
    return tall // settings.geometry.unit_size, wide // settings.geometry.unit_size


def read_image(image: Image.Image, settings: Preprocessing) -> QwenImage:
    """The patches of an image: over white where it is transparent, resized (bicubic), normalised.

    Raises InputError as `resized_size` does.
    """
    tall, wide = resized_size(image.height, image.width, settings)
    resized = _opaque(image).resize((wide, tall), Image.Resampling.BICUBIC)
    # In float64 before the cast, as the reference does: equal to the last bit.
    pixels = (np.asarray(resized).astype(np.float64) * (1 / 255)).astype(np.float32)
    mean, std = (np.asarray(values, np.float32) for values in (settings.mean, settings.std))
    geometry = settings.geometry
    patches = split_patches((pixels - mean) / std, geometry)
    unit = geometry.unit_size
    return QwenImage(patches, (tall // unit, wide // unit), (tall, wide))


def split_patches(pixels_HWC: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Pixels (H,W,C), sides whole units -> patches (N, C · patch_size²), unit by unit."""
    height, width, channels = pixels_HWC.shape
    m, p = geometry.merge_size, geometry.patch_size
    rows, columns = height // (m * p), width // (m * p)
    split = pixels_HWC.reshape(rows, m, p, columns, m, p, channels)
    return np.ascontiguousarray(
        split.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, channels * p * p), np.float32
    )


def patch_positions(grid: tuple[int, int], geometry: Geometry) -> np.ndarray:
    """(row, column) of every patch in the image, in the order of patches: int32 (N, 2)."""
    m = geometry.merge_size
    row, column = np.indices((grid[0] * m, grid[1] * m), np.int32)
    both = np.stack([row, column], -1).reshape(grid[0], m, grid[1], m, 2)
    return both.transpose(0, 2, 1, 3, 4).reshape(-1, 2)


def window_order(grid: tuple[int, int], geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """How the units of an image fall into its windows; those of `geometry` have a size.

    Windows are laid from the top left, row by row; those at the right and bottom edge hold
    fewer units. Returns (order_U, window_U), int32: the units window by window, each window row
    by row, and the number of the window that each of these units is in (ascending).
    """
    w = geometry.window_units
    row, column = np.indices(grid, np.int32)
    window = (row // w) * -(-grid[1] // w) + column // w
    order = np.argsort(window.reshape(-1), kind="stable").astype(np.int32)
    return order, window.reshape(-1)[order]


def count_windows(grid: tuple[int, int], geometry: Geometry) -> int:
    """Windows of an image, 0 where it is not divided into any."""
    w = geometry.window_units
    return -(-grid[0] // w) * -(-grid[1] // w) if w else 0


def _opaque(image: Image.Image) -> Image.Image:
    """The image in RGB, over white."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")
