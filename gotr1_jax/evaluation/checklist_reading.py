"""Pieces of the files of checklists: cells, texts, tags, and faults that are left out."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import read_text

_MOST_FAULTS = 0.01


class Faults:
    """Faults of a published file: few are left out and named, many are an error."""

    def __init__(self) -> None:
        self.found: list[InputError] = []
        self._number = 0

    @contextmanager
    def one(self, where: str) -> Iterator[str]:
        """A question or caption, whose InputError is kept."""
        self._number += 1
        try:
            yield where
        except InputError as error:
            self.found.append(error)

    def notes(self) -> tuple[str, ...]:
        """What was left out. InputError, the first one, where that is more than 1 % of all."""
        if len(self.found) > _MOST_FAULTS * self._number:
            raise self.found[0]
        if not self.found:
            return ()
        return (f"Left out as faulty: {'; '.join(map(str, self.found))}.",)


def table_rows(path: Path) -> Iterator[tuple[int, dict[str, str | None]]]:
    """(line, cells by column) of a table; InputError where it is none."""
    try:
        table = csv.DictReader(io.StringIO(read_text(path, "questions"), newline=""))
        for row in table:
            yield table.line_num, row
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as a table: {error}") from error


def table_cell(row: Mapping[str, str | None], name: str, path: Path, line: int) -> str:
    """A cell of a table of R2I-Bench; InputError where it is missing or empty."""
    if name not in row:
        raise InputError(f"{path} has no column {name}; give R2I-Bench's data as it is published")
    value = (row[name] or "").strip()
    if not value:
        raise InputError(f"{path}, line {line} has nothing under {name}")
    return value


def text_of(record: Mapping[str, Any], name: str, where: str) -> str:
    """The text under a key without blanks around it; InputError where there is none."""
    value = record.get(name)
    if not (isinstance(value, str) and value.strip()):
        raise InputError(f"{where} has no text under {name!r}")
    return value.strip()


def stem_of(record: Mapping[str, Any], index: int, where: str) -> str:
    """The caption's id, with which its images' names begin; without one its index."""
    value = record.get("id", index)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise InputError(f"{where}: 'id' is {value!r}; use a text or a whole number")
    return str(value)


def tags_of(record: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The list under "tags", each once; empty where it is missing, InputError for anything else."""
    tags = record.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(t, str) and t.strip() for t in tags):
        raise InputError(f"{where}: 'tags' must be a list of texts")
    return tuple(dict.fromkeys(tags))


def texts_of(value: Any) -> list[str]:
    """A list of texts without blanks around them; empty for anything else."""
    good = isinstance(value, list) and all(isinstance(text, str) for text in value)
    return [text.strip() for text in value] if good else []
