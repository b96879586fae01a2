"""Records of a user's data set: caption, plan, prompts and image, read by index."""

from __future__ import annotations

import ast
import base64
import binascii
import glob
import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from PIL import Image

from gotr1_jax.data.config import RecordFilesConfig, RecordsConfig
from gotr1_jax.data.files import Names, expand_names, list_names
from gotr1_jax.data.tables import ENDINGS, Row, Table, open_table
from gotr1_jax.errors import InputError
from gotr1_jax.images import decode_image, open_image
from gotr1_jax.io.hub import fetch_snapshot, is_hub_id
from gotr1_jax.io.reading import is_stray_file, open_file, parse_json
from gotr1_jax.io.storage import local_path

_DATA_URL = "data:"
# How PNG, JPEG, GIF, WebP, TIFF and BMP begin in base64. Paths of this length can begin so too,
# but have characters that base64 lacks.
_BASE64_STARTS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "SUkqA", "TU0AK", "Qk")
_SHORTEST_BASE64 = 64
_SAMPLE = 4096  # bytes at each end of a file that go into its key
# Separates this random stream from others of the same seed.
_CROP_STREAM = 0x63726F70

Crop = Literal["center", "random"]


@dataclass(frozen=True)
class Record:
    """One usable record.

    Attributes:
      index: in the whole source, from 0.
      where: its name in messages.
      caption, plan: text without blanks around it.
      prompts: the texts of each kind of `RecordsConfig.prompts`; a kind may have none.
      image: bytes of an image file, or its path.
    """

    index: int
    where: str
    caption: str
    plan: str
    prompts: tuple[tuple[str, ...], ...]
    image: bytes | Path

    def load_image(self) -> Image.Image:
        """The image as RGB, upright. Raises InputError if it cannot be read."""
        return load_image_source(self.image, self.where)


@dataclass(frozen=True)
class Unusable:
    """A record that cannot be used for training, and why."""

    index: int
    reason: str


@dataclass(frozen=True)
class RecordRow:
    """A row as it stands in its file.

    Attributes:
      index: in the whole source, from 0.
      where: its name in messages.
      image_root: folder of relative image paths.
      values: by column.
    """

    index: int
    where: str
    image_root: Path
    values: Row

    def text(self, key: str) -> str:
        """The one text under a column, without blanks around it. InputError without one."""
        found = read_texts(pick(self.values, key))
        if len(found) != 1:
            raise InputError(f"{self.where} has no text under {key!r}")
        return found[0]


Found = TypeVar("Found")


class RecordFiles(ABC, Generic[Found]):
    """The records of several files, one after another; rows are read lazily."""

    def __init__(
        self,
        files: Sequence[Path],
        image_root: str,
        required: Mapping[str, str],
        optional: Sequence[str] = (),
    ) -> None:
        """
        Args:
          files: of records.
          image_root: folder of relative image paths; empty: that of the file that names them.
          required: columns that every file has, by the fields of `data.records` that name them.
          optional: other columns to read.

        Raises InputError for a file that cannot be read, holds no record, or lacks a column.
        """
        self._tables = [open_table(path) for path in files]
        for table in self._tables:
            _check_columns(table, required)
        keys = (*required.values(), *optional)
        self._image_root = local_path(image_root) if image_root else None
        self._columns = [name for key in keys for name in (key, _head(key))]
        self._ends = np.cumsum([0, *(len(table) for table in self._tables)])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, start: int, stop: int) -> Iterator[Found | Unusable]:
        """Records start .. stop - 1, in order; those without text or image are `Unusable`."""
        for table, first in zip(self._tables, self._ends.tolist()):
            low, high = max(start - first, 0), min(stop - first, len(table))
            rows = table.rows(low, high, self._columns) if low < high else ()
            for at, row in enumerate(rows, low):
                yield self._parsed(first + at, table, at, row)

    def _parsed(self, index: int, table: Table, at: int, row: Row | InputError) -> Found | Unusable:
        if isinstance(row, InputError):
            return Unusable(index, str(row))
        root = self._image_root or table.path.parent
        try:
            return self._parse(RecordRow(index, table.where(at), root, row))
        except InputError as error:
            return Unusable(index, str(error))

    @abstractmethod
    def _parse(self, row: RecordRow) -> Found:
        """The record of a row; InputError for one that cannot be used."""


class Records(RecordFiles[Record]):
    """Records of caption, plan and image."""

    def __init__(self, files: Sequence[Path], config: RecordsConfig) -> None:
        self._config = config
        required = {name: getattr(config, name) for name in ("caption", "plan", "image")}
        required |= {f"prompts[{i}].key": kind.key for i, kind in enumerate(config.prompts)}
        super().__init__(files, config.image_root, required)

    def _parse(self, row: RecordRow) -> Record:
        config = self._config
        caption, plan = row.text(config.caption), row.text(config.plan)
        image = read_image_source(pick(row.values, config.image), row.image_root)
        if image is None:
            raise InputError(f"{row.where} has no image under {config.image!r}")
        kinds = (parse_literal(pick(row.values, kind.key)) for kind in config.prompts)
        return Record(row.index, row.where, caption, plan, tuple(map(read_texts, kinds)), image)


def load_image_source(image: bytes | Path, where: str) -> Image.Image:
    """An image of bytes or a path as RGB, upright; `where` is the name of bytes in messages.

    Raises InputError if it cannot be read.
    """
    return decode_image(io.BytesIO(image), where) if isinstance(image, bytes) else open_image(image)


def locate_square(
    width: int, height: int, crop: Crop, seed: int, index: int
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels of the largest square in an image.

    A random position is uniform and depends on seed and index alone.
    """
    side = min(width, height)
    if crop == "center":
        left, top = (width - side) // 2, (height - side) // 2
    else:
        draw = np.random.default_rng((seed, _CROP_STREAM, index))
        left = int(draw.integers(width - side + 1))
        top = int(draw.integers(height - side + 1))
    return left, top, left + side, top + side


def crop_square(image: Image.Image, size: int, crop: Crop, seed: int, index: int) -> np.ndarray:
    """The image's square, resized (bicubic, antialiased): uint8 (size, size, 3)."""
    square = image.crop(locate_square(image.width, image.height, crop, seed, index))
    # Cropped first: resizing with a box also reads pixels around it.
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))


def check_usable_share(unusable: int, total: int, limit: float, first: str) -> None:
    """InputError if `unusable` of `total` records are more than the share `limit`; `first` says why
    the first of them is."""
    if unusable > limit * total:
        raise InputError(
            f"{unusable} of {total} records cannot be used, more than the share {limit} "
            f"(data.records.unusable_limit); the first: {first}"
        )


def find_record_files(source: Names, config: RecordFilesConfig) -> tuple[Path, ...]:
    """The record files of `source`: files, wildcards, folders, ids of hub data sets.

    Folders and data sets give the files that match `config.files`. An existing path is never
    taken as an id. Raises InputError if there are none, if one is named twice, and for a data
    set that cannot be fetched.
    """
    found: list[Path] = []
    for name in list_names(source):
        folder = local_path(name) if not glob.has_magic(name) else Path(name)
        if not folder.exists() and is_hub_id(name):
            folder = fetch_snapshot(name, config.revision, config.files, "dataset")
        if not folder.is_dir():
            found += expand_names(name, "records")
            continue
        files = [
            path
            for path in sorted(folder.rglob("*"))
            if path.suffix in ENDINGS
            and not any(map(is_stray_file, path.relative_to(folder).parts))
            and path.is_file()
            and any(fnmatch(path.relative_to(folder).as_posix(), p) for p in config.files)
        ]
        if not files:
            raise InputError(
                f"{name} holds no file that fits {', '.join(config.files)} and ends in "
                f"{', '.join(ENDINGS)}; set data.records.files"
            )
        found += files
    twice = [path for path, count in Counter(found).items() if count > 1]
    if twice:
        raise InputError(f"{twice[0]} is named twice for records; name it once")
    return tuple(found)


def fingerprint_files(files: Sequence[Path]) -> str:
    """Identifies a set of files without reading them whole.

    SHA-256 over names (below their common folder), sizes, first and last bytes.
    """
    top = os.path.commonpath([path.absolute().parent for path in files])
    digest = hashlib.sha256()
    for path in files:
        with open_file(path, "records") as file:
            ends = file.read(_SAMPLE)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _SAMPLE))
            ends += file.read()
        name = os.path.relpath(path.absolute(), top)
        head = os.fsencode(f"{name}\0{size}\0")
        digest.update(head + f"{hashlib.sha256(ends).hexdigest()}\n".encode())
    return digest.hexdigest()


def pick(row: Any, key: str) -> Any:
    """The value under a key, where dots descend into objects; None if missing."""
    if not isinstance(row, dict):
        return None
    if key in row:
        return row[key]
    head, dot, rest = key.partition(".")
    return pick(parse_literal(row[head]), rest) if dot and head in row else None


def parse_literal(value: Any) -> Any:
    """The object or list that a text spells as JSON or as a Python literal; other values as they
    are."""
    text = _decoded(value)
    if text is None or text.lstrip()[:1] not in ("{", "["):
        return value
    with suppress(InputError):
        return parse_json(text, "", allow_nan=True)
    with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        return ast.literal_eval(text)
    return value


def read_texts(value: Any) -> tuple[str, ...]:
    """The texts of a value, which may be a list; blank ones are left out."""
    values = value if isinstance(value, list | tuple) else [value]
    texts = (_decoded(item) for item in values)
    return tuple(text.strip() for text in texts if text is not None and text.strip())


def _decoded(value: Any) -> str | None:
    """Text, also from UTF-8 bytes; None for anything else, and for invalid Unicode."""
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8")
        if isinstance(value, str):
            value.encode("utf-8")
            return value
    except UnicodeError:
        pass
    return None


def read_image_source(value: Any, root: Path) -> bytes | Path | None:
    """An image's bytes or path in the usual shapes of a column; None for anything else.

    Bytes; a path; base64, also as a data URL; an object with bytes or path; a list of one of
    these; an object or list as JSON in a text.
    """
    value = parse_literal(value) if isinstance(value, str) else value
    for _ in range(4):  # a list of an object of a text
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        elif isinstance(value, dict):
            keys = (key for key in ("bytes", "path", "image") if value.get(key) is not None)
            value = value.get(next(keys, ""))
    if isinstance(value, str) and value.startswith(_DATA_URL):
        return _from_base64(value.partition(",")[2])
    if isinstance(value, str) and value:
        is_encoded = len(value) >= _SHORTEST_BASE64 and value.lstrip().startswith(_BASE64_STARTS)
        decoded = _from_base64(value) if is_encoded else None
        return decoded or root / value.removeprefix("file://")
    return value if isinstance(value, bytes) and value else None


def _from_base64(text: str) -> bytes | None:
    """The bytes, where line breaks and missing padding are allowed; None if it is no base64."""
    text = "".join(text.split()).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True) or None
    except (binascii.Error, ValueError):
        return None


def _head(key: str) -> str:
    return key.partition(".")[0]


def _check_columns(table: Table, required: Mapping[str, str]) -> None:
    # The first record can lack a column that others have.
    present = table.columns(required.values())
    for field, key in required.items():
        if key not in present and _head(key) not in present:
            raise InputError(
                f"{table.path} has no column {key!r} (data.records.{field}); its columns: "
                f"{', '.join(present)}"
            )
