"""Pictures from files, as networks read them: numpy and pillow only."""

from __future__ import annotations

from gotr1_jax.pictures.janus import PictureSettings, open_picture, preprocess, read_settings

__all__ = ["PictureSettings", "open_picture", "preprocess", "read_settings"]
