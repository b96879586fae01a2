"""Files of records, read by row number without being held: JSON lines, parquet, tar shards.

A row is a dict by column name. Opening a file finds where its rows are; `rows` reads some of them.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

import numpy as np

from gotr1_jax.data.parquet import open_parquet
from gotr1_jax.errors import InputError

Row = dict[str, Any]

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
IMAGE = "image"  # the column of a tar sample's image
_JSON = ".json"


class Table(Protocol):
    """Rows of one file."""

    path: Path

    def __len__(self) -> int: ...
    def columns(self) -> tuple[str, ...]:
        """Column names: of all rows, or of the first where every row has its own."""
        ...

    def rows(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Row]:
        """Rows start .. stop - 1, with at least those of `columns` that they have."""
        ...

    def where(self, index: int) -> str:
        """Names a row in a message."""
        ...


class JsonLines:
    """Objects, one a line, in UTF-8; blank lines are no rows. Holds 8 bytes a row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = _reading(path, lambda file: np.fromiter(_line_starts(file), np.int64))

    def __len__(self) -> int:
        return len(self._starts)

    def columns(self) -> tuple[str, ...]:
        return tuple(next(self.rows(0, 1, ())))

    def rows(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Row]:
        with open(self.path, "rb") as file:
            for index in range(start, stop):
                file.seek(int(self._starts[index]))
                yield self._row(index, file.readline())

    def where(self, index: int) -> str:
        return f"{self.path}, row {index + 1}"

    def _row(self, index: int, line: bytes) -> Row:
        try:
            row = json.loads(line)
        except ValueError as error:  # of JSON, or of UTF-8
            raise InputError(f"{self.where(index)} is not JSON in UTF-8: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{self.where(index)} is not a JSON object")
        return row


def _line_starts(file: BinaryIO) -> Iterator[int]:
    at = 3 if file.read(3) == b"\xef\xbb\xbf" else 0
    file.seek(at)
    for line in file:
        if line.strip():
            yield at
        at += len(line)


class Parquet:
    """Rows of a parquet file; a few rows of one row group are held at a time."""

    _ROWS_AT_ONCE = 64

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_parquet(path, "records") as file:
            counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            self._columns = tuple(file.schema_arrow.names)
        self._ends = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def columns(self) -> tuple[str, ...]:
        return self._columns

    def rows(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Row]:
        first = int(np.searchsorted(self._ends, start, side="right")) - 1
        last = int(np.searchsorted(self._ends, stop, side="left"))
        at = int(self._ends[first])
        with open_parquet(self.path, "records") as file:
            batches = file.iter_batches(
                self._ROWS_AT_ONCE,
                row_groups=list(range(first, last)),
                columns=[name for name in columns if name in self._columns],
            )
            for batch in batches:
                low, high = max(start - at, 0), min(stop - at, len(batch))
                at += len(batch)
                if low < high:
                    yield from batch.slice(low, high - low).to_pylist()

    def where(self, index: int) -> str:
        return f"{self.path}, row {index + 1}"


class Tar:
    """Samples of an uncompressed tar shard: neighbouring files that differ in their ending only.

    Holds 17 bytes a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        first: list[int] = []
        offsets: list[int] = []
        sizes: list[int] = []
        kinds: list[int] = []
        self._endings: list[str] = []
        last = None
        for member in _members(path):
            stem, ending = _split_name(member.name)
            if stem != last:
                first.append(len(offsets))
                last = stem
            if ending not in self._endings:
                self._endings.append(ending)
            offsets.append(member.offset_data)
            sizes.append(member.size)
            kinds.append(self._endings.index(ending))
        self._first = np.asarray([*first, len(offsets)], np.int64)
        self._offsets, self._sizes = np.asarray(offsets, np.int64), np.asarray(sizes, np.int64)
        self._kinds = np.asarray(kinds, np.uint8 if len(self._endings) < 256 else np.int32)

    def __len__(self) -> int:
        return len(self._first) - 1

    def columns(self) -> tuple[str, ...]:
        return tuple(next(self.rows(0, 1, ())))

    def rows(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Row]:
        with open(self.path, "rb") as file:
            for index in range(start, stop):
                yield self._row(index, file)

    def where(self, index: int) -> str:
        return f"{self.path}, sample {index + 1}"

    def _row(self, index: int, file: BinaryIO) -> Row:
        row: Row = {}
        spoken: Row = {}  # what the sample's .json holds
        for member in range(int(self._first[index]), int(self._first[index + 1])):
            ending = self._endings[self._kinds[member]]
            file.seek(int(self._offsets[member]))
            data = file.read(int(self._sizes[member]))
            if len(data) < self._sizes[member]:
                raise InputError(f"{self.where(index)} is cut off: the file ends within it")
            row[ending[1:]] = data
            if ending in IMAGE_ENDINGS:
                row.setdefault(IMAGE, data)
            elif ending == _JSON:
                spoken = self._object(index, data)
        return {**spoken, **row}

    def _object(self, index: int, data: bytes) -> Row:
        try:
            found = json.loads(data)
        except ValueError as error:
            raise InputError(f"{self.where(index)}: its {_JSON} is no JSON: {error}") from error
        return found if isinstance(found, dict) else {}


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The files of a tar, in order; only their headers are read."""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isfile():
                    yield member
                archive.members = []  # type: ignore[attr-defined] # it would keep all of them
    except FileNotFoundError as error:
        raise InputError(f"cannot read records from {path}: {error.strerror}") from error
    except (tarfile.TarError, OSError) as error:
        raise InputError(
            f"cannot read records from {path}: {error}; it must be a tar that is not compressed"
        ) from error


def _split_name(name: str) -> tuple[str, str]:
    """("shard/0001", ".seg.png") of "shard/0001.seg.png", as WebDataset cuts names."""
    path = PurePosixPath(name)
    stem, dot, ending = path.name.partition(".")
    return str(path.parent / stem), (dot + ending).lower()


_KINDS: dict[str, Callable[[Path], Table]] = {".jsonl": JsonLines, ".parquet": Parquet, ".tar": Tar}
ENDINGS = tuple(_KINDS)
"""Names of files that hold records end so."""


def open_table(path: Path) -> Table:
    """The rows of a file, by its ending. Raises InputError for what cannot be read or is empty."""
    if path.suffix not in _KINDS:
        raise InputError(f"{path} is no file of records: its name must end in {', '.join(ENDINGS)}")
    table = _KINDS[path.suffix](path)
    if not len(table):
        raise InputError(f"{path} holds no record")
    return table


def _reading(path: Path, read: Callable[[BinaryIO], Any]) -> Any:
    try:
        with open(path, "rb") as file:
            return read(file)
    except OSError as error:
        raise InputError(f"cannot read records from {path}: {error.strerror}") from error
