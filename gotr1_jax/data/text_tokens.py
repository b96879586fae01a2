"""Captions and plans as token ids, and which records fit: cached token counts."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gotr1_jax.data.shards import Shard, TokenizedRecords
from gotr1_jax.errors import InputError
from gotr1_jax.io.files import atomic_write
from gotr1_jax.io.reading import open_file
from gotr1_jax.tokenizers.janus import TextTokenizer

_UNLIMITED = 2**31


@dataclass(frozen=True)
class TextFormat:
    """How captions and plans become rows of token ids.

    Attributes:
      tokenizer: the text tokenizer.
      template: the prompt around a caption.
      max_prompt_tokens: padded length C of a prompt, BOS included.
      max_plan_tokens: padded length T of a plan, BOI included.
    """

    tokenizer: TextTokenizer
    template: str
    max_prompt_tokens: int
    max_plan_tokens: int

    def encode_prompt(self, caption: str) -> list[int]:
        """Ids of a prompt with BOS; InputError if there are more than `max_prompt_tokens`."""
        return self.tokenizer.encode_prompt(caption, self.template, self.max_prompt_tokens)

    def encode_plan(self, plan: str) -> list[int]:
        """Ids of a plan with BOI, of any number."""
        return [*self.tokenizer.encode_plan(plan), self.tokenizer.specials.boi]


@dataclass(frozen=True)
class TokenCounts:
    """Token counts of the texts in a folder of shards, cached in `folder`, one file a shard."""

    folder: Path
    text: TextFormat

    @classmethod
    def in_cache(
        cls, cache: Path, records: TokenizedRecords, text: TextFormat, tokenizer_digest: str
    ) -> TokenCounts:
        """Under a name that depends on the records, the tokenizer and the template."""
        parts = (records.manifest.key, tokenizer_digest, text.template)
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]
        return cls(cache / f"lengths_{key}", text)

    def path(self, shard: int) -> Path:
        """The file of a shard: int32 (rows, 2), prompt with BOS and plan with BOI."""
        return self.folder / f"lengths_{shard:05d}.npy"

    def count(self, shard: int, rows: Shard) -> np.ndarray:
        """int32 (rows, 2): the token counts of a shard's texts, from its file where there is one.

        Else they are counted and stored; RunError if that cannot be written.
        """
        stored = self._read(shard, rows)
        if stored is not None:
            return stored
        counts = np.zeros((len(rows), 2), np.int32)
        for row in range(len(rows)):
            caption, plan = rows.text(row)
            prompt = self.text.tokenizer.encode_prompt(caption, self.text.template, _UNLIMITED)
            counts[row] = len(prompt), len(self.text.encode_plan(plan))
        buffer = io.BytesIO()
        np.save(buffer, counts)
        atomic_write(self.path(shard), buffer.getvalue(), parents=True)
        return counts

    def fitting(self, records: TokenizedRecords) -> np.ndarray:
        """Bool over the rows of all shards: within both limits.

        What other processes have counted in a cache of their own is counted here. RunError if that
        cannot be written.
        """
        masks = []
        for shard, rows in enumerate(records.shards):
            counts = self.count(shard, rows)
            limits = (self.text.max_prompt_tokens, self.text.max_plan_tokens)
            masks.append((counts <= limits).all(axis=1))
        return np.concatenate(masks)

    def _read(self, shard: int, rows: Shard) -> np.ndarray | None:
        """The counts of a shard; None if the file is missing, damaged or of another size."""
        try:
            with open_file(self.path(shard)) as file:
                counts = np.load(file)
        except (InputError, OSError, ValueError, EOFError):
            return None
        return counts if counts.shape == (len(rows), 2) else None
