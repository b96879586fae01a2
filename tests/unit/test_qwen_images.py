"""Index arithmetic of Qwen2.5-VL's images, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from gotr1_jax.errors import InputError
from gotr1_jax.images.qwen import (
    Geometry,
    Preprocessing,
    QwenImage,
    count_windows,
    patch_positions,
    read_image,
    resized_size,
    split_patches,
    window_order,
)
from gotr1_jax.images.qwen_pack import (
    RowShape,
    assign_rows,
    mrope_positions,
    pack_images,
    row_shape,
    unit_places,
)

RELEASED = Geometry()
# Units of 4 by 4 pixels, windows of 2 by 2 units: small enough to write down.
SMALL = Geometry(patch_size=2, merge_size=2, temporal_patch_size=2, window_size=8)


def settings(low: int = 56 * 56, high: int = 28 * 28 * 1280) -> Preprocessing:
    return Preprocessing(RELEASED, low, high, (0.5, 0.5, 0.5), (0.25, 0.5, 1.0))


def image(grid: tuple[int, int], value: float = 0.0) -> QwenImage:
    """Patches hold value + their number in reading order of units."""
    count = grid[0] * grid[1] * 4
    patches = np.repeat(value + np.arange(count, dtype=np.float32)[:, None], 12, axis=1)
    return QwenImage(patches, grid, (grid[0] * 4, grid[1] * 4))


def test_the_released_geometry() -> None:
    assert (RELEASED.unit_size, RELEASED.unit_patches) == (28, 4)
    assert (RELEASED.window_units, RELEASED.window_patches) == (4, 64)
    with pytest.raises(ValueError, match="multiple"):
        Geometry(window_size=100)


@pytest.mark.parametrize(
    "height, width, expected",
    [
        (384, 384, (392, 392)),  # 13.7 units
        (392, 392, (392, 392)),
        (42, 70, (56, 56)),  # 1.5 and 2.5 units: halves go to the even number
        (10, 20, (56, 84)),  # too small: scaled by 56 / sqrt(200) to 39.6 by 79.2, rounded up
        (28, 28, (56, 56)),
        # too large: scaled by 1 / sqrt(4.0e6 / 1003520), to 500.9 by 2003.5, rounded down
        (1000, 4000, (476, 1988)),
    ],
)
def test_sizes(height: int, width: int, expected: tuple[int, int]) -> None:
    assert resized_size(height, width, settings()) == expected


def test_sizes_that_are_refused() -> None:
    assert resized_size(2000, 10, settings())[1] == 28
    with pytest.raises(InputError, match="10 by 2010 pixels is too long"):
        resized_size(2010, 10, settings())
    with pytest.raises(InputError, match="empty"):
        resized_size(0, 10, settings())


def test_patches_of_a_unit_follow_each_other() -> None:
    # 4 by 8 pixels: two units side by side, four patches of 2 by 2 in each.
    pixels = np.arange(32, dtype=np.float32).reshape(4, 8, 1)
    patches = split_patches(pixels, SMALL)
    assert patches.tolist() == [
        [0, 1, 8, 9], [2, 3, 10, 11], [16, 17, 24, 25], [18, 19, 26, 27],
        [4, 5, 12, 13], [6, 7, 14, 15], [20, 21, 28, 29], [22, 23, 30, 31],
    ]  # fmt: skip
    assert patch_positions((1, 2), SMALL).tolist() == [
        [0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3],
    ]  # fmt: skip


def test_a_patch_is_channel_by_channel() -> None:
    pixels = np.zeros((4, 4, 3), np.float32)
    pixels[..., 1], pixels[..., 2] = 1, 2
    assert split_patches(pixels, SMALL)[0].tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_pixels_are_scaled_and_normalised_over_white() -> None:
    image = Image.new("RGBA", (56, 56), (255, 0, 0, 255))
    image.paste((9, 9, 9, 0), (0, 0, 14, 14))
    read = read_image(image, settings())
    assert (read.grid, read.size, read.units) == ((2, 2), (56, 56), 4)
    assert read.patches_NE.dtype == np.float32
    np.testing.assert_allclose(read.patches_NE[0, ::196], [2, 1, 0.5])  # transparent: white
    np.testing.assert_allclose(read.patches_NE[15, ::196], [2, -1, -0.5])  # red


def test_windows_at_the_edges_are_smaller() -> None:
    # 3 by 3 units, windows of 2 by 2:  0 1 | 2
    #                                   3 4 | 5
    #                                   ----+--
    #                                   6 7 | 8
    order, window = window_order((3, 3), SMALL)
    assert order.tolist() == [0, 1, 3, 4, 2, 5, 6, 7, 8]
    assert window.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3]
    assert count_windows((3, 3), SMALL) == 4
    order, window = window_order((2, 4), SMALL)  # divides
    assert order.tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert window.tolist() == [0] * 4 + [1] * 4
    assert count_windows((14, 14), RELEASED) == 16  # 392 px


def test_rows_are_filled_first_fit() -> None:
    grids = [(2, 2), (3, 3), (1, 2), (2, 2), (1, 1)]
    assert row_shape(grids, SMALL) == RowShape(36, 4)
    # Room for 9 units: the second image fills a row; 4 + 2 + 1 units share the first.
    assert assign_rows(grids, SMALL, RowShape(36, 4)) == [0, 1, 0, 2, 0]
    # The windows can run out before the patches do.
    assert assign_rows(grids, SMALL, RowShape(100, 4)) == [0, 1, 0, 0, 0]
    assert assign_rows([(1, 2)] * 3, SMALL, RowShape(100, 2)) == [0, 0, 1]
    with pytest.raises(ValueError, match="36 patches in 4 windows"):
        assign_rows(grids, SMALL, RowShape(36, 3))


def test_a_packed_row() -> None:
    # One unit, then 1 by 3 units in two windows, in a row of 5 units and 4 windows.
    packed = pack_images([image((1, 1), 100), image((1, 3))], SMALL, RowShape(20, 4), 2)
    batch = packed.batch
    assert packed.starts_P.tolist() == [0, 1]
    assert batch.images_RN[0].tolist() == [1] * 4 + [2] * 12 + [0] * 4
    assert batch.patches_RNE[0, :, 0].tolist() == [100, 101, 102, 103, *range(12), 0, 0, 0, 0]
    first, second, third, fourth = batch.windows_RWJ[0].tolist()
    assert first == [0, 1, 2, 3] + [-1] * 12
    assert second == list(range(4, 12)) + [-1] * 8
    assert third == list(range(12, 16)) + [-1] * 12
    assert fourth == [-1] * 16
    assert batch.slots_RN[0].tolist() == [0, 1, 2, 3, *range(16, 24), *range(32, 36), 0, 0, 0, 0]
    assert batch.units_RU.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert batch.positions_RN2[0, 4:8].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert batch.positions_RN2[0, 12:14].tolist() == [[0, 4], [0, 5]]
    assert not batch.images_RN[1].any() and (batch.windows_RWJ[1] == -1).all()


def test_units_come_back_in_reading_order() -> None:
    packed = pack_images([image((1, 1), 50), image((3, 3))], SMALL, RowShape(40, 5), 1)
    batch = packed.batch
    in_windows = batch.patches_RNE[0, ::4, 0]  # the first patch of every unit
    assert in_windows.tolist() == [50, 0, 4, 12, 16, 8, 20, 24, 28, 32]
    assert in_windows[batch.units_RU[0]].tolist() == [50, 0, 4, 8, 12, 16, 20, 24, 28, 32]


def test_images_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="need 2 rows, not 1"):
        pack_images([image((2, 2))] * 2, SMALL, RowShape(16, 1), 1)
    with pytest.raises(ValueError, match="not a whole number of units"):
        pack_images([image((1, 1))], SMALL, RowShape(18, 1), 1)
    empty = pack_images([], SMALL, RowShape(16, 1), 1)
    assert empty.batch.patches_RNE.shape == (1, 16, 12) and empty.starts_P.shape == (0,)


# Rows of letters: t text, i image token.
def mask(*rows: str) -> np.ndarray:
    return np.array([[letter == "i" for letter in row] for row in rows])


def test_positions_in_time_height_and_width() -> None:
    rows = mask("ttiiiiiitt", "tttttttttt", "itiittttii")
    positions = mrope_positions(rows, [[(2, 3)], [], [(1, 1), (2, 1), (1, 2)]])
    assert positions[:, 0].tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]
    assert positions[:, 1].tolist() == [list(range(10))] * 3
    assert positions[:, 2].tolist() == [
        [0, 1, 2, 2, 4, 5, 6, 7, 8, 8],
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 8],
        [0, 1, 2, 2, 4, 5, 6, 7, 8, 9],
    ]


def test_neighboring_images_are_two() -> None:
    positions = mrope_positions(mask("iiiiit"), [[(2, 2), (1, 1)]])
    assert positions[0, 0].tolist() == [0, 0, 0, 0, 2, 3]
    assert positions[1, 0].tolist() == [0, 0, 1, 1, 2, 3]


def test_places_of_image_tokens() -> None:
    images = [image((1, 2)), image((2, 2)), image((1, 1))]
    # Rows of 4 units: the third image joins the first one; the second fills row 1.
    packed = pack_images(images, SMALL, RowShape(16, 2), 2)
    assert packed.starts_P.tolist() == [0, 4, 2]
    places = unit_places(mask("tiiti", "iiiit", "ttttt", "tiitt"), [[0, 2], [1], [], [0]], packed)
    assert places.tolist() == [
        [-1, 0, 1, -1, 2], [4, 5, 6, 7, -1], [-1] * 5, [-1, 0, 1, -1, -1],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "row, grids",
    [("tiit", [(1, 3)]), ("tiii", [(1, 2)]), ("titi", [(1, 2)]), ("tttt", [(1, 1)]), ("itt", [])],
)
def test_image_tokens_that_are_no_image_are_refused(row: str, grids: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="do not belong to images"):
        mrope_positions(mask(row), [grids])
