"""Pictures from files, as networks read them: numpy and pillow only."""

from __future__ import annotations

from gotr1_jax.images.janus import (
    PictureSettings,
    decode_picture,
    open_picture,
    preprocess,
    read_settings,
)

__all__ = ["PictureSettings", "decode_picture", "open_picture", "preprocess", "read_settings"]
