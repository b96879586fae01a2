"""Parts of images: an object on a gray ground, a cell of a grid."""

from __future__ import annotations

import numpy as np
from PIL import Image

from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.asks import Detection, mask_from_runs
from gotr1_jax.vlm_engine.base import ImageInput, make_image_input

_GROUND = (0x99, 0x99, 0x99)  # behind an object whose color is asked for, as in GenEval


def crop_object(raw_image: ImageInput, found: Detection) -> Image.Image:
    """The object's box, all around its mask gray; without a mask the box as it is."""
    image = Image.fromarray(raw_image.pixels)
    if found.runs:
        mask = Image.fromarray(mask_from_runs(found.runs, *raw_image.size))
        image = Image.composite(image, Image.new("RGB", image.size, _GROUND), mask)
    x1, y1, x2, y2 = (round(side) for side in found[:4])
    return image.crop((x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)))


def grid_cells(image: ImageInput, count: int) -> list[ImageInput]:
    """The first `count` (1 to 4) cells of a grid of two columns, row by row; one is the whole.

    InputError where the image cannot be such a grid of squares.
    """
    if count == 1:
        return [image]
    height, width = image.size
    side = width // 2
    rows = -(-count // 2)
    if width % 2 or height != rows * side:
        raise InputError(
            f"an image of {width}x{height} is no grid of {count} squares in two columns"
        )
    cells = [(i // 2 * side, i % 2 * side) for i in range(count)]
    return [
        make_image_input(np.ascontiguousarray(image.pixels[y : y + side, x : x + side]))
        for y, x in cells
    ]
