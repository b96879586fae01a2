"""Random access to the rows of record files: JSON lines, parquet, tar shards.

A row is a dict by column name. Opening a file indexes its rows; `rows` reads some of them.
"""

from __future__ import annotations

import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from gotr1_jax.data.files import open_parquet
from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import is_stray_file, open_file, parse_json, parse_json_object

Row = dict[str, Any]

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
IMAGE = "image"  # the column of a tar sample's image
_JSON = ".json"


class Table(ABC):
    """Rows of one file."""

    path: Path
    row_name = "row"

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def rows(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Row | InputError]:
        """Rows start .. stop - 1, with at least those of `columns` that exist.

        A row that alone cannot be read is the error that says why.
        """

    def columns(self, wanted: Collection[str]) -> tuple[str, ...]:
        """Names of all columns, or of enough rows to have those of `wanted` that exist.

        A dot in a wanted name may also descend into an object under the part before it.
        """
        found: dict[str, None] = {}
        missing = set(wanted)
        for row in self.rows(0, len(self), ()):
            if isinstance(row, dict):
                found |= dict.fromkeys(row)
                missing = {n for n in missing if not {n, n.partition(".")[0]} & row.keys()}
            if not missing:
                break
        return tuple(found)

    def where(self, index: int) -> str:
        """The name of a row in messages."""
        return f"{self.path}, {self.row_name} {index + 1}"


class JsonLines(Table):
    """UTF-8 JSON objects, one a line; blank lines are skipped. Keeps 8 bytes a row in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_file(path, "records") as file:
            self._starts = np.fromiter(_line_starts(file), np.int64)

    def __len__(self) -> int:
        return len(self._starts)

    def rows(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Row | InputError]:
        with open_file(self.path, "records") as file:
            for index in range(start, stop):
                file.seek(int(self._starts[index]))
                try:
                    yield parse_json_object(file.readline(), self.where(index), allow_nan=True)
                except InputError as error:
                    yield error


def _line_starts(file: BinaryIO) -> Iterator[int]:
    at = 3 if file.read(3) == b"\xef\xbb\xbf" else 0
    file.seek(at)
    for line in file:
        if line.strip():
            yield at
        at += len(line)


class Parquet(Table):
    """Rows of a parquet file; `rows` keeps a few rows of one row group in memory."""

    _ROWS_AT_ONCE = 64

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_parquet(path, "records") as file:
            counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            self._columns = tuple(file.schema_arrow.names)
        self._ends = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def columns(self, wanted: Collection[str]) -> tuple[str, ...]:
        return self._columns

    def rows(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Row | InputError]:
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
                if low < high:
                    yield from self._values(batch.slice(low, high - low), at + low)
                at += len(batch)

    def _values(self, batch: Any, first: int) -> Iterator[Row | InputError]:
        try:
            yield from batch.to_pylist()
        except UnicodeDecodeError:  # in one of the rows
            for i in range(len(batch)):
                try:
                    yield batch.slice(i, 1).to_pylist()[0]
                except UnicodeDecodeError:
                    yield InputError(f"{self.where(first + i)} holds text that is not UTF-8")


class Tar(Table):
    """Samples of an uncompressed tar shard (WebDataset): adjacent files with one stem.

    Keeps 17 bytes a file in memory.
    """

    row_name = "sample"

    def __init__(self, path: Path) -> None:
        self.path = path
        first: list[int] = []
        offsets: list[int] = []
        sizes: list[int] = []
        kinds: list[int] = []
        self._endings: list[str] = []
        last = None
        seen: set[int] = set()  # hashes of the stems so far, kept while the file is opened
        for member in _members(path):
            stem, ending = _split_name(member.name)
            if stem != last:
                if hash(stem) in seen:
                    raise InputError(
                        f"{path}: the files of the sample {stem} are not next to each other; "
                        "sort the tar by name (tar --sort=name)"
                    )
                seen.add(hash(stem))
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

    def rows(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Row | InputError]:
        with open_file(self.path, "records") as file:
            for index in range(start, stop):
                yield self._row(index, file)

    def _row(self, index: int, file: BinaryIO) -> Row | InputError:
        row: Row = {}
        texts: Row = {}  # of the sample's .json
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
                try:
                    found = parse_json(data, f"{self.where(index)}: its {_JSON}", allow_nan=True)
                except InputError as error:
                    return error
                texts = found if isinstance(found, dict) else {}
        return {**texts, **row}


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The files of a tar that can be data, in order; reads headers only.

    InputError for a tar that does not end with its end mark: it is cut off, or damaged there.
    """
    try:
        with open_file(path, "records") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.isfile() and not _is_stray_member(member.name):
                    yield member
                archive.members = []  # type: ignore[attr-defined] # keeps no list of all members
            _check_end(path, file, archive.offset)
    # A damaged header raises whatever its fields lead to.
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise InputError(
            f"cannot read records from {path}: {error}; it must be a tar that is not compressed"
        ) from error


def _check_end(path: Path, file: BinaryIO, at: int) -> None:
    """Raise InputError unless zeros follow from `at` on, where the last file of a tar ends.

    `tarfile` itself takes any header that it cannot read, and the end of the file, for the end.
    """
    file.seek(at)
    if len(block := file.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
        raise InputError(f"{path} is cut off at byte {at + len(block)}: a tar ends with zeros")
    while block:
        if block.strip(b"\0"):
            raise InputError(
                f"{path} goes on with other data at byte {at}, where its files end: it is damaged, "
                "or several tars were joined; write it again"
            )
        at += len(block)
        block = file.read(2**20)


def _is_stray_member(name: str) -> bool:
    return any(part != ".." and is_stray_file(part) for part in PurePosixPath(name).parts)


def _split_name(name: str) -> tuple[str, str]:
    """("shard/0001", ".seg.png") of "shard/0001.seg.png", as WebDataset splits names."""
    path = PurePosixPath(name)
    stem, dot, ending = path.name.partition(".")
    return str(path.parent / stem), (dot + ending).lower()


_KINDS: dict[str, Callable[[Path], Table]] = {".jsonl": JsonLines, ".parquet": Parquet, ".tar": Tar}
ENDINGS = tuple(_KINDS)
"""Endings of record files."""


def open_table(path: Path) -> Table:
    """The rows of a file, by its ending. Raises InputError if it cannot be read or is empty."""
    if path.suffix not in _KINDS:
        raise InputError(f"{path} is no record file: its name must end in {', '.join(ENDINGS)}")
    table = _KINDS[path.suffix](path)
    if not len(table):
        raise InputError(f"{path} holds no record")
    return table
