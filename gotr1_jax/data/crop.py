"""The square of an image that an image tokenizer sees."""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

# A stream of its own, apart from other draws by the same seed.
_STREAM = 0x63726F70


def square_box(
    width: int, height: int, crop: Literal["center", "random"], seed: int, index: int
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels of the largest square at its place in an image.

    A random place is uniform, and hangs on seed and index alone.
    """
    side = min(width, height)
    if crop == "center":
        left, top = (width - side) // 2, (height - side) // 2
    else:
        draw = np.random.default_rng((seed, _STREAM, index))
        left = int(draw.integers(width - side + 1))
        top = int(draw.integers(height - side + 1))
    return left, top, left + side, top + side


def square_pixels(
    image: Image.Image, size: int, crop: Literal["center", "random"], seed: int, index: int
) -> np.ndarray:
    """The image's square, resized (bicubic, antialiased): uint8 (size, size, 3)."""
    square = image.crop(square_box(image.width, image.height, crop, seed, index))
    # Cropped first: resizing with a box also looks at pixels around it.
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))
