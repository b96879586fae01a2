"""Records of a user's data set: caption, plan, prompts and image, read by index."""

from __future__ import annotations

import ast
import base64
import binascii
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from gotr1_jax.data.config import RecordsConfig
from gotr1_jax.data.files import Names, expand_names, list_names
from gotr1_jax.data.tables import ENDINGS, Row, Table, open_table
from gotr1_jax.errors import InputError
from gotr1_jax.images import decode_image, open_image
from gotr1_jax.io.hub import fetch_snapshot, is_hub_id

_DATA_URL = "data:"
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
        if isinstance(self.image, bytes):
            return decode_image(io.BytesIO(self.image), self.where)
        return open_image(self.image)


@dataclass(frozen=True)
class Unusable:
    """A record that cannot be used for training, and why."""

    index: int
    reason: str


class Records:
    """The records of several files, one after another; rows are read lazily.

    Raises InputError for a file that cannot be read, holds no record, or lacks a column.
    """

    def __init__(self, files: Sequence[Path], config: RecordsConfig) -> None:
        self._config = config
        self._tables = [open_table(path) for path in files]
        for table in self._tables:
            _check_columns(table, config)
        self._ends = np.cumsum([0, *(len(table) for table in self._tables)])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, start: int, stop: int) -> Iterator[Record | Unusable]:
        """Records start .. stop - 1, in order; those without text or image are `Unusable`."""
        columns = [name for key in self._keys() for name in (key, _head(key))]
        for table, first in zip(self._tables, self._ends.tolist()):
            low, high = max(start - first, 0), min(stop - first, len(table))
            for at, row in enumerate(table.rows(low, high, columns) if low < high else (), low):
                yield self._record(first + at, table, table.where(at), row)

    def _keys(self) -> tuple[str, ...]:
        return (*self._config.keys, *(prompts.key for prompts in self._config.prompts))

    def _record(self, index: int, table: Table, where: str, row: Row) -> Record | Unusable:
        config = self._config
        texts = []
        for key in (config.caption, config.plan):
            found = _texts(pick(row, key))
            if len(found) != 1:
                return Unusable(index, f"{where} has no text under {key!r}")
            texts.append(found[0])
        root = Path(config.image_root) if config.image_root else table.path.parent
        image = _image(pick(row, config.image), root)
        if image is None:
            return Unusable(index, f"{where} has no image under {config.image!r}")
        prompts = tuple(_texts(parse_literal(pick(row, kind.key))) for kind in config.prompts)
        return Record(index, where, texts[0], texts[1], prompts, image)


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


def find_record_files(source: Names, config: RecordsConfig) -> tuple[Path, ...]:
    """The record files of `source`: files, wildcards, folders, ids of hub data sets.

    Folders and data sets give the files that match `config.files`. An existing path is never
    taken as an id. Raises InputError if there are none, if one is named twice, and for a data
    set that cannot be fetched.
    """
    found: list[Path] = []
    for name in list_names(source):
        folder = Path(name)
        if not folder.exists() and is_hub_id(name):
            folder = fetch_snapshot(name, config.revision, config.files, "dataset")
        if not folder.is_dir():
            found += expand_names(name, "records")
            continue
        files = [
            path
            for path in sorted(folder.rglob("*"))
            if path.suffix in ENDINGS
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
    try:
        for path in files:
            with open(path, "rb") as file:
                ends = file.read(_SAMPLE)
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _SAMPLE))
                ends += file.read()
            name = os.path.relpath(path.absolute(), top)
            digest.update(f"{name}\0{size}\0{hashlib.sha256(ends).hexdigest()}\n".encode())
    except OSError as error:
        raise InputError(f"cannot read records from {path}: {error.strerror}") from error
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
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            pass
    return value


def _texts(value: Any) -> tuple[str, ...]:
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


def _image(value: Any, root: Path) -> bytes | Path | None:
    if isinstance(value, dict):
        inner = value.get("bytes")
        value = inner if inner is not None else value.get("path")
    if isinstance(value, str) and value.startswith(_DATA_URL):
        try:
            value = base64.b64decode(value.partition(",")[2], validate=True)
        except binascii.Error:
            return None
    if isinstance(value, str) and value:
        return root / value
    return value if isinstance(value, bytes) and value else None


def _head(key: str) -> str:
    return key.partition(".")[0]


def _check_columns(table: Table, config: RecordsConfig) -> None:
    present = table.columns()
    wanted = {name: getattr(config, name) for name in ("caption", "plan", "image")}
    wanted |= {f"prompts[{i}].key": prompts.key for i, prompts in enumerate(config.prompts)}
    for field, key in wanted.items():
        if key not in present and _head(key) not in present:
            raise InputError(
                f"{table.path} has no column {key!r} (data.records.{field}); its columns: "
                f"{', '.join(present)}"
            )
