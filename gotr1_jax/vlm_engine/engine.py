"""A Qwen-VL as an engine: questions of any number and mixture, a few programs of fixed shapes.

Questions are split into batches whose images' vectors fit into one array. Each image of a batch
goes through the vision tower once. Each instruction is read once for all of its questions, then
the prefixes that some of them share (an image, a caption), then the rest of each question; then
answers are decoded or scores are read off. The image vectors of the last batch and the KV caches of
the last instructions are kept for the next call.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from PIL import Image

from gotr1_jax.convert.find import find_checkpoint
from gotr1_jax.convert.qwen_vl import QwenCheckpoint, abstract_state, load_qwen, read_qwen_config
from gotr1_jax.errors import InputError
from gotr1_jax.images.qwen import QwenImage as Pixels
from gotr1_jax.images.qwen import image_grid, read_image, resized_size
from gotr1_jax.images.qwen_pack import Grid, mrope_positions
from gotr1_jax.io.digests import model_digest
from gotr1_jax.models.qwen_vl import abstract_qwen
from gotr1_jax.parallel.sharding import state_shardings
from gotr1_jax.plan.boxes import SCALE
from gotr1_jax.tokenizers.qwen import ImageTokens
from gotr1_jax.vlm_engine.base import Answer, FirstWords, ImageInput, Question, Scale
from gotr1_jax.vlm_engine.config import QwenEngineConfig
from gotr1_jax.vlm_engine.packing import (
    PrefixGroup,
    ProgramLimits,
    QuestionBatch,
    QuestionTokens,
    common_prefix,
    make_batches,
    next_bucket,
    power_of_two,
    share_prefixes,
)
from gotr1_jax.vlm_engine.programs import SharedPrefix
from gotr1_jax.vlm_engine.runner import EngineCounts, TextRunner, row_shards
from gotr1_jax.vlm_engine.scores import ScoreTokens, WordTokens, score_tokens, word_tokens
from gotr1_jax.vlm_engine.tower import VisionRunner

_MAX_QUESTIONS = 2048
"""Questions of a batch at most: it bounds the integers that the host holds."""
_MAX_INSTRUCTIONS = 8
"""Instructions whose KV cache is kept."""


def program_limits(config: QwenEngineConfig, mesh: Mesh | None) -> ProgramLimits:
    """Of one program on a mesh: rows are a power of two times its row shards."""
    shards = row_shards(mesh)
    rows = (1 << max(1, config.rows // shards).bit_length() - 1) * shards
    return ProgramLimits(rows, config.tokens, shards)


class QwenEngine:
    """Answers questions (greedy), or reads the distribution of their scores.

    A row's answer does not depend on what else is asked, but for rounding: which programs it runs
    through. Logits that are not finite spoil their own row only.
    """

    needs_main_thread = True

    def __init__(
        self,
        checkpoint: QwenCheckpoint,
        config: QwenEngineConfig,
        mesh: Mesh | None = None,
        weights: str = "",
    ) -> None:
        """An engine with a loaded checkpoint.

        Args:
          checkpoint: the model; its decoder's weights are copied into the form for decoding.
          config: sizes; `config.checkpoint` only names the model here.
          mesh: devices of this process on which the parameters lie. None: the default device.
          weights: the digest of the checkpoint's files, part of `identity`.
        """
        kind = "qwen3_vl" if checkpoint.config.is_qwen3 else "qwen2_5_vl"
        self.identity = f"{kind} {config.checkpoint} {config.dtype} {config.max_pixels}"
        self.identity += f" cache={config.cache_dtype}" if config.cache_dtype != "auto" else ""
        self.identity += f" weights={weights}" if weights else ""
        self.identity += " thinks" if checkpoint.tokenizer.thinks else ""
        dtype = jnp.dtype(config.dtype)
        self._limits = program_limits(config, mesh)
        self._tokenizer, self._capacity = checkpoint.tokenizer, config.image_tokens
        most = max(
            checkpoint.preprocessing.min_pixels,
            min(checkpoint.preprocessing.max_pixels, config.max_pixels),
        )
        self._preprocessing = replace(checkpoint.preprocessing, max_pixels=most)
        module = abstract_qwen(checkpoint.config, dtype=dtype, param_dtype=checkpoint.dtype)
        sizes, ids = checkpoint.config, checkpoint.tokenizer.ids
        self._answers_thousandths = sizes.is_qwen3
        self._vision_state = checkpoint.state["vision"]
        self._image_vectors: tuple[jax.Array, dict[str, int]] | None = None
        self._instructions: dict[bytes, SharedPrefix] = {}
        self._vision = VisionRunner(
            nnx.split(module.vision)[0], sizes.vision.geometry, sizes.vision.vector_size, dtype,
            config.patches, config.image_tokens, mesh,
        )  # fmt: skip
        self._text = TextRunner(
            (nnx.split(module.text)[0], checkpoint.state["text"]), sizes.text, dtype,
            (ids.message_end, ids.text_end), ids.text_end, self._limits, mesh, config.cache_dtype,
        )  # fmt: skip

    @classmethod
    def from_config(cls, config: QwenEngineConfig, mesh: Mesh | None = None) -> QwenEngine:
        """The engine of a checkpoint, a folder or a hub id, its parameters split over the mesh.

        Raises InputError in one line for what cannot be read.
        """
        dtype = jnp.dtype(config.dtype)
        path = find_checkpoint(config.checkpoint)
        shardings = None
        if mesh is not None:
            shardings = state_shardings(abstract_state(read_qwen_config(path), dtype), mesh)
        return cls(load_qwen(path, dtype, shardings), config, mesh, model_digest(path))

    @property
    def counts(self) -> EngineCounts:
        """Work done so far."""
        return self._text.counts

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the model's coordinates refer to."""
        if self._answers_thousandths:
            return SCALE, SCALE
        return resized_size(height, width, self._preprocessing)

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One greedy answer for each question, in their order.

        A question that is too long for `config.tokens` gets an answer with `error`.
        """
        different = list({q.key: q for q in questions}.values())
        answers: dict[str, Answer] = {}
        for batch in self._split_by_images(different):
            vectors, rows = self._encode(batch)
            for part, members, shared, own in self._program_batches(batch, rows, decode=True):
                found = self._text.decode(part, shared, own, vectors)
                for i, tokens in zip(members, found):
                    cut = tokens.finite and not tokens.ended
                    answers[batch[i].key] = Answer(
                        self._tokenizer.decode(tokens.ids), truncated=cut, finite=tokens.finite,
                        tokens_in=rows[i].size, tokens_out=len(tokens.ids),
                    )  # fmt: skip
            for question, row in zip(batch, rows):
                answers.setdefault(question.key, Answer(error=self._too_long(row)))
            del vectors  # makes room for those of the next batch
        return [answers[q.key] for q in questions]

    def expected_scores(self, questions: Sequence[Question]) -> list[float]:
        """The probability-weighted mean of each question's score, or that of the right word.

        One forward pass over the question and its answer prefix; see `scores`. A model that thinks
        first is read after an empty thought. NaN where logits are not finite, and for a question
        that is too long. InputError for a scale that cannot be read so, and for a question without
        one.
        """
        targets = dict.fromkeys(map(_target, questions))
        scales = {target: self._score_tokens(target) for target in targets}
        means: dict[str, float] = {}
        for num_logits in sorted({s.num_logits for s in scales.values()}):
            here = {q.key: q for q in questions if scales[_target(q)].num_logits == num_logits}
            for batch in self._split_by_images(list(here.values())):
                wanted = [scales[_target(q)] for q in batch]
                found = self._batch_scores(batch, wanted, num_logits)
                means |= dict(zip([q.key for q in batch], found))
        return [means[q.key] for q in questions]

    def _batch_scores(
        self, batch: Sequence[Question], scales: Sequence[ScoreTokens | WordTokens],
        num_logits: int,
    ) -> list[float]:  # fmt: skip
        vectors, rows = self._encode(batch, [scale.prompt for scale in scales])
        means = [math.nan] * len(batch)
        parts = self._program_batches(batch, rows, decode=False, tail=num_logits)
        for part, members, shared, own in parts:
            wanted = [[scales[i].tokens_at(m) for m in range(num_logits)] for i in members]
            found = self._text.score(part, shared, own, vectors, wanted)
            for i, positions, (logps, finite) in zip(members, wanted, found):
                if finite:
                    kept = [row[: len(ids)].tolist() for row, ids in zip(logps, positions)]
                    means[i] = scales[i].mean(kept)
        return means

    def _program_batches(
        self, batch: Sequence[Question], rows: Sequence[QuestionTokens], decode: bool,
        tail: int = 1,
    ) -> Iterator[tuple[QuestionBatch, list[int], SharedPrefix, list[QuestionTokens]]]:  # fmt: skip
        """The questions of a batch by instruction, split into what one program takes.

        Yields the questions of one program, the indices of its members in `batch`, the shared
        prefix of the instruction, and the rows without it that the members refer to. Questions
        that are too long are left out; the last `tail` tokens of each row are not shared.
        """
        by_text: dict[str, list[int]] = {}
        for i, row in enumerate(rows):
            if self._limits.fits(row.size, power_of_two(row.max_answer) if decode else 0):
                by_text.setdefault(self.shared_text(batch[i]), []).append(i)
        for text, indices in by_text.items():
            opening = np.array(self._tokenizer.encode_opening(text), np.int32)
            # Where text follows at once, the last tokens may be others.
            size = min(
                min(common_prefix(opening, rows[i].ids_S), rows[i].size - tail) for i in indices
            )
            shared = self._read_instruction(opening[:size])
            own = [rows[i].span(size) for i in indices]
            groups = self.share_prefixes(own, tail)
            for part in make_batches(groups, own, self._limits, decode, size):
                yield part, [indices[n] for n in part.members], shared, own

    def _read_instruction(self, ids_S: np.ndarray) -> SharedPrefix:
        key = ids_S.tobytes()
        if key not in self._instructions:
            if len(self._instructions) == _MAX_INSTRUCTIONS:
                del self._instructions[next(iter(self._instructions))]
            self._instructions[key] = self._text.prefill_shared(ids_S)
        return self._instructions[key]

    def _split_by_images(self, questions: Sequence[Question]) -> Iterator[list[Question]]:
        """Questions about the same images together, as many as there is room for vectors."""
        by_images: dict[tuple[str, ...], list[Question]] = {}
        for question in questions:
            by_images.setdefault(tuple(p.key for p in question.images), []).append(question)
        batch: list[Question] = []
        held: dict[str, int] = {}
        for same in by_images.values():
            new = {p.key: next_bucket(math.prod(self._grid(p))) for p in same[0].images}
            for start in range(0, len(same), _MAX_QUESTIONS):
                part = same[start : start + _MAX_QUESTIONS]
                full = sum((held | new).values()) > self._capacity
                if batch and (full or len(batch) + len(part) > _MAX_QUESTIONS):
                    yield batch
                    batch, held = [], {}
                batch, held = batch + part, held | new
        if batch:
            yield batch

    def _encode(
        self, batch: Sequence[Question], endings: Sequence[Sequence[int]] | None = None
    ) -> tuple[jax.Array, list[QuestionTokens]]:
        """The vectors of a batch's images, and its questions as tokens.

        endings: beginnings of the answers, after an empty thought where the model thinks first.
        """
        images = {p.key: p for q in batch for p in q.images}
        grids = {key: self._grid(image) for key, image in images.items()}
        # Second tries and other ways of reading ask about the same images in calls that follow.
        if self._image_vectors is None or not grids.keys() <= self._image_vectors[1].keys():
            self._image_vectors = None  # makes room
            self._image_vectors = self._vision.encode_images(
                self._vision_state, grids, lambda key: self._pixels(images[key])
            )
            self.counts.images += len(images)
        vectors, starts = self._image_vectors
        return vectors, [
            self._tokenize(q, [grids[p.key] for p in q.images], starts, ending)
            for q, ending in itertools.zip_longest(batch, endings or ())
        ]

    def _tokenize(
        self, question: Question, grids: Sequence[Grid], starts: dict[str, int],
        ending: Sequence[int] | None,
    ) -> QuestionTokens:  # fmt: skip
        shown = (ImageTokens(h * w) for h, w in grids)
        message: list[str | ImageTokens] = [question.instruction, *shown, question.text]
        chat = self._tokenizer.encode_chat(message, skip_thought=ending is not None)
        ids = np.array([*chat, *(ending or ())], np.int32)
        mask = ids == self._tokenizer.ids.image
        index = np.full(ids.shape, -1, np.int32)
        vectors = [starts[p.key] + np.arange(h * w) for p, (h, w) in zip(question.images, grids)]
        if vectors:
            index[mask] = np.concatenate(vectors)
        positions = mrope_positions(mask[None], [grids])[:, 0]
        return QuestionTokens(ids, index, positions, question.max_answer_tokens)

    def shared_text(self, question: Question) -> str:
        """The text at its beginning that a question shares with all others of its kind."""
        return question.instruction

    def share_prefixes(self, rows: Sequence[QuestionTokens], tail: int = 1) -> list[PrefixGroup]:
        """Which questions share a prefix; the last `tail` tokens of each are in none."""
        return share_prefixes(rows, tail)

    def _too_long(self, row: QuestionTokens) -> str:
        return (
            f"the question has {row.size} tokens and its answer up to {row.max_answer}, too many "
            f"for judge.qwen_vl.tokens {self._limits.tokens}"
        )

    def _grid(self, image: ImageInput) -> Grid:
        return image_grid(*image.size, self._preprocessing)

    def _pixels(self, image: ImageInput) -> Pixels:
        return read_image(Image.fromarray(image.pixels), self._preprocessing)

    def _score_tokens(self, scale: Scale | FirstWords | None) -> ScoreTokens | WordTokens:
        if scale is None:
            raise InputError("a question without a scale has no expected score")
        encode: Any = self._tokenizer.encode
        if isinstance(scale, FirstWords):
            return word_tokens(encode, scale)
        return score_tokens(encode, scale.answer_prefix, scale.low, scale.high)


def _target(question: Question) -> Scale | FirstWords | None:
    """What is read of a question's distribution."""
    return question.scale if question.words is None else question.words
