"""Random-access sources: images with captions and plans, and lists of captions."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from gotr1_jax.data.files import Names, expand
from gotr1_jax.data.parquet import open_parquet
from gotr1_jax.errors import InputError

# Where captions stand unless the user says so; the first that is there counts.
_CAPTION_KEYS = ("prompt", "caption")


class ImageSource(Protocol):
    """Images by index. `key` names the content: equal keys give equal images."""

    @property
    def key(self) -> str: ...
    def __len__(self) -> int: ...
    def image(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3) RGB, the same size for every index."""
        ...


class PlannedImageSource(ImageSource, Protocol):
    """Images with the caption and the plan that belong to them."""

    def text(self, index: int) -> tuple[str, str]:
        """(caption, plan)."""
        ...


@dataclass(frozen=True)
class CaptionLine:
    """A caption with its place in a file.

    Attributes:
      text: the caption.
      number: of its line, from 1.
      line: the whole line without blanks around it, for .jsonl the object as it was written.
    """

    text: str
    number: int
    line: str


def read_captions(source: Names, column: str = "", count: int | None = None) -> tuple[str, ...]:
    """Captions of one file or several, of names with wildcards too, one after the other.

    Files end in .jsonl or .parquet, whose captions stand under `column` (empty: "prompt", else
    "caption"), or are text with a caption a line; see `iter_captions`. `count` takes that many,
    spread evenly over the whole. Raises InputError for what cannot be read, and for too few.
    """
    found: list[str] = []
    for path in expand(source, "captions"):
        read = _parquet_captions if path.suffix == ".parquet" else iter_captions
        found += [entry.text for entry in read(path, column=column)]
    if count is None:
        return tuple(found)
    if count > len(found):
        raise InputError(f"{count} captions are wanted of {source}, which holds {len(found)}")
    return tuple(found[i * len(found) // count] for i in range(count))


def iter_captions(
    path: str | os.PathLike[str], json_lines: bool | None = None, column: str = ""
) -> Iterator[CaptionLine]:
    """Captions of a file in UTF-8, in order: one a line, or one JSON object a line with the key
    `column` (empty: "prompt", else "caption"). The file is read as it is asked for, not held.

    Any line ending, a byte order mark, blank lines and a missing final newline are taken.
    `json_lines` says which of the two it is; None goes by the ending .jsonl.
    Raises InputError, naming file and line, for what cannot be read, and for an empty file.
    """
    path = Path(path)
    if json_lines is None:
        json_lines = path.suffix == ".jsonl"
    found = False
    for number, line in read_lines(path, "captions"):
        found = True
        text = _json_caption(path, number, line, column) if json_lines else line
        yield CaptionLine(text, number, line)
    if not found:
        raise InputError(f"{path} holds no caption; write one a line")


def _parquet_captions(path: Path, column: str = "") -> Iterator[CaptionLine]:
    """As `iter_captions`; numbers are those of rows, from 1."""
    with open_parquet(path, "captions") as file:
        present = file.schema_arrow.names
        wanted = _CAPTION_KEYS if not column else (column,)
        key = next((name for name in wanted if name in present), None)
        if key is None:
            raise InputError(
                f"{path} has no column {' or '.join(map(repr, wanted))} for captions; it has "
                f"{', '.join(present)}"
            )
        number = 0
        for batch in file.iter_batches(columns=[key]):
            for text in batch.column(0).to_pylist():
                number += 1
                if not isinstance(text, str) or not text.strip():
                    raise InputError(f"{path}, row {number} has no text under {key!r}")
                yield CaptionLine(text.strip(), number, text)
        if not number:
            raise InputError(f"{path} holds no caption: it has no row")


def read_lines(path: Path, what: str) -> Iterator[tuple[int, str]]:
    """(number from 1, text without blanks around it) of the lines that are not blank.

    `what` says in an error what the file was to hold.
    """
    number = 0
    try:
        # Not splitlines(): it also cuts at characters that may stand inside a caption.
        with open(path, encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, line.strip()
    except OSError as error:
        raise InputError(f"cannot read {what} from {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (after line {number}); save it as UTF-8"
        ) from error


def _json_caption(path: Path, number: int, line: str, column: str) -> str:
    where = f"{path}, line {number}"
    wanted = (column,) if column else _CAPTION_KEYS
    keys = " or ".join(map(repr, wanted))
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error.msg}") from error
    if not isinstance(record, dict):
        raise InputError(f"{where} is not an object with the key {keys}")
    caption = next((record[key] for key in wanted if key in record), None)
    if not isinstance(caption, str) or not caption.strip():
        raise InputError(f"{where} has no text under {keys}; its keys: {', '.join(record)}")
    return caption.strip()
