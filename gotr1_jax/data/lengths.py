"""Which records fit into a row: token counts of captions and plans, kept on disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gotr1_jax.data.pipeline import TextLimits
from gotr1_jax.data.shards import Shard, TokenizedRecords, write_file
from gotr1_jax.errors import InputError
from gotr1_jax.tokenizers.janus import TextTokenizer

_ENDLESS = 2**31


@dataclass(frozen=True)
class Spelling:
    """How texts become tokens; `name` tells one tokenizer from another."""

    codec: TextTokenizer
    template: str
    name: str


@dataclass(frozen=True)
class Lengths:
    """Token counts of a folder of shards, a file a shard, under `folder`."""

    folder: Path
    spelling: Spelling

    @classmethod
    def beside(cls, cache: Path, records: TokenizedRecords, spelling: Spelling) -> Lengths:
        """In the cache, under a name that hangs on the records and on the spelling."""
        parts = (records.manifest.key, spelling.name, spelling.template)
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]
        return cls(cache / f"lengths_{key}", spelling)

    def path(self, shard: int) -> Path:
        """Where the counts of a shard lie."""
        return self.folder / f"lengths_{shard:05d}.npy"

    def count(self, shard: int, rows: Shard) -> None:
        """Count the tokens of a shard's texts, unless that was done.

        Kept are int32 (rows, 2): prompt with BOS, plan with BOI. Raises RunError where they
        cannot be written.
        """
        if _read(self.path(shard), len(rows)) is not None:
            return
        codec, template = self.spelling.codec, self.spelling.template
        counts = np.zeros((len(rows), 2), np.int32)
        for row in range(len(rows)):
            caption, plan = rows.text(row)
            prompt = codec.encode_prompt(caption, template, _ENDLESS)
            counts[row] = len(prompt), len(codec.encode_plan(plan)) + 1
        write_file(self.path(shard), lambda part: _save(part, counts))

    def fitting(self, records: TokenizedRecords, limits: TextLimits) -> np.ndarray:
        """True for the rows that fit, of all shards. Raises InputError where none was counted."""
        masks = []
        for shard, rows in enumerate(records.shards):
            counts = _read(self.path(shard), len(rows))
            if counts is None:
                raise InputError(
                    f"{self.path(shard)} is not there: does data.cache_dir lie on storage that all "
                    "processes share?"
                )
            masks.append((counts <= (limits.max_prompt_tokens, limits.max_plan_tokens)).all(axis=1))
        return np.concatenate(masks)


def _save(path: Path, counts: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, counts)


def _read(path: Path, rows: int) -> np.ndarray | None:
    try:
        counts = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return counts if counts.shape == (rows, 2) else None
