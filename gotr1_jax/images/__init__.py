"""Images from files, as networks read them: numpy and pillow only."""

from __future__ import annotations

from gotr1_jax.images.janus import ImageSettings, preprocess, read_settings
from gotr1_jax.images.reader import decode_image, image_size, open_image, to_rgb
from gotr1_jax.images.writer import encode_png

__all__ = [
    "ImageSettings",
    "decode_image",
    "encode_png",
    "image_size",
    "open_image",
    "preprocess",
    "read_settings",
    "to_rgb",
]
