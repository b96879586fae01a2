"""Settings of the engines: Qwen2.5-VL in this process, or a model behind a server. No jax."""

from __future__ import annotations

import urllib.parse
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

    def __post_init__(self) -> None:
        """Raises InputError where the sizes do not fit each other."""
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


@dataclass(frozen=True)
class HttpConfig:
    """The server, and how patiently it is asked."""

    # Base address, such as http://127.0.0.1:8000/v1.
    url: str
    # Name by which the server knows the model.
    model: str
    # The key is the content of this file, or of this environment variable; none where both are
    # empty. It is sent to `url` alone and stored nowhere.
    key_file: str = ""
    key_variable: str = ""
    # Questions under way at once.
    concurrency: int = 16
    # Seconds for one try, from connecting to the last byte.
    timeout: float = 120.0
    # Further tries after the first, and seconds before the first of them; each wait is twice the
    # one before, shortened by up to half at random.
    retries: int = 4
    backoff: float = 1.0
    # What the model's boxes are in: pixels of the image it was sent, as Qwen2.5-VL's, or
    # thousandths of its sides.
    coordinates: Literal["pixels", "thousandths"] = "pixels"
    # Images are sent with sides that are multiples of this, so that a server that rounds them
    # so (Qwen2.5-VL: 28) leaves them, and coordinates, as they are. 1: as they come.
    multiple: int = 28

    def __post_init__(self) -> None:
        """Raises InputError where this cannot be a server."""
        parts = urllib.parse.urlsplit(self.url)
        try:
            valid = parts.scheme in ("http", "https") and bool(parts.hostname)
            valid = valid and (parts.port is None or parts.port > 0)
        except ValueError:  # a port that is no number
            valid = False
        if not valid:
            raise InputError(
                f"judge.http.url is {self.url!r}; give an address such as http://127.0.0.1:8000/v1"
            )
        if not self.model:
            raise InputError("judge.http.model is empty; give the name the server knows it by")
        if self.key_file and self.key_variable:
            raise InputError("judge.http has key_file and key_variable; give one of them")
        for name, least in (("concurrency", 1), ("retries", 0), ("backoff", 0), ("multiple", 1)):
            if not least <= getattr(self, name) < 10_000:
                raise InputError(
                    f"judge.http.{name} is {getattr(self, name)}; use {least} or more, below 10000"
                )
        if not 0 < self.timeout <= 86_400:
            raise InputError(f"judge.http.timeout is {self.timeout}; use seconds above 0")
