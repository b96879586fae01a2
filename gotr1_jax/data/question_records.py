"""Records that teach a vision-language model: images, question and answer, read by index."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gotr1_jax.data.config import QuestionRecordsConfig
from gotr1_jax.data.records import (
    Unusable,
    parse_literal,
    pick,
    read_image_source,
    read_texts,
)
from gotr1_jax.data.tables import Row, Table, open_table
from gotr1_jax.errors import InputError
from gotr1_jax.images import decode_image, open_image


@dataclass(frozen=True)
class QuestionRecord:
    """One usable record.

    Attributes:
      index: in the whole source, from 0.
      where: its name in messages.
      question, answer: text without blanks around it.
      images: bytes of image files, or their paths, in the order in which they are shown.
      instruction: text in front of the images; may be empty.
      system: the system message; None where the record has none.
    """

    index: int
    where: str
    question: str
    answer: str
    images: tuple[bytes | Path, ...]
    instruction: str = ""
    system: str | None = None

    def load_images(self) -> list[Image.Image]:
        """The images as RGB, upright. Raises InputError if one cannot be read."""
        return [
            decode_image(io.BytesIO(image), self.where)
            if isinstance(image, bytes)
            else open_image(image)
            for image in self.images
        ]


class QuestionRecords:
    """The records of several files, one after another; rows are read lazily.

    Raises InputError for a file that cannot be read, holds no record, or lacks a column.
    """

    def __init__(self, files: Sequence[Path], config: QuestionRecordsConfig) -> None:
        self._config = config
        self._tables = [open_table(path) for path in files]
        keys = (config.question, config.answer, config.image, config.instruction, config.system)
        self._columns = [n for key in keys if key for n in (key, key.partition(".")[0])]
        for table in self._tables:
            _check_columns(table, config)
        self._ends = np.cumsum([0, *(len(table) for table in self._tables)])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> QuestionRecord | Unusable:
        return next(self.read(index, index + 1))

    def read(self, start: int, stop: int) -> Iterator[QuestionRecord | Unusable]:
        """Records start .. stop - 1, in order."""
        for table, first in zip(self._tables, self._ends.tolist()):
            low, high = max(start - first, 0), min(stop - first, len(table))
            rows = table.rows(low, high, self._columns) if low < high else ()
            for at, row in enumerate(rows, low):
                if isinstance(row, InputError):
                    yield Unusable(first + at, str(row))
                else:
                    yield self._record(first + at, table, table.where(at), row)

    def _record(self, index: int, table: Table, where: str, row: Row) -> QuestionRecord | Unusable:
        config = self._config
        texts = []
        for key in (config.question, config.answer):
            found = read_texts(pick(row, key))
            if len(found) != 1:
                return Unusable(index, f"{where} has no text under {key!r}")
            texts.append(found[0])
        root = Path(config.image_root) if config.image_root else table.path.parent
        value = None if config.image is None else pick(row, config.image)
        images = _image_sources(value, root)
        if None in images:
            return Unusable(index, f"{where} has no readable image under {config.image!r}")
        optional = [(*read_texts(pick(row, k)), "")[0] for k in (config.instruction, config.system)]
        instruction, system = optional
        # The images stand between the instruction and the question, on no line of their own.
        lead = f"{instruction}\n" if instruction else ""
        shown = tuple(image for image in images if image is not None)
        question, answer = texts
        return QuestionRecord(index, where, question, answer, shown, lead, system or None)


def _image_sources(value: Any, root: Path) -> list[bytes | Path | None]:
    """The images of a column's value; None for each that is none."""
    value = parse_literal(value) if isinstance(value, str) else value
    if value is None or value == "":
        return []
    items = value if isinstance(value, list | tuple) else [value]
    return [read_image_source(item, root) for item in items]


def _check_columns(table: Table, config: QuestionRecordsConfig) -> None:
    wanted = {name: getattr(config, name) for name in ("question", "answer", "image")}
    wanted = {field: key for field, key in wanted.items() if key is not None}
    present = table.columns(wanted.values())
    for field, key in wanted.items():
        if key not in present and key.partition(".")[0] not in present:
            hint = "; null if no record has one" if field == "image" else ""
            raise InputError(
                f"{table.path} has no column {key!r} (data.records.{field}{hint}); its columns: "
                f"{', '.join(present)}"
            )
