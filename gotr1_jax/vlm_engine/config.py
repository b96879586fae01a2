"""Settings of the engines: a Qwen-VL in this process, or a model behind a server. No jax."""

from __future__ import annotations

import urllib.parse
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from gotr1_jax.config import CheckedConfig
from gotr1_jax.decoding.config import CacheDtype
from gotr1_jax.errors import ConfigError, InputError
from gotr1_jax.io.reading import parse_json
from gotr1_jax.limits import FilledText, Range, RowCount

UNIT_PIXELS = 28 * 28  # of the image behind one token of Qwen2.5-VL; Qwen3-VL's are larger
_LEAST_TOKENS = 512
_LONGEST_URL = 2000  # characters


@dataclass(frozen=True)
class QwenEngineConfig(CheckedConfig):
    """The model, and the sizes that bound its memory whatever the number of questions."""

    may_change: ClassVar[Collection[str]] = ("rows", "tokens", "patches", "image_tokens")

    renamed_keys: ClassVar[Mapping[str, str]] = {"picture_tokens": "image_tokens"}

    # A checkpoint of Qwen2.5-VL or a dense Qwen3-VL (2B, 4B, 8B, 32B), as its config.json says: a
    # directory (config.json, tokenizer.json, safetensors), a hub id, or "embedded_judge", which
    # knows the shapes world alone.
    checkpoint: FilledText
    # dtype of weights and activations.
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    # KV cache of questions and answers. auto: in dtype; int8: about half the bytes of bfloat16,
    # with keys and values rounded, so that answers may differ.
    cache_dtype: CacheDtype = "auto"
    # Questions of one program of the text model, at most; a power of two is used.
    rows: RowCount = 32
    # Tokens of one such program: rows times the padded length of question and longest answer.
    tokens: Annotated[int, Range(f"[{_LEAST_TOKENS}, 1e8]")] = 32768
    # Patches (14 by 14 pixels; of Qwen3-VL 16 by 16) of one program of the vision tower.
    patches: Annotated[int, Range("[4, 1e8]")] = 4096
    # Image tokens whose vectors are kept at once. With room for all images of a step (and for
    # the sketches of spa) each goes through the vision tower once, in whatever way it is judged.
    image_tokens: Annotated[int, Range("[2, 1e8]")] = 8192
    # Height times width above which an image is shrunk, where the checkpoint's own bound is
    # larger.
    max_pixels: Annotated[int, Range(f"[{UNIT_PIXELS}, 1e8]")] = 512 * UNIT_PIXELS

    def check(self) -> None:
        """Room for one image of the largest size, and in memory for two."""
        least = {
            "patches": 4 * self.max_pixels // UNIT_PIXELS,
            "image_tokens": 2 * self.max_pixels // UNIT_PIXELS,
        }  # fmt: skip
        for name, size in least.items():
            if getattr(self, name) < size:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; use {size} or more, or a smaller max_pixels"
                )


@dataclass(frozen=True)
class HttpServerConfig(CheckedConfig):
    """A server, and how patiently it is asked."""

    may_change: ClassVar[Collection[str]] = (
        "key_file", "key_variable", "concurrency", "timeout", "retries", "backoff",
    )  # fmt: skip

    # Address, such as http://127.0.0.1:8000/v1 (the base address of a server of chats).
    url: str
    # Name by which the server knows the model.
    model: FilledText
    # The key is the content of this file. It is sent to `url` alone and stored nowhere.
    key_file: str = ""
    # The key is the content of this environment variable; none where key_file is empty too.
    key_variable: str = ""
    # Requests under way at once.
    concurrency: Annotated[int, Range("[1, 10000)")] = 16
    # Seconds for one try, from connecting to the last byte.
    timeout: Annotated[float, Range("(0, 86400]")] = 120.0
    # Further tries after the first.
    retries: Annotated[int, Range("[0, 100]")] = 4
    # Seconds before the first further try; each wait is twice the one before, shortened by up to
    # half at random.
    backoff: Annotated[float, Range("[0, 10000)")] = 1.0

    def check(self) -> None:
        """An address that can be a server's, and one key."""
        # urlsplit itself drops line ends and keeps blanks; nothing sends an address of that length.
        valid = len(self.url) < _LONGEST_URL and self.url.isprintable() and " " not in self.url
        try:
            parts = urllib.parse.urlsplit(self.url)
            valid = valid and parts.scheme in ("http", "https") and bool(parts.hostname)
            valid = valid and (parts.port is None or parts.port > 0)
        except ValueError:  # a port that is no number, a bracket that is not closed
            valid = False
        if not valid:
            raise ConfigError(
                f"url is {self.url[:80]!r}; give an address such as http://127.0.0.1:8000/v1"
            )
        if self.key_file and self.key_variable:
            raise ConfigError("key_file and key_variable are both given; give one of them")


@dataclass(frozen=True)
class HttpConfig(HttpServerConfig):
    """An OpenAI-compatible server, and what its requests say."""

    # What the model's boxes are in: pixels of the image it was sent, as Qwen2.5-VL's, or
    # thousandths of its sides, as Qwen3-VL's.
    coordinates: Literal["pixels", "thousandths"] = "pixels"
    # Images are sent with sides that are multiples of this, so that a server that rounds them
    # so (Qwen2.5-VL: 28, Qwen3-VL: 32) leaves them, and coordinates, as they are. 1: as they come.
    multiple: Annotated[int, Range("[1, 10000)")] = 28
    # Penalty of repeated tokens in every request; null: not sent. 1 is none: vLLM and SGLang
    # otherwise use the one of the checkpoint's generation_config.json (1.05 for Qwen2.5-VL).
    repetition_penalty: Annotated[float, Range("[0.1, 2]")] | None = 1.0
    # Temperature of the answers; above 0 they depend on chance. Null: not sent, for models that
    # take none.
    temperature: Annotated[float, Range("[0, 2]")] | None = 0.0
    # The field that bounds an answer. A server that refuses this one, the temperature or the
    # repetition penalty by name is asked again without it, or with the other name, and so from then
    # on.
    length_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    # Further fields of every request, as JSON: {"chat_template_kwargs": {"enable_thinking": false}}
    # turns the thought of Qwen3 off, {"reasoning_effort": "low"} shortens others.
    extra: str = ""

    def check(self) -> None:
        """That of every server, and extra fields that can be sent."""
        super().check()
        self.extra_fields()

    def extra_fields(self) -> dict[str, Any]:
        """The object of `extra`; ConfigError where it is none."""
        try:
            fields = parse_json(self.extra or "{}", "extra")
        except InputError:
            fields = None
        own = {"model", "messages", "stream", "n"}
        if not isinstance(fields, dict) or own & fields.keys():
            raise ConfigError(
                f"extra is {self.extra[:80]!r}; give a JSON object of request fields "
                f"without {', '.join(sorted(own))}"
            )
        return fields
