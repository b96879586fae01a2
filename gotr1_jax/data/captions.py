"""Lists of captions from files: text, JSON lines, parquet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gotr1_jax.data.files import Names, expand_names, open_parquet
from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import parse_json_object, read_lines

# Columns of captions if the user names none; the first that exists counts.
_CAPTION_KEYS = ("prompt", "caption")


@dataclass(frozen=True)
class CaptionLine:
    """A caption with its place in a file.

    Attributes:
      text: the caption.
      number: of its line, from 1.
      line: the whole line without blanks around it; in .jsonl the object as it was written.
    """

    text: str
    number: int
    line: str


def read_captions(source: Names, column: str = "", count: int | None = None) -> tuple[str, ...]:
    """Captions of one file or several, names with wildcards included, one after the other.

    Files end in .jsonl or .parquet, with captions under `column` (empty: "prompt", else
    "caption"), or are text with a caption a line; see `iter_captions`. `count` selects that many,
    spread evenly. Raises InputError for what cannot be read, and for too few.
    """
    found: list[str] = []
    for path in expand_names(source, "captions"):
        if path.suffix == ".parquet":
            found += _parquet_captions(path, column)
        else:
            found += [entry.text for entry in iter_captions(path, column=column)]
    if count is None:
        return tuple(found)
    if count > len(found):
        raise InputError(f"{count} captions are requested of {source}, which holds {len(found)}")
    return tuple(found[i * len(found) // count] for i in range(count))


def iter_captions(
    path: str | os.PathLike[str], json_lines: bool | None = None, column: str = ""
) -> Iterator[CaptionLine]:
    """Captions of a UTF-8 file in order, read lazily: one a line, or one JSON object a line with
    the key `column` (empty: "prompt", else "caption").

    Accepts any line ending, a byte order mark, blank lines and a missing final newline.
    `json_lines` selects the format; None goes by the ending .jsonl.
    Raises InputError, naming file and line, for what cannot be read, and for an empty file.
    """
    path = Path(path)
    if json_lines is None:
        json_lines = path.suffix == ".jsonl"
    found = False
    for number, line in read_lines(path, "captions"):
        found = True
        text = _json_caption(f"{path}, line {number}", line, column) if json_lines else line
        yield CaptionLine(text, number, line)
    if not found:
        raise InputError(f"{path} holds no caption; write one a line")


def _json_caption(where: str, line: str, column: str) -> str:
    record = parse_json_object(line, where)
    wanted = (column,) if column else _CAPTION_KEYS
    caption = next((record[key] for key in wanted if key in record), None)
    if not isinstance(caption, str) or not caption.strip():
        keys = " or ".join(map(repr, wanted))
        raise InputError(f"{where} has no text under {keys}; its keys: {', '.join(record)}")
    return caption.strip()


def _parquet_captions(path: Path, column: str) -> list[str]:
    found: list[str] = []
    with open_parquet(path, "captions") as file:
        present = file.schema_arrow.names
        wanted = (column,) if column else _CAPTION_KEYS
        key = next((name for name in wanted if name in present), None)
        if key is None:
            raise InputError(
                f"{path} has no column {' or '.join(map(repr, wanted))} for captions; it has "
                f"{', '.join(present)}"
            )
        for batch in file.iter_batches(columns=[key]):
            for text in batch.column(0).to_pylist():
                if not isinstance(text, str) or not text.strip():
                    raise InputError(f"{path}, row {len(found) + 1} has no text under {key!r}")
                found.append(text.strip())
    if not found:
        raise InputError(f"{path} holds no caption: it has no row")
    return found
