"""Qwen2.5-VL as an engine: questions of any number and mixture, a few programs of fixed shapes.

Questions are taken in waves, as many as there is room for the vectors of their images. In a
wave each image goes through the vision tower once. Each instruction is read once for all of its
questions, then prefixes that some of them share (an image, a caption), then the questions behind
them, and either answers are written or scores are read off. The vectors of the last wave are kept
for the next call, and so are the instructions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from PIL import Image

from gotr1_jax.convert.find import find_checkpoint
from gotr1_jax.convert.qwen2_5_vl import QwenCheckpoint, abstract_state, load_qwen, read_qwen_config
from gotr1_jax.errors import InputError
from gotr1_jax.images.qwen import QwenImage as Pixels
from gotr1_jax.images.qwen import read_image, resized_size
from gotr1_jax.images.qwen_pack import Grid, mrope_positions
from gotr1_jax.models.qwen2_5_vl import abstract_qwen
from gotr1_jax.parallel.sharding import state_shardings
from gotr1_jax.tokenizers.qwen import ImageTokens
from gotr1_jax.vlm_engine.base import Answer, ImageInput, Question, Scale
from gotr1_jax.vlm_engine.config import QwenEngineConfig
from gotr1_jax.vlm_engine.packing import (
    Limits,
    PrefixGroup,
    TokenRow,
    common,
    make_chunks,
    power_of_two,
    rung,
    share_prefixes,
)
from gotr1_jax.vlm_engine.programs import SharedPrefix
from gotr1_jax.vlm_engine.runner import ChunkRunner, Counts, GeneratedAnswers, row_shards
from gotr1_jax.vlm_engine.scores import ScoreTokens, score_tokens
from gotr1_jax.vlm_engine.tower import ImageReader

_WAVE = 2048
"""Questions of a wave at most: it bounds the integers that the host holds."""
_HEADS = 8
"""Instructions whose cache is kept."""


@dataclass(frozen=True)
class _Behind:
    """Rows of a wave with the same instruction.

    Attributes:
      numbers: their places in the wave.
      head_S: int32 tokens that all of them begin with.
      rows: theirs, behind these.
    """

    numbers: tuple[int, ...]
    head_S: np.ndarray
    rows: tuple[TokenRow, ...]


def limits_of(config: QwenEngineConfig, mesh: Mesh | None) -> Limits:
    """Of one program on a mesh: rows are a power of two times its row shards."""
    shards = row_shards(mesh)
    rows = (1 << max(1, config.rows // shards).bit_length() - 1) * shards
    return Limits(rows, config.tokens, shards)


class QwenEngine:
    """Answers questions (greedy), or reads the distribution of their scores.

    A row's answer does not depend on what else is asked, but for rounding: which programs it runs
    through. Logits that are not finite spoil their own row only.
    """

    def __init__(
        self, checkpoint: QwenCheckpoint, config: QwenEngineConfig, mesh: Mesh | None = None
    ) -> None:
        """An engine with a loaded checkpoint.

        Args:
          checkpoint: the model; its decoder is laid out anew for decoding.
          config: sizes; `config.checkpoint` only names the model here.
          mesh: devices of this process on which the parameters lie. None: the default device.
        """
        self.identity = f"qwen2_5_vl {config.checkpoint} {config.dtype} {config.max_pixels}"
        dtype = jnp.dtype(config.dtype)
        self._limits = limits_of(config, mesh)
        self._tokenizer, self._capacity = checkpoint.tokenizer, config.image_tokens
        most = max(
            checkpoint.preprocessing.min_pixels,
            min(checkpoint.preprocessing.max_pixels, config.max_pixels),
        )
        self._preprocessing = replace(checkpoint.preprocessing, max_pixels=most)
        module = abstract_qwen(checkpoint.config, dtype=dtype, param_dtype=checkpoint.dtype)
        sizes, ids = checkpoint.config, checkpoint.tokenizer.ids
        self._vision = checkpoint.state["vision"]
        self._held: tuple[jax.Array, dict[str, int]] | None = None
        self._heads: dict[bytes, SharedPrefix] = {}
        self._read_images = ImageReader(
            nnx.split(module.vision)[0], sizes.vision.geometry, sizes.vision.out_size, dtype,
            config.patches, config.image_tokens, mesh,
        )  # fmt: skip
        self._runner = ChunkRunner(
            (nnx.split(module.text)[0], checkpoint.state["text"]), sizes.text, dtype,
            (ids.message_end, ids.text_end), ids.text_end, self._limits, mesh,
        )  # fmt: skip

    @classmethod
    def from_config(cls, config: QwenEngineConfig, mesh: Mesh | None = None) -> QwenEngine:
        """The engine of a checkpoint, a folder or a hub id, its parameters split over the mesh.

        Raises InputError in one line for what cannot be read.
        """
        dtype = jnp.dtype(config.dtype)
        path = find_checkpoint(config.checkpoint)
        placed = None
        if mesh is not None:
            placed = state_shardings(abstract_state(read_qwen_config(path), dtype), mesh)
        return cls(load_qwen(path, dtype, placed), config, mesh)

    @property
    def counts(self) -> Counts:
        """Work done so far."""
        return self._runner.counts

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels that the model's coordinates refer to."""
        return resized_size(height, width, self._preprocessing)

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One greedy answer for each question, in their order.

        A question that is too long for `config.tokens` gets an answer with `error`.
        """
        different = list({q.key: q for q in questions}.values())
        answers: dict[str, Answer] = {}
        for wave in self._waves(different):
            units, rows = self._open(wave, [()] * len(wave))
            fitting = [i for i, row in enumerate(rows) if self._fits(row, row.limit)]
            for part in self._by_instruction(wave, rows, fitting):
                head, size = self._read_head(part.head_S), len(part.head_S)
                groups = self.group(part.rows)
                for chunk in make_chunks(groups, part.rows, self._limits, decode=True, head=size):
                    done = self._runner.write(chunk, head, part.rows, units)
                    for member, written in zip(chunk.members, done):
                        question = wave[part.numbers[member]]
                        answers[question.key] = self._read_answer(written)
            for question, row in zip(wave, rows):
                answers.setdefault(question.key, Answer(error=self._too_long(row)))
            del units  # makes room for the next wave's
        return [answers[q.key] for q in questions]

    def expected_scores(self, questions: Sequence[Question]) -> list[float]:
        """The probability-weighted mean over the scale of each question's score.

        One forward pass over the question and its answer prefix; see `scores`. NaN where logits
        are not finite, and for a question that is too long. InputError for a scale that cannot be
        read so, and for a question without one.
        """
        scales = {q.scale: self._score_tokens(q.scale) for q in questions}
        means: dict[str, float] = {}
        for reads in sorted({s.reads for s in scales.values()}):
            here = {q.key: q for q in questions if scales[q.scale].reads == reads}
            for wave in self._waves(list(here.values())):
                forms = [scales[q.scale] for q in wave]
                means |= dict(zip([q.key for q in wave], self._means(wave, forms, reads)))
        return [means[q.key] for q in questions]

    def _means(
        self, wave: Sequence[Question], forms: Sequence[ScoreTokens], reads: int
    ) -> list[float]:
        units, rows = self._open(wave, [form.prompt for form in forms])
        fitting = [i for i, row in enumerate(rows) if self._fits(row, 0)]
        means = [math.nan] * len(wave)
        for part in self._by_instruction(wave, rows, fitting, reads):
            head, size = self._read_head(part.head_S), len(part.head_S)
            groups = self.group(part.rows, tail=reads)
            for chunk in make_chunks(groups, part.rows, self._limits, decode=False, head=size):
                members = [part.numbers[n] for n in chunk.members]
                wanted = [[forms[i].asked(m) for m in range(reads)] for i in members]
                found = self._runner.score(chunk, head, part.rows, units, reads, wanted)
                for i, places, (logps, finite) in zip(members, wanted, found):
                    if finite:
                        kept = [row[: len(ids)].tolist() for row, ids in zip(logps, places)]
                        means[i] = forms[i].mean(kept)
        return means

    def _by_instruction(
        self, wave: Sequence[Question], rows: Sequence[TokenRow], fitting: Sequence[int],
        tail: int = 1,
    ) -> Iterator[_Behind]:  # fmt: skip
        """The rows `fitting` of a wave; the last `tail` tokens of each are in no head."""
        together: dict[str, list[int]] = {}
        for i in fitting:
            together.setdefault(self.opening(wave[i]), []).append(i)
        for text, numbers in together.items():
            opening = np.array(self._tokenizer.encode_opening(text), np.int32)
            # Where text follows at once, the last tokens may be others.
            size = min(min(common(opening, rows[i].ids_S), rows[i].size - tail) for i in numbers)
            behind = tuple(rows[i].part(size) for i in numbers)
            yield _Behind(tuple(numbers), opening[:size], behind)

    def _read_head(self, ids_S: np.ndarray) -> SharedPrefix:
        key = ids_S.tobytes()
        if key not in self._heads:
            if len(self._heads) == _HEADS:
                del self._heads[next(iter(self._heads))]
            self._heads[key] = self._runner.read_head(ids_S)
        return self._heads[key]

    def _waves(self, questions: Sequence[Question]) -> Iterator[list[Question]]:
        """Questions about the same images together, as many as their vectors have room."""
        together: dict[tuple[str, ...], list[Question]] = {}
        for question in questions:
            together.setdefault(tuple(p.key for p in question.images), []).append(question)
        wave: list[Question] = []
        held: dict[str, int] = {}
        for same in together.values():
            new = {p.key: rung(math.prod(self._grid(p))) for p in same[0].images}
            for start in range(0, len(same), _WAVE):
                part = same[start : start + _WAVE]
                full = sum((held | new).values()) > self._capacity
                if wave and (full or len(wave) + len(part) > _WAVE):
                    yield wave
                    wave, held = [], {}
                wave, held = wave + part, held | new
        if wave:
            yield wave

    def _open(
        self, wave: Sequence[Question], endings: Sequence[Sequence[int]]
    ) -> tuple[jax.Array, list[TokenRow]]:
        """The vectors of a wave's images, and its questions as tokens, with their endings."""
        images = {p.key: p for q in wave for p in q.images}
        grids = {key: self._grid(image) for key, image in images.items()}
        # Second tries and other ways of reading ask about the same images in calls that follow.
        if self._held is None or not grids.keys() <= self._held[1].keys():
            self._held = None  # makes room
            self._held = self._read_images(
                self._vision, grids, lambda key: self._pixels(images[key])
            )
            self.counts.images += len(images)
        units, places = self._held
        return units, [
            self._tokens(q, [grids[p.key] for p in q.images], places, ending)
            for q, ending in zip(wave, endings)
        ]

    def _tokens(
        self, question: Question, grids: Sequence[Grid], places: dict[str, int],
        ending: Sequence[int],
    ) -> TokenRow:  # fmt: skip
        shown = (ImageTokens(h * w) for h, w in grids)
        message: list[str | ImageTokens] = [question.instruction, *shown, question.text]
        ids = np.array([*self._tokenizer.encode_chat(message), *ending], np.int32)
        mask = ids == self._tokenizer.ids.image
        where = np.full(ids.shape, -1, np.int32)
        where[mask] = np.concatenate(
            [np.zeros(0, np.int32)]
            + [
                places[p.key] + np.arange(h * w, dtype=np.int32)
                for p, (h, w) in zip(question.images, grids)
            ]
        )
        positions = mrope_positions(mask[None], [grids])[:, 0]
        return TokenRow(ids, where, positions, question.max_answer_tokens)

    def opening(self, question: Question) -> str:
        """The text in front that a question has in common with all others of its kind."""
        return question.instruction

    def group(self, rows: Sequence[TokenRow], tail: int = 1) -> list[PrefixGroup]:
        """Which questions share a prefix; the last `tail` tokens of each are in none."""
        return share_prefixes(rows, tail)

    def _fits(self, row: TokenRow, limit: int) -> bool:
        return self._limits.fits(row.size, power_of_two(limit) if limit else 0)

    def _too_long(self, row: TokenRow) -> str:
        return (
            f"the question has {row.size} tokens and its answer up to {row.limit}, too many for "
            f"judge.qwen2_5_vl.tokens {self._limits.tokens}"
        )

    def _grid(self, image: ImageInput) -> Grid:
        tall, wide = self.image_size(*image.size)
        unit = self._preprocessing.geometry.unit_size
        return tall // unit, wide // unit

    def _pixels(self, image: ImageInput) -> Pixels:
        return read_image(Image.fromarray(image.pixels), self._preprocessing)

    def _read_answer(self, written: GeneratedAnswers) -> Answer:
        text = self._tokenizer.decode(written.ids)
        cut = written.finite and not written.ended
        return Answer(text, truncated=cut, finite=written.finite)

    def _score_tokens(self, scale: Scale | None) -> ScoreTokens:
        if scale is None:
            raise InputError("a question without a scale has no expected score")
        encode: Any = self._tokenizer.encode
        return score_tokens(encode, scale.answer_prefix, scale.low, scale.high)
