"""Columns, prompts and crop of the records of a user's data set."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from gotr1_jax.config import CheckedConfig
from gotr1_jax.errors import ConfigError
from gotr1_jax.limits import FilledText, Fraction, Range, Seed


@dataclass(frozen=True)
class PromptsConfig(CheckedConfig):
    """One kind of prompts, under one column of the records."""

    # Column of the prompts; a dot descends into an object: augmented_prompts.tags. The value is
    # text, a list of texts, or either one as JSON in a text.
    key: FilledText
    # Use of a list: one of its texts; all, joined; or a random number of the first ones, joined.
    take: Literal["one", "all", "some"] = "one"
    # What stands between joined texts.
    joined_by: str = ", "


@dataclass(frozen=True, kw_only=True)
class RecordFilesConfig(CheckedConfig):
    """The files of a data set, and where the images are that they name."""

    # Folder of relative image paths; empty: the folder of the file that names them.
    image_root: str = ""
    # Files to read of a folder or a hub data set, among .jsonl, .parquet and .tar files.
    files: tuple[FilledText, ...] = ("*.jsonl", "*.parquet", "*.tar")
    # Branch, tag or commit of a hub data set; null: main.
    revision: str | None = None
    # Records without text or a readable image are left out; a larger share of them than this is
    # an error.
    unusable_limit: Fraction = 0.01

    def check(self) -> None:
        """Patterns of files."""
        if not self.files:
            raise ConfigError("files is empty; give patterns, like *.parquet")


@dataclass(frozen=True)
class RecordsConfig(RecordFilesConfig):
    """Columns of records, and the crop of their images.

    Columns are the keys of a .jsonl line or the columns of a .parquet file. In .tar shards
    (WebDataset) they are the keys of a sample's .json, the endings of its files (txt, jpg), and
    "image" for the file with an image ending. A dot descends into an object, also into one that
    is JSON in a text.
    """

    may_change: ClassVar[Collection[str]] = ("unusable_limit", "too_long_limit")

    # Column of captions.
    caption: FilledText = "caption"
    # Column of plans, texts with boxes.
    plan: FilledText = "plan"
    # Column of images: bytes of a file, an object with bytes or path (as the `datasets` library
    # writes it), a data URL, or a path.
    image: FilledText = "image"
    # Prompts, sampled in every epoch: first a kind, then one of it; empty: the caption. The
    # caption also replaces a prompt that a record lacks or that is too long.
    prompts: tuple[PromptsConfig, ...] = ()
    # The square of an image to keep: its middle, or a random place, fixed for each record.
    crop: Literal["center", "random"] = "center"
    # Seed of the random places.
    crop_seed: Seed = 0
    # Records over the token limits of `data` are left out too; a larger share of them than this is
    # an error.
    too_long_limit: Fraction = 0.1
    # Records of one file of image tokens: the unit of restarts and of sharing between hosts.
    shard_records: Annotated[int, Range("[1, 1048576]")] = 4096

    def check(self) -> None:
        """No prompts twice."""
        super().check()
        keys = [prompts.key for prompts in self.prompts]
        if len(set(keys)) < len(keys):
            raise ConfigError(f"prompts has the keys {keys}; give each once")


@dataclass(frozen=True)
class QuestionRecordsConfig(RecordFilesConfig):
    """Columns of records of image, question and answer; files as of `RecordsConfig`."""

    may_change: ClassVar[Collection[str]] = ("unusable_limit",)

    # Column of questions.
    question: FilledText = "question"
    # Column of answers.
    answer: FilledText = "answer"
    # Column of images, in the forms that `gotr1 train sft` takes, one or a list that is shown in
    # its order; a record may have none, and is then about text alone. Null: no record has one.
    image: FilledText | None = "image"
    # Column of a text in front of the images, which a record may have.
    instruction: FilledText = "instruction"
    # Column of a system message, which a record may have.
    system: FilledText = "system"
