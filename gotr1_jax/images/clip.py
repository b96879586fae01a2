"""An image as CLIPs read it: the middle of it, or for HPS v2.1 the whole on a black square.

CLIP's own preprocessing brings the shortest side to the tower's size and crops the middle
(`crop_pixels`, as `transformers.CLIPImageProcessor` does it). HPS v2.1 sees the whole image
(`clip_pixels`): values are scaled to [0, 1], the longest side is brought to the tower's size, the
rest of the square is black, and all is normalised (github.com/tgxs002/HPSv2, its
`image_transform`). There they are real numbers while the size changes, neither rounded nor
clipped: bicubic overshoots at edges.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_LONGEST = 64  # times the shortest side


def clip_pixels(image: np.ndarray, size: int = 224) -> np.ndarray:
    """The tower's input, float32 (size, size, 3), of an image uint8 (H, W, 3) RGB.

    The image keeps its proportions and stands in the middle; bicubic with antialiasing. Black
    is filled in before normalising. ValueError for an array of another kind.
    """
    height, width = _checked_size(image)
    factor = size / max(height, width)
    # Python's rounding (halves to even) is the reference's, and so is the odd pixel's place.
    rows, columns = (max(round(side * factor), 1) for side in (height, width))
    values = image.astype(np.float32) / np.float32(255)
    if (rows, columns) != (height, width):
        values = np.stack([_resized(values[..., c], rows, columns) for c in range(3)], axis=-1)
    square = np.zeros((size, size, 3), np.float32)
    top, left = (size - rows) // 2, (size - columns) // 2
    square[top : top + rows, left : left + columns] = values
    return _normalised(square)


def crop_pixels(image: np.ndarray, size: int = 224) -> np.ndarray:
    """The tower's input, float32 (size, size, 3), of an image uint8 (H, W, 3) RGB.

    The shortest side becomes `size` (bicubic with antialiasing, rounded to whole values), the
    middle is cut out. ValueError for an array of another kind.
    """
    height, width = _checked_size(image)
    shortest = min(height, width)
    # Of a long, thin image, which would become a huge one, the rest is cut off before.
    longest = shortest * _LONGEST
    if max(height, width) > longest:
        top, left = max(height - longest, 0) // 2, max(width - longest, 0) // 2
        image = image[top : top + longest, left : left + longest]
        height, width = image.shape[:2]
    # Rounded down, both the longer side and the crop's place: the reference's rule.
    rows, columns = (int(size * side / shortest) for side in (height, width))
    resized = Image.fromarray(np.ascontiguousarray(image))
    if (rows, columns) != (height, width):
        resized = resized.resize((columns, rows), Image.Resampling.BICUBIC)
    top, left = (rows - size) // 2, (columns - size) // 2
    middle = np.asarray(resized.crop((left, top, left + size, top + size)))
    return _normalised(middle.astype(np.float32) / np.float32(255))


def _checked_size(image: np.ndarray) -> tuple[int, int]:
    """(height, width); ValueError for what is no image."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
        raise ValueError(f"{image.dtype} {image.shape} is not an image: uint8 (H, W, 3) is needed")
    return image.shape[0], image.shape[1]


def _normalised(values: np.ndarray) -> np.ndarray:
    return (values - np.asarray(MEAN, np.float32)) / np.asarray(STD, np.float32)


def _resized(channel: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A float32 channel (H, W) at another size, (rows, columns)."""
    # Pillow resizes images of one float channel without rounding.
    image = Image.fromarray(np.ascontiguousarray(channel))
    return np.asarray(image.resize((columns, rows), Image.Resampling.BICUBIC))
