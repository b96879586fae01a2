"""Packing images of different sizes into arrays of one shape, and their places in the text.

Everything that depends on an image's size is computed here with numpy, so that the model is
compiled for static shapes. Letters: R rows of patches, N patches of a row, E values of a patch,
W windows of a row, J slots of a window, U units of a row (N / unit_patches), P images, B rows
of text, S their length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gotr1_jax.images.qwen import Geometry, QwenImage, count_windows, patch_positions, window_order

Grid = tuple[int, int]


@dataclass(frozen=True)
class RowShape:
    """What one row of patches has room for: patches (whole units) and windows."""

    patches: int
    windows: int


@dataclass(frozen=True)
class PatchBatch:
    """The vision tower's input; one or more images a row, padded on the right.

    The patches of an image are in the order of its windows, row-major where it has none.

    Attributes:
      patches_RNE: float32 normalised pixels; zeros in padding.
      positions_RN2: int32 (row, column) of each patch in its image.
      sizes_RN2: int32 rows and columns of patches of each patch's image; 1 in padding.
      images_RN: int32 number of the patch's image in its row, from 1; 0 is padding.
      windows_RWJ: int32 index into N of the patch in each slot of each window; -1 is no patch.
      slots_RN: int32 slot of each patch, counted through the row's windows (window · J + slot).
      units_RU: int32 index into U of each unit in reading order, image after image.
    """

    patches_RNE: np.ndarray
    positions_RN2: np.ndarray
    sizes_RN2: np.ndarray
    images_RN: np.ndarray
    windows_RWJ: np.ndarray
    slots_RN: np.ndarray
    units_RU: np.ndarray


@dataclass(frozen=True)
class PackedImages:
    """A batch and where its images are.

    Attributes:
      batch: for the device.
      starts_P: int32 index of each image's first unit in the tower's output, rows joined (R·U).
      grids: units (rows, columns) of each image.
    """

    batch: PatchBatch
    starts_P: np.ndarray
    grids: tuple[Grid, ...]


def row_shape(grids: Sequence[Grid], geometry: Geometry) -> RowShape:
    """The smallest shape whose rows hold any one of these images."""
    return RowShape(
        max(h * w for h, w in grids) * geometry.unit_patches,
        max(count_windows(grid, geometry) for grid in grids),
    )


def assign_rows(grids: Sequence[Grid], geometry: Geometry, shape: RowShape) -> list[int]:
    """The row of each image: the first that still has room for it, else a new one.

    Raises ValueError for an image larger than a row.
    """
    left: list[list[int]] = []
    rows = []
    for grid in grids:
        need = (grid[0] * grid[1] * geometry.unit_patches, count_windows(grid, geometry))
        if need[0] > shape.patches or need[1] > shape.windows:
            raise ValueError(f"{need[0]} patches in {need[1]} windows do not fit into {shape}")
        fits = (r for r, room in enumerate(left) if room[0] >= need[0] and room[1] >= need[1])
        row = next(fits, len(left))
        if row == len(left):
            left.append([shape.patches, shape.windows])
        left[row][0] -= need[0]
        left[row][1] -= need[1]
        rows.append(row)
    return rows


def pack_images(
    images: Sequence[QwenImage], geometry: Geometry, shape: RowShape, rows: int
) -> PackedImages:
    """Images in `rows` rows of `shape`, as `assign_rows` places them; empty rows are padding.

    Raises ValueError for an image larger than a row and for too few rows.
    """
    per_unit, N = geometry.unit_patches, shape.patches
    if N % per_unit:
        raise ValueError(f"a row of {N} patches is not a whole number of units of {per_unit}")
    grids = tuple(image.grid for image in images)
    assigned = assign_rows(grids, geometry, shape)
    if max(assigned, default=0) >= rows:
        raise ValueError(f"{len(grids)} images need {max(assigned) + 1} rows, not {rows}")
    values = 3 * geometry.patch_size**2
    batch = PatchBatch(
        patches_RNE=np.zeros((rows, N, values), np.float32),
        positions_RN2=np.zeros((rows, N, 2), np.int32),
        sizes_RN2=np.ones((rows, N, 2), np.int32),
        images_RN=np.zeros((rows, N), np.int32),
        windows_RWJ=np.full((rows, shape.windows, geometry.window_patches), -1, np.int32),
        slots_RN=np.zeros((rows, N), np.int32),
        units_RU=np.tile(np.arange(N // per_unit, dtype=np.int32), (rows, 1)),
    )
    used = np.zeros((rows, 3), np.int32)  # images, patches, windows
    starts = np.zeros(len(grids), np.int32)
    for i, (image, row) in enumerate(zip(images, assigned)):
        starts[i] = (row * N + used[row, 1]) // per_unit
        _write(batch, image, geometry, row, *used[row])
        used[row] += (1, image.units * per_unit, count_windows(image.grid, geometry))
    return PackedImages(batch, starts, grids)


def _write(
    batch: PatchBatch, image: QwenImage, geometry: Geometry, row: int,
    number: int, first_patch: int, first_window: int,
) -> None:  # fmt: skip
    """Puts one image behind the `number` ones that the row holds already."""
    per_unit, J = geometry.unit_patches, geometry.window_patches
    U = image.units
    order_U, window_U = np.arange(U), np.zeros(U, np.int32)
    if J:
        order_U, window_U = window_order(image.grid, geometry)
    patches_N = (order_U[:, None] * per_unit + np.arange(per_unit)).reshape(-1)
    here = slice(first_patch, first_patch + U * per_unit)
    batch.patches_RNE[row, here] = image.patches_NE[patches_N]
    batch.positions_RN2[row, here] = patch_positions(image.grid, geometry)[patches_N]
    batch.sizes_RN2[row, here] = np.array(image.grid) * geometry.merge_size
    batch.images_RN[row, here] = number + 1
    first_unit = first_patch // per_unit
    batch.units_RU[row, first_unit + order_U] = first_unit + np.arange(U)
    if not J:
        return
    # A unit's place in its window: its index minus that of the window's first unit.
    place_U = np.arange(U) - np.searchsorted(window_U, window_U)
    slots_UM = ((first_window + window_U) * J + place_U * per_unit)[:, None] + np.arange(per_unit)
    slots_N = slots_UM.reshape(-1)
    batch.slots_RN[row, here] = slots_N
    batch.windows_RWJ[row].reshape(-1)[slots_N] = np.arange(here.start, here.stop)


def unit_places(
    image_mask_BS: np.ndarray, images: Sequence[Sequence[int]], packed: PackedImages
) -> np.ndarray:
    """Where the image tokens of text rows lie in the tower's output: int32 (B,S), -1 for text.

    Args:
      image_mask_BS: True at image tokens.
      images: for each row its images in order, as numbers into `packed`. An image may stand
        in any number of rows.

    Raises ValueError if a row's image tokens are not those of its images.
    """
    places = np.full(image_mask_BS.shape, -1, np.int32)
    for b, (mask_S, numbers) in enumerate(zip(image_mask_BS, images, strict=True)):
        sizes = [packed.grids[i][0] * packed.grids[i][1] for i in numbers]
        for i, size, begin in zip(numbers, sizes, _runs(mask_S, sizes)):
            places[b, begin : begin + size] = packed.starts_P[i] + np.arange(size)
    return places


def mrope_positions(image_mask_BS: np.ndarray, grids: Sequence[Sequence[Grid]]) -> np.ndarray:
    """Positions in time, height and width of every token of text rows: int32 (3,B,S).

    Text counts on in all three; an image's tokens share their time, and count rows and columns
    from there; what follows goes on from the largest position + 1 (arXiv 2409.12191, section
    2.1). Padding on the right counts on as text: a token that is put there later has its
    position already.

    Args:
      image_mask_BS: True at image tokens.
      grids: for each row the units (rows, columns) of its images in order.

    Raises ValueError if a row's image tokens are not those of its images.
    """
    positions = np.empty((3, *image_mask_BS.shape), np.int32)
    for b, (mask_S, sizes) in enumerate(zip(image_mask_BS, grids, strict=True)):
        done, position = 0, 0
        for (h, w), begin in zip(sizes, _runs(mask_S, [h * w for h, w in sizes])):
            positions[:, b, done:begin] = position + np.arange(begin - done)
            position += begin - done
            done = begin + h * w
            row, column = np.indices((h, w)).reshape(2, -1)
            positions[:, b, begin:done] = position + np.stack([np.zeros_like(row), row, column])
            position += max(h, w)
        positions[:, b, done:] = position + np.arange(len(mask_S) - done)
    return positions


def _runs(image_mask_S: np.ndarray, sizes: Sequence[int]) -> Iterator[int]:
    """The index of the first token of each image; ValueError unless their sizes fit the mask."""
    (where,) = np.nonzero(image_mask_S)
    ends = np.cumsum([0, *sizes])
    pieces = [where[a:b] for a, b in zip(ends, ends[1:])]
    if len(where) != ends[-1] or any(p[-1] - p[0] != len(p) - 1 for p in pieces):
        raise ValueError(f"{len(where)} image tokens do not belong to images of {list(sizes)}")
    return (int(piece[0]) for piece in pieces)
