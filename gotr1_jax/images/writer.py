"""The one writer of images as PNG."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def encode_png(image: Image.Image | np.ndarray) -> bytes:
    """The bytes of a PNG file of an image, or of pixels uint8 (H, W, 3); ValueError for others."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an image is uint8 (H, W, 3), not {image.dtype} {image.shape}")
        image = Image.fromarray(np.ascontiguousarray(image))
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()
