"""Qwen2.5-VL as a judge in this process: which checkpoint, and how much it may hold at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from gotr1_jax.errors import InputError

UNIT_PIXELS = 28 * 28  # of the image behind one token
_LEAST_TOKENS = 512


@dataclass(frozen=True)
class QwenEngineConfig:
    """The model, and the sizes that bound its memory whatever the number of questions."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"picture_tokens": "image_tokens"}

    # A Qwen2.5-VL checkpoint: a directory (config.json, tokenizer.json, safetensors) or a hub id.
    checkpoint: str
    # Of weights, activations and cache.
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    # Questions of one program of the text model, at most; a power of two is used.
    rows: int = 32
    # Tokens of one such program: rows times the padded length of question and longest answer.
    tokens: int = 32768
    # Patches (14 by 14 pixels) of one program of the vision tower.
    patches: int = 4096
    # Image tokens whose vectors are kept at once. With room for all images of a step (and for
    # the sketches of spa) each goes through the vision tower once, in whatever way it is judged.
    image_tokens: int = 8192
    # Height times width above which an image is shrunk, where the checkpoint's own bound is
    # larger.
    max_pixels: int = 512 * UNIT_PIXELS

    def check(self) -> None:
        """Raise InputError where the sizes do not fit each other."""
        if not self.checkpoint:
            raise InputError("judge.qwen2_5_vl.checkpoint is empty; give a directory or a hub id")
        least = {
            "rows": 1, "tokens": _LEAST_TOKENS, "max_pixels": UNIT_PIXELS,
            "patches": 4 * self.max_pixels // UNIT_PIXELS,
            "image_tokens": 2 * self.max_pixels // UNIT_PIXELS,
        }  # fmt: skip
        for name, size in least.items():
            if getattr(self, name) < size:
                raise InputError(
                    f"judge.qwen2_5_vl.{name} is {getattr(self, name)}; use {size} or more"
                    + (" (or a smaller max_pixels)" if name in ("patches", "image_tokens") else "")
                )
