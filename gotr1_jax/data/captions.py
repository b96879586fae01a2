"""Lists of captions from files: text, JSON lines, parquet."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gotr1_jax.data.files import Names, expand_names, open_parquet
from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import parse_json_object, read_lines

# Columns of captions if the user names none; the first that exists counts.
_CAPTION_KEYS = ("prompt", "caption")
_SHOWN = 5  # unusable captions that a warning names

_log = logging.getLogger(__name__)


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


def read_captions(
    source: Names,
    column: str = "",
    count: int | None = None,
    *,
    check: Callable[[str], object] = lambda _: None,
    unusable_limit: float = 0.0,
) -> tuple[str, ...]:
    """Captions of one file or several, names with wildcards included, one after the other.

    Files end in .jsonl or .parquet, with captions under `column` (empty: "prompt", else
    "caption"), or are text with a caption a line; see `iter_captions`. Those without text, with
    control characters, and those that `check` refuses with an InputError are left out, counted
    and named in a warning. `count` selects that many of the others, spread evenly.

    Raises InputError for what cannot be read, for a larger share of unusable captions than
    `unusable_limit`, and for too few.
    """
    found: list[str] = []
    unusable: list[str] = []
    for path in expand_names(source, "captions"):
        lines = _parquet_captions if path.suffix == ".parquet" else _file_captions
        empty = True
        for where, caption in lines(path, column):
            empty = False
            if (problem := _problem(where, caption, check)) is None:
                found.append(str(caption))
            else:
                unusable.append(problem)
        if empty:
            raise InputError(f"{path} holds no caption")
    total = len(found) + len(unusable)
    if len(unusable) > unusable_limit * total:
        more = f" ({len(unusable)} of {total} captions are unusable)" if len(unusable) > 1 else ""
        raise InputError(unusable[0] + more)
    if unusable:
        shown = "; ".join(unusable[:_SHOWN]) + ("; …" if len(unusable) > _SHOWN else "")
        _log.warning("left out %d of %d captions: %s", len(unusable), total, shown)
    if count is None:
        return tuple(found)
    if count > len(found):
        raise InputError(f"{count} captions are requested of {source}, which holds {len(found)}")
    return tuple(found[i * len(found) // count] for i in range(count))


def _problem(where: str, caption: str | InputError, check: Callable[[str], object]) -> str | None:
    """Why a caption cannot be used, naming its place; None if it can."""
    if isinstance(caption, InputError):
        return str(caption)
    try:
        check_characters(caption)
        check(caption)
    except InputError as error:
        return f"{where}: {error}"
    return None


def check_characters(caption: str) -> None:
    """InputError for control characters but tabs and line ends, and for invalid Unicode."""
    wrong = next((c for c in caption if unicodedata.category(c) in ("Cc", "Cs")
                  and c not in "\t\n\r"), None)  # fmt: skip
    if wrong is not None:
        raise InputError(f"the caption holds the control character U+{ord(wrong):04X}")


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


def _file_captions(path: Path, column: str) -> Iterator[tuple[str, str | InputError]]:
    """(place, caption or why there is none) of the lines of a file of text or JSON."""
    for number, line in read_lines(path, "captions"):
        where = f"{path}, line {number}"
        try:
            yield where, _json_caption(where, line, column) if path.suffix == ".jsonl" else line
        except InputError as error:
            yield where, error


def _parquet_captions(path: Path, column: str) -> Iterator[tuple[str, str | InputError]]:
    """As `_file_captions`, of the rows of a parquet file."""
    row = 0
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
                row += 1
                where = f"{path}, row {row}"
                if isinstance(text, str) and text.strip():
                    yield where, text.strip()
                else:
                    yield where, InputError(f"{where} has no text under {key!r}")
