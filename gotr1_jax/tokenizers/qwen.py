"""The tokenizer and chat format of Qwen2.5-VL and Qwen3-VL.

Every special id is looked up by its string. `tokenizer.json` is loaded as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import read_text
from gotr1_jax.tokenizers.plain_text import PlainTextTokenizer

SYSTEM = "You are a helpful assistant."
"""The system message that Qwen2.5-VL was tuned with; Qwen3-VL's chats begin with the user."""

_STRINGS = {
    "message_start": "<|im_start|>",
    "message_end": "<|im_end|>",
    "text_end": "<|endoftext|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "image": "<|image_pad|>",
}

# Around the thought of a model that thinks first.
_THOUGHT = ("<think>", "</think>")


@dataclass(frozen=True)
class QwenIds:
    """Ids of the special tokens that a chat with images needs.

    `image` stands once for every unit of an image; an answer ends with `message_end` or
    `text_end`.
    """

    message_start: int
    message_end: int
    text_end: int
    vision_start: int
    vision_end: int
    image: int


@dataclass(frozen=True)
class ImageTokens:
    """An image's place in a message: the number of its units."""

    units: int


class QwenTokenizer:
    """Text and chats as token ids.

    Attributes:
      ids: special ids.
      system: the system message of a chat that gives none; None: it then has none.
      thinks: whether every answer begins with a thought, as of Qwen3-VL's Thinking checkpoints.
      vocab_size: rows that an embedding needs for it, the largest id + 1.
    """

    def __init__(
        self, data: str, source: str = "tokenizer.json", system: str | None = SYSTEM,
        thinks: bool = False,
    ) -> None:  # fmt: skip
        """Reads the text of a tokenizer.json; `source` is its name in error messages.

        Raises InputError when the text is not a tokenizer or a special token is missing.
        """
        self.system, self.thinks = system, thinks
        self._text = PlainTextTokenizer(data, source, _STRINGS.values())
        known = self._text.known
        needed = (*_STRINGS.values(), *(_THOUGHT if thinks else ()))
        if missing := [text for text in needed if text not in known]:
            raise InputError(
                f"{source} lacks the special token {', '.join(missing)}; "
                "a Qwen-VL tokenizer is needed"
            )
        self.ids = QwenIds(**{name: known[text] for name, text in _STRINGS.items()})
        self._thought = tuple(known[text] for text in _THOUGHT) if thinks else ()
        self.vocab_size = max(known.values()) + 1

    @property
    def number_ids(self) -> dict[int, int]:
        """Ids of the tokens "0" to "999" without leading zeros, by their values."""
        return self._text.number_ids

    @classmethod
    def from_dir(
        cls, path: str | Path, system: str | None = SYSTEM, thinks: bool = False
    ) -> QwenTokenizer:
        """The tokenizer of a checkpoint directory; `system` and `thinks` as the attributes.

        Raises InputError if it has none that fits, and for one that loses text.
        """
        file = Path(path) / "tokenizer.json"
        tokenizer = cls(read_text(file), str(file), system, thinks)
        tokenizer._text.check_round_trip()
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """Ids of text; control tokens spelled out in it are encoded as ordinary characters."""
        return self._text.encode(text)

    def encode_chat(
        self, message: Sequence[str | ImageTokens], system: str | None = None,
        skip_thought: bool = False,
    ) -> list[int]:  # fmt: skip
        """Ids of a user's message, ready for the assistant's answer.

        Args:
          message: text and images in their order.
          system: None is the usual one.
          skip_thought: of a model that thinks first: an empty thought stands there, and the answer
            follows. Else the thought is opened, and the answer goes on with it.
        """
        ids, parts = self.ids, self._opening(system)
        for part in message:
            if isinstance(part, ImageTokens):
                parts += [ids.vision_start, *[ids.image] * part.units, ids.vision_end]
            else:
                parts.append(part)
        parts += [ids.message_end, "\n", ids.message_start, "assistant\n"]
        if self.thinks:
            opened, closed = self._thought
            parts += [opened, "\n\n", closed, "\n\n"] if skip_thought else [opened, "\n"]
        return self._join(parts)

    def encode_opening(self, text: str, system: str | None = None) -> list[int]:
        """Ids of the beginning of a chat: the system message and the user's first text."""
        return self._join([*self._opening(system), text])

    def _opening(self, system: str | None) -> list[str | int]:
        start, end = self.ids.message_start, self.ids.message_end
        system = self.system if system is None else system
        if system is None:
            return [start, "user\n"]
        return [start, f"system\n{system}", end, "\n", start, "user\n"]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids without special tokens; ids without a string are dropped."""
        return self._text.full.decode([int(i) for i in ids], skip_special_tokens=True)

    def _join(self, parts: Sequence[str | int]) -> list[int]:
        """Ids of text and control tokens; adjacent texts are encoded as one."""
        ids: list[int] = []
        text = ""
        for part in parts:
            if isinstance(part, str):
                text += part
                continue
            ids += [*self.encode(text), part] if text else [part]
            text = ""
        return ids + self.encode(text)
