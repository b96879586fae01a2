"""Records that teach a vision-language model: images, question and answer, read by index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from gotr1_jax.data.config import QuestionRecordsConfig
from gotr1_jax.data.records import (
    RecordFiles,
    RecordRow,
    Unusable,
    load_image_source,
    parse_literal,
    pick,
    read_image_source,
    read_texts,
)
from gotr1_jax.errors import InputError


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
        return [load_image_source(image, self.where) for image in self.images]


class QuestionRecords(RecordFiles[QuestionRecord]):
    """Records of images, question and answer."""

    def __init__(self, files: Sequence[Path], config: QuestionRecordsConfig) -> None:
        self._config = config
        required = {"question": config.question, "answer": config.answer}
        if config.image is not None:
            required["image; null if no record has one"] = config.image
        optional = (config.instruction, config.system)
        super().__init__(files, config.image_root, required, optional)

    def __getitem__(self, index: int) -> QuestionRecord | Unusable:
        return next(self.read(index, index + 1))

    def _parse(self, row: RecordRow) -> QuestionRecord:
        config = self._config
        question, answer = row.text(config.question), row.text(config.answer)
        value = None if config.image is None else pick(row.values, config.image)
        images = _image_sources(value, row.image_root)
        shown = tuple(image for image in images if image is not None)
        if len(shown) < len(images):
            raise InputError(f"{row.where} has no readable image under {config.image!r}")
        instruction, system = (
            (*read_texts(pick(row.values, key)), "")[0]
            for key in (config.instruction, config.system)
        )
        # The images stand between the instruction and the question, on no line of their own.
        lead = f"{instruction}\n" if instruction else ""
        return QuestionRecord(row.index, row.where, question, answer, shown, lead, system or None)


def _image_sources(value: Any, root: Path) -> list[bytes | Path | None]:
    """The images of a column's value; None for each that is none."""
    value = parse_literal(value) if isinstance(value, str) else value
    if value is None or value == "":
        return []
    items = value if isinstance(value, list | tuple) else [value]
    return [read_image_source(item, root) for item in items]
