"""The examples of a judge's training: from their source to batches on the mesh."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import grain
import numpy as np

from gotr1_jax.convert.find import find_checkpoint
from gotr1_jax.convert.image_tokenizer import load_vq
from gotr1_jax.data.pipeline import example_batches
from gotr1_jax.data.question_records import QuestionRecord, QuestionRecords
from gotr1_jax.data.records import check_usable_share, find_record_files, fingerprint_files
from gotr1_jax.errors import InputError
from gotr1_jax.images.qwen import Preprocessing, image_grid, read_image
from gotr1_jax.images.qwen_pack import Grid, RowShape
from gotr1_jax.io.digests import model_digest
from gotr1_jax.judge_sft.batch import (
    BatchShape,
    JudgeBatch,
    TaughtExample,
    TaughtText,
    TaughtTurn,
    TokenizedTurn,
    assign_turns,
    example_patches,
    make_batch,
    tokenize_turn,
    too_long,
)
from gotr1_jax.judge_sft.config import JudgeDataConfig, JudgeSftConfig
from gotr1_jax.judge_sft.reconstruct import make_reconstruct
from gotr1_jax.judge_sft.shapes_source import JudgedShapes
from gotr1_jax.rewards.stored_samples import StoredSample, find_samples
from gotr1_jax.shapes.vocabulary import IMAGE_SIZE
from gotr1_jax.tokenizers.qwen import QwenTokenizer

_log = logging.getLogger(__name__)
_LEFT_OUT = 0.01  # share of the turns for which an example's rows may have no room
_TRIED_EXAMPLES = 256  # of the shapes world, whose lengths are compared with the limits


class JudgeSource(Protocol):
    """Examples by index."""

    @property
    def turns(self) -> int:
        """Turns of an example, at most."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> TaughtExample: ...
    def text(self, index: int) -> TaughtText:
        """An example without its pixels."""
        ...


class TaughtRecords:
    """Records of a user as examples of one turn."""

    turns = 1

    def __init__(self, data: JudgeDataConfig, preprocessing: Preprocessing) -> None:
        """Opens the files, and every record with its images once. InputError for files that cannot
        be read, and if more than `unusable_limit` of the records cannot be used."""
        self._preprocessing = preprocessing
        self._records = QuestionRecords(find_record_files(data.source, data.records), data.records)
        usable, reasons = [], list[str]()
        self._grids = list[tuple[Grid, ...]]()  # of each usable record
        for record in self._records.read(0, len(self._records)):
            try:
                if isinstance(record, QuestionRecord):
                    self._grids.append(self._read_grids(record))
                    usable.append(record.index)
                else:
                    reasons.append(record.reason)
            except InputError as error:
                reasons.append(str(error))
        limit, first = data.records.unusable_limit, reasons[0] if reasons else ""
        check_usable_share(len(reasons), len(self._records), limit, first)
        self._usable = np.array(usable, np.int64)

    def __len__(self) -> int:
        return len(self._usable)

    def __getitem__(self, index: int) -> TaughtExample:
        record = self._record(index)
        images = tuple(read_image(image, self._preprocessing) for image in record.load_images())
        return TaughtExample(record.where, images, (_turn(record),))

    def text(self, index: int) -> TaughtText:
        """An example without its pixels; its images are not opened again."""
        record = self._record(index)
        return TaughtText(record.where, self._grids[index], (_turn(record),))

    def _record(self, index: int) -> QuestionRecord:
        record = self._records[int(self._usable[index])]
        if not isinstance(record, QuestionRecord):
            raise InputError(f"{record.reason}; it could be used when the run began")
        return record

    def _read_grids(self, record: QuestionRecord) -> tuple[Grid, ...]:
        images, settings = record.load_images(), self._preprocessing
        return tuple(image_grid(image.height, image.width, settings) for image in images)


def _turn(record: QuestionRecord) -> TaughtTurn:
    shown = tuple(range(len(record.images)))
    return TaughtTurn(record.instruction, shown, record.question, record.answer, record.system)


class KeptExamples:
    """Those of a source's examples that fit."""

    def __init__(self, source: JudgeSource, kept: np.ndarray) -> None:
        self._source, self._kept, self.turns = source, kept, source.turns

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> TaughtExample:
        return self._source[int(self._kept[index])]

    def text(self, index: int) -> TaughtText:
        """An example without its pixels."""
        return self._source.text(int(self._kept[index]))


def bound_pixels(preprocessing: Preprocessing, max_pixels: int) -> Preprocessing:
    """The same with a smaller bound on pixels; never below its own `min_pixels`."""
    most = min(preprocessing.max_pixels, max_pixels)
    return replace(preprocessing, max_pixels=max(preprocessing.min_pixels, most))


def open_source(
    config: JudgeSftConfig, preprocessing: Preprocessing, thousandths: bool = False
) -> JudgeSource:
    """The examples, before their lengths are known. InputError for what cannot be read.

    thousandths: right answers give boxes so, not in pixels; records are taken as they are.
    """
    data = config.data
    if data.source != "shapes":
        return TaughtRecords(data, preprocessing)
    reconstruct = None
    if data.shapes.vq is not None:
        reconstruct = make_reconstruct(load_vq(find_checkpoint(data.shapes.vq)), IMAGE_SIZE)
    samples = _stored_samples(data)
    return JudgedShapes(
        data.shapes, preprocessing, config.seed, reconstruct, samples, thousandths,
        objects=config.objective == "objects",
    )  # fmt: skip


def _stored_samples(data: JudgeDataConfig) -> list[StoredSample]:
    return [sample for path in data.shapes.samples for sample in find_samples(Path(path))]


def describe_data(data: JudgeDataConfig) -> dict[str, str]:
    """What identifies the examples, by setting."""
    if data.source != "shapes":
        files = find_record_files(data.source, data.records)
        return {"data.source": f"files {fingerprint_files(files)[:16]}"}
    inputs = {"data.source": "shapes"}
    if data.shapes.vq is not None:
        digest = model_digest(find_checkpoint(data.shapes.vq))
        inputs["data.shapes.vq"] = f"weights {digest}"
    if data.shapes.samples:
        samples = [(s.name, s.caption, s.plan_text) for s in _stored_samples(data)]
        digest = hashlib.sha256(repr(samples).encode()).hexdigest()
        inputs["data.shapes.samples"] = f"{len(samples)} samples {digest[:16]}"
    return inputs


def fit_source(
    data: JudgeDataConfig,
    source: JudgeSource,
    tokenizer: QwenTokenizer,
    preprocessing: Preprocessing,
) -> tuple[JudgeSource, BatchShape]:
    """The examples that fit the limits of `data`, and the shape of their batches.

    InputError if a larger share than `data.too_long_limit` is too long.
    """
    geometry, drawn = preprocessing.geometry, isinstance(source, JudgedShapes)
    shape = BatchShape(source.turns, source.turns, data.max_tokens, data.max_answer_tokens, None)
    row = source.patches() if isinstance(source, JudgedShapes) else RowShape(0, 0)
    kept, tokenized, problems = list[int](), list[list[TokenizedTurn]](), list[str]()
    for index in range(min(len(source), _TRIED_EXAMPLES) if drawn else len(source)):
        example = source.text(index)
        turns = [tokenize_turn(t, example.grids, tokenizer) for t in example.turns]
        found = [f"{example.where} has {p}" for t in turns if (p := too_long(t, shape))]
        problems += found
        tokenized.append(turns)
        if len(found) < len(turns):
            kept.append(index)
            own = example_patches(example.grids, geometry)
            row = RowShape(max(row.patches, own.patches), max(row.windows, own.windows))
    total = sum(map(len, tokenized))
    if not total:
        raise InputError("data.source gives no question that has an answer")
    if len(problems) > data.too_long_limit * total or not kept:
        raise InputError(
            f"{len(problems)} of {total} questions are too long, more than the share "
            f"{data.too_long_limit} (data.too_long_limit); the first: {problems[0]}"
        )
    shape = replace(shape, patches=row if row.patches else None)
    shape = replace(shape, rows=needed_rows(tokenized, shape))
    used = sum(len(turn.ids_S) for turns in tokenized for turn in turns) / len(tokenized)
    _log.info(
        "%d examples, each %.0f tokens of %d; too long: %d of %d questions", len(source), used,
        shape.rows * shape.tokens, len(problems), total,
    )  # fmt: skip
    return (source if drawn else KeptExamples(source, np.array(kept, np.int64))), shape


def needed_rows(examples: Sequence[Sequence[TokenizedTurn]], shape: BatchShape) -> int:
    """The fewest rows an example that leave out at most `_LEFT_OUT` of the turns that fit one."""
    fits = sum(not too_long(turn, shape) for turns in examples for turn in turns)
    for rows in range(1, shape.turns):
        tried = replace(shape, rows=rows)
        placed = sum(
            place is not None for turns in examples for place in assign_turns(turns, tried)
        )
        if fits - placed <= _LEFT_OUT * fits:
            return rows
    return shape.turns


def make_judge_batches(
    config: JudgeSftConfig,
    source: JudgeSource,
    shape: BatchShape,
    tokenizer: QwenTokenizer,
    preprocessing: Preprocessing,
    held: np.ndarray,
) -> grain.IterDataset:
    """Endless `JudgeBatch`es, of which this process makes the rows `held`."""

    def collect(examples: Sequence[TaughtExample]) -> JudgeBatch:
        return make_batch(examples, tokenizer, preprocessing.geometry, shape)

    return example_batches(
        len(source), source.__getitem__, collect, config.batch_size, config.seed, held
    )
