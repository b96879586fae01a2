"""Batches of questions through the compiled programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gotr1_jax.decoding.bucket_loop import BucketLoop
from gotr1_jax.decoding.config import CacheDtype
from gotr1_jax.decoding.kv_cache import KVCache, cache_sharding, grow_cache, resolve_cache_dtype
from gotr1_jax.decoding.weights import DecodeWeights, decode_weights, decode_weights_shardings
from gotr1_jax.models.config import DecoderConfig
from gotr1_jax.models.decoder import Decoder
from gotr1_jax.parallel.mesh import ROWS, row_multiple, row_sharding
from gotr1_jax.vlm_engine.packing import (
    PrefixGroup,
    ProgramLimits,
    QuestionBatch,
    QuestionTokens,
    next_bucket,
)
from gotr1_jax.vlm_engine.programs import (
    AnswerState,
    PackedTokens,
    QuestionCache,
    SharedPrefix,
    decode_bucket,
    prefill_prefixes,
    prefill_questions,
    prefill_shared,
    score_logps,
    start_answers,
)

_FIRST_BUCKET = 32  # slots of the answers' KV cache at first


@dataclass(frozen=True)
class AnswerTokens:
    """A decoded answer: its tokens with the end token, and how it ended."""

    ids: tuple[int, ...]
    ended: bool
    finite: bool


@dataclass
class EngineCounts:
    """Work done, for tests and measurements.

    Attributes:
      images: that went through the vision tower.
      shared_tokens, prefix_tokens, question_tokens: read, without padding.
      padded_tokens: of prefixes and questions, with padding.
      decoded: steps of the answer loop times its rows.
      most_tokens: the largest batch: rows times context, padding included.
    """

    images: int = 0
    shared_tokens: int = 0
    prefix_tokens: int = 0
    question_tokens: int = 0
    padded_tokens: int = 0
    decoded: int = 0
    most_tokens: int = 0


class TextRunner:
    """The text model's programs with its parameters.

    Args:
      text: graphdef and state of the split decoder.
      cfg: its sizes.
      dtype: of weights and activations.
      ends: tokens that end an answer.
      pad: a token for padding.
      limits: of one program.
      mesh: rows are split over its axes `data` and `fsdp`, heads over `tensor`.
      cache: dtype of the KV cache; auto: `dtype`.
    """

    def __init__(
        self, text: tuple[nnx.GraphDef, nnx.State], cfg: DecoderConfig, dtype: Any,
        ends: tuple[int, ...], pad: int, limits: ProgramLimits, mesh: Mesh | None,
        cache: CacheDtype = "auto",
    ) -> None:  # fmt: skip
        self._pad, self._limits, self._mesh = pad, limits, mesh
        self.counts = EngineCounts()
        graphdef, state = text
        self.programs = text_programs(graphdef, cfg, dtype, ends, mesh, cache)
        self._params = self.programs.prepare_weights(state)

    def prefill_shared(self, ids_S: np.ndarray) -> SharedPrefix:
        """The prefix that rows share: text from position 0 on, without an image."""
        padded = _padded(ids_S, next_bucket(len(ids_S)), self._pad)
        self.counts.shared_tokens += len(ids_S)
        cache = self.programs.prefill_shared(self._params, jnp.asarray(padded[None]))
        return SharedPrefix(cache, np.array([len(ids_S)], np.int32))

    def decode(
        self, batch: QuestionBatch, shared: SharedPrefix, questions: Sequence[QuestionTokens],
        vectors_UD: jax.Array,
    ) -> list[AnswerTokens]:  # fmt: skip
        """Greedy answers to a batch's members, in their order.

        questions: without the tokens of `shared`.
        """
        hidden, context = self._prefill(batch, shared, questions, vectors_UD, num_logits=1)
        limits = _padded([questions[i].max_answer for i in batch.members], len(hidden), 0)
        state = self.programs.start_answers(
            self._params, hidden, self._on_rows(limits), room=batch.answer,
            size=min(_FIRST_BUCKET, batch.answer),
        )  # fmt: skip
        del hidden
        return self._run_buckets(shared, context, state, len(batch.members), batch.answer)

    def score(
        self, batch: QuestionBatch, shared: SharedPrefix, questions: Sequence[QuestionTokens],
        vectors_UD: jax.Array, wanted: Sequence[Sequence[Sequence[int]]],
    ) -> list[tuple[np.ndarray, bool]]:  # fmt: skip
        """Log-probabilities (M,K) behind a batch's members, and whether logits were finite.

        wanted: the K tokens at each of the last M positions of each member.
        """
        num_logits = len(wanted[0])
        hidden, _ = self._prefill(batch, shared, questions, vectors_UD, num_logits)
        most = max(len(ids) for positions in wanted for ids in positions)
        ids_BMK = np.zeros((len(hidden), num_logits, -(-most // 16) * 16), np.int32)
        for b, positions in enumerate(wanted):
            for m, ids in enumerate(positions):
                ids_BMK[b, m, : len(ids)] = ids
        logps, finite = self.programs.score_logps(self._params, hidden, self._on_rows(ids_BMK))
        both = zip(np.asarray(logps), np.asarray(finite))
        return [(logp, bool(ok)) for logp, ok in both][: len(batch.members)]

    def _prefill(
        self, batch: QuestionBatch, shared: SharedPrefix, questions: Sequence[QuestionTokens],
        vectors_UD: jax.Array, num_logits: int,
    ) -> tuple[jax.Array, QuestionCache]:  # fmt: skip
        """Hidden states of the last `num_logits` tokens of each row, and the rows' context."""
        P, B = self._limits.pad_rows(len(batch.groups)), self._limits.pad_rows(len(batch.members))
        groups: list[PrefixGroup] = [group for group in batch.groups for _ in group.members]
        prefixes = None
        if batch.prefix:
            firsts = [questions[g.members[0]].span(0, g.prefix) for g in batch.groups]
            tokens = self._pack(firsts, P, batch.prefix)
            cache = self.programs.prefill_prefixes(self._params, vectors_UD, tokens, shared)
            group_index = [n for n, group in enumerate(batch.groups) for _ in group.members]
            cache = self.programs.take_rows(cache, self._on_rows(_padded(group_index, B, 0)))
            prefixes = cache, self._on_rows(_padded([g.prefix for g in groups], B, 1))
        own = [questions[i].span(group.prefix) for i, group in zip(batch.members, groups)]
        hidden, context = self.programs.prefill_questions(
            self._params, vectors_UD, self._pack(own, B, batch.own), shared, prefixes,
            num_logits=num_logits,
        )  # fmt: skip
        counts = self.counts
        counts.prefix_tokens += sum(group.prefix for group in batch.groups)
        counts.question_tokens += sum(span.size for span in own)
        counts.padded_tokens += P * batch.prefix + B * batch.own
        counts.most_tokens = max(counts.most_tokens, B * batch.row_tokens)
        return hidden, context

    def _run_buckets(
        self, shared: SharedPrefix, context: QuestionCache, state: AnswerState, count: int,
        longest: int,
    ) -> list[AnswerTokens]:  # fmt: skip
        """Buckets of the answer loop; between them finished rows are dropped by halves."""
        answers: dict[int, AnswerTokens] = {}
        B = state.done_B.shape[0]
        owner = np.where(np.arange(B) < count, np.arange(B), -1)
        while True:
            first = int(state.step)
            state = self.programs.decode_bucket(self._params, shared, context, state)
            done = np.asarray(state.done_B)
            self.counts.decoded += (int(state.step) - first) * len(done)
            if done.all():
                _collect(answers, state, owner, done)
                return [answers[i] for i in range(count)]
            left = np.flatnonzero(~done)
            if (fewer := self._limits.pad_rows(len(left))) < len(done):
                _collect(answers, state, owner, done)
                index = _padded(left, fewer, 0)
                alive = np.arange(fewer) < len(left)
                owner = np.where(alive, owner[index], -1)
                context, state = self.programs.take_rows((context, state), self._on_rows(index))
                state = replace(state, done_B=state.done_B | ~self._on_rows(alive))
            size = min(2 * state.cache.size, longest)
            state = replace(state, cache=grow_cache(state.cache, size))

    def _pack(self, spans: Sequence[QuestionTokens], number: int, size: int) -> PackedTokens:
        """Token spans as arrays of `number` rows; a row of padding has full length."""
        ids = np.full((number, size), self._pad, np.int32)
        index = np.full((number, size), -1, np.int32)
        positions = np.zeros((number, 3, size), np.int32)
        lengths = _padded([span.size for span in spans], number, size)
        for b, span in enumerate(spans):
            ids[b, : span.size] = span.ids_S
            index[b, : span.size] = span.vector_index_S
            positions[b, :, : span.size] = span.positions_3S
        return jax.tree.map(self._on_rows, PackedTokens(ids, index, positions, lengths))

    def _on_rows(self, x: np.ndarray) -> jax.Array:
        return jnp.asarray(x) if self._mesh is None else jax.device_put(x, row_sharding(self._mesh))


@dataclass(frozen=True)
class TextPrograms:
    """The text model's jitted functions, named as in the module `programs`.

    `prepare_weights` makes DecodeWeights over the mesh of the decoder's state; `take_rows` takes
    the rows of a tree by their index.
    """

    prepare_weights: Callable[[nnx.State], DecodeWeights]
    prefill_shared: Any
    prefill_prefixes: Any
    prefill_questions: Any
    start_answers: Any
    decode_bucket: Any
    score_logps: Any
    take_rows: Any


def text_programs(
    graphdef: nnx.GraphDef, cfg: DecoderConfig, dtype: Any, ends: tuple[int, ...],
    mesh: Mesh | None, cache: CacheDtype = "auto",
) -> TextPrograms:  # fmt: skip
    """Jitted functions of a decoder; arguments as for `TextRunner`. Nothing is compiled yet."""
    cache_dtype = resolve_cache_dtype(cache, dtype)

    def prepare_weights(state: nnx.State) -> DecodeWeights:
        decoder = nnx.merge(graphdef, state)
        assert isinstance(decoder, Decoder)
        params = decode_weights(decoder, dtype)
        if mesh is None:
            return params
        return jax.lax.with_sharding_constraint(params, decode_weights_shardings(params, mesh))

    def jit_rows(function: Callable[..., Any], static: tuple[str, ...] = ()) -> Any:
        """`function` jitted; the rows of its results over the mesh."""

        def program(*args: Any, **kwargs: Any) -> Any:
            return _pin_rows(function(*args, **kwargs), mesh)

        return jax.jit(program, static_argnames=static)

    return TextPrograms(
        prepare_weights=jax.jit(prepare_weights),
        prefill_shared=jax.jit(
            partial(prefill_shared, cfg=cfg, cache_dtype=cache_dtype),
            out_shardings=None if mesh is None else shared_prefix_sharding(mesh),
        ),
        prefill_prefixes=jit_rows(partial(prefill_prefixes, cfg=cfg, cache_dtype=cache_dtype)),
        prefill_questions=jit_rows(
            partial(prefill_questions, cfg=cfg, cache_dtype=cache_dtype), ("num_logits",)
        ),
        start_answers=jit_rows(
            partial(start_answers, cfg=cfg, ends=ends, cache_dtype=cache_dtype), ("room", "size")
        ),
        decode_bucket=BucketLoop(partial(decode_bucket, cfg=cfg, ends=ends)),
        score_logps=jax.jit(score_logps),
        take_rows=jit_rows(_take_rows),
    )


def shared_prefix_sharding(mesh: Mesh) -> NamedSharding:
    """Of a shared prefix's keys and values: the kv heads lie over `tensor`, the rest is whole."""
    return NamedSharding(mesh, PartitionSpec(None, "tensor"))


def _take_rows(tree: Any, index: jax.Array) -> Any:
    """Rows of every array that has any; scalars as they are."""
    return jax.tree.map(lambda x: x[index] if x.ndim else x, tree)


def _pin_rows(tree: Any, mesh: Mesh | None) -> Any:
    """Rows over the mesh, and kv heads of KV caches."""
    if mesh is None:
        return tree

    def pin(x: Any) -> Any:
        if isinstance(x, KVCache):
            sharding = cache_sharding(mesh)
        else:
            sharding = NamedSharding(mesh, ROWS if x.ndim else PartitionSpec())
        return jax.lax.with_sharding_constraint(x, sharding)

    return jax.tree.map(pin, tree, is_leaf=lambda x: isinstance(x, KVCache))


def _padded(values: Any, size: int, fill: int) -> np.ndarray:
    """int32 (size,), `fill` behind the values."""
    out = np.full((size,), fill, np.int32)
    out[: len(values)] = values
    return out


def _collect(
    answers: dict[int, AnswerTokens], state: AnswerState, owner: np.ndarray, done: np.ndarray
) -> None:
    """Adds the answers of finished rows; `owner` is the answer's number, -1 for padding."""
    ids, length = np.asarray(state.ids_BT), np.asarray(state.len_B)
    ended, finite = np.asarray(state.ended_B), np.asarray(state.finite_B)
    for b in np.flatnonzero(done & (owner >= 0)):
        tokens = tuple(ids[b, : length[b]].tolist())
        answers[int(owner[b])] = AnswerTokens(tokens, bool(ended[b]), bool(finite[b]))


def row_shards(mesh: Mesh | None) -> int:
    """Every number of rows is a multiple of this."""
    return 1 if mesh is None else row_multiple(mesh)
