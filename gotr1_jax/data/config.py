"""Columns, prompts and crop of the records of a user's data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gotr1_jax.errors import InputError


@dataclass(frozen=True)
class PromptsConfig:
    """One kind of prompts, under one column of the records."""

    # Column; a dot descends into an object: augmented_prompts.tags. The value is text, a list of
    # texts, or either one as JSON in a text.
    key: str
    # Use of a list: one of its texts; all, joined; or a random number of the first ones, joined.
    take: Literal["one", "all", "some"] = "one"
    joined_by: str = ", "


@dataclass(frozen=True)
class RecordsConfig:
    """Columns of records, and the crop of their images.

    Columns are the keys of a .jsonl line or the columns of a .parquet file. In .tar shards
    (WebDataset) they are the keys of a sample's .json, the endings of its files (txt, jpg), and
    "image" for the file with an image ending. A dot descends into an object, also into one that
    is JSON in a text.
    """

    caption: str = "caption"
    plan: str = "plan"
    # Bytes of a file, an object with bytes or path (as the `datasets` library writes it), a data
    # URL, or a path.
    image: str = "image"
    # Folder of relative image paths; empty: the folder of the file that names them.
    image_root: str = ""
    # Prompts, sampled in every epoch: first a kind, then one of it; empty: the caption. The
    # caption also replaces a prompt that a record lacks or that is too long.
    prompts: tuple[PromptsConfig, ...] = ()
    # Files to read of a folder or a hub data set, among .jsonl, .parquet and .tar files.
    files: tuple[str, ...] = ("*.jsonl", "*.parquet", "*.tar")
    # Branch, tag or commit of a hub data set; null: main.
    revision: str | None = None
    # The square of an image to keep: its middle, or a random place, fixed for each record.
    crop: Literal["center", "random"] = "center"
    crop_seed: int = 0
    # Records without text or a readable image, and those over the token limits of `data`, are left
    # out; larger shares of them than these are an error.
    unusable_limit: float = 0.01
    too_long_limit: float = 0.1
    # Records of one file of image tokens: the unit of restarts and of sharing between hosts.
    shard_records: int = 4096

    def check(self) -> None:
        for name in ("caption", "plan", "image"):
            if not getattr(self, name):
                raise InputError(f"data.records.{name} is empty; name a column")
        for name in ("unusable_limit", "too_long_limit"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"data.records.{name} is {getattr(self, name)}; use 0 to 1")
        if self.shard_records < 1:
            raise InputError(f"data.records.shard_records is {self.shard_records}; use 1 or more")
        if not self.files:
            raise InputError("data.records.files is empty; give patterns, like *.parquet")
        keys = [prompts.key for prompts in self.prompts]
        if len(set(keys)) < len(keys) or not all(keys):
            raise InputError(f"data.records.prompts has the keys {keys}; give each once")

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns that records must have; prompts are not always there."""
        return (self.caption, self.plan, self.image)
