"""An image as HPS v2.1 reads it: whole, on a black square, normalised as CLIP's.

Values are scaled to [0, 1], the longest side is brought to the tower's size, the rest of the
square is black, and all is normalised (github.com/tgxs002/HPSv2, its `image_transform`). Values
are real numbers while the size changes, neither rounded nor clipped: bicubic overshoots at edges.
CLIP's own preprocessing crops; a preference score has to see the whole image.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def clip_pixels(image: np.ndarray, size: int = 224) -> np.ndarray:
    """The tower's input, float32 (size, size, 3), of an image uint8 (H, W, 3) RGB.

    The image keeps its proportions and stands in the middle; bicubic with antialiasing. Black
    is filled in before normalising. ValueError for an array of another kind.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
        raise ValueError(f"{image.dtype} {image.shape} is not an image: uint8 (H, W, 3) is needed")
    height, width, _ = image.shape
    factor = size / max(height, width)
    # Python's rounding (halves to even) is the reference's, and so is the odd pixel's place.
    rows, columns = (max(round(side * factor), 1) for side in (height, width))
    values = image.astype(np.float32) / np.float32(255)
    if (rows, columns) != (height, width):
        values = np.stack([_resized(values[..., c], rows, columns) for c in range(3)], axis=-1)
    square = np.zeros((size, size, 3), np.float32)
    top, left = (size - rows) // 2, (size - columns) // 2
    square[top : top + rows, left : left + columns] = values
    return (square - np.asarray(MEAN, np.float32)) / np.asarray(STD, np.float32)


def _resized(channel: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A float32 channel (H, W) at another size, (rows, columns)."""
    # Pillow resizes images of one float channel without rounding.
    image = Image.fromarray(np.ascontiguousarray(channel))
    return np.asarray(image.resize((columns, rows), Image.Resampling.BICUBIC))
