"""Chunks of questions through the compiled programs."""

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

from gotr1_jax.decoding.kv_cache import KVCache, cache_sharding, grow_cache
from gotr1_jax.decoding.weights import DecodeWeights, decode_weights, decode_weights_shardings
from gotr1_jax.models.config import DecoderConfig
from gotr1_jax.models.decoder import Decoder
from gotr1_jax.parallel.mesh import ROWS, row_multiple, row_sharding
from gotr1_jax.vlm_engine.packing import Chunk, Limits, TokenRow, rung
from gotr1_jax.vlm_engine.programs import (
    AnswerState,
    PackedTokens,
    PrefixCache,
    SharedPrefix,
    read_head,
    read_prefixes,
    read_questions,
    run_answer_bucket,
    score_logps,
    start_answers,
)

_FIRST_BUCKET = 32  # slots of the answers' cache to begin with


@dataclass(frozen=True)
class GeneratedAnswers:
    """A decoded answer: its tokens with the end token, and how it ended."""

    ids: tuple[int, ...]
    ended: bool
    finite: bool


@dataclass
class Counts:
    """Work done, for tests and measurements.

    Attributes:
      images: that went through the vision tower.
      head_tokens, prefix_tokens, question_tokens: read, without padding.
      padded_tokens: of prefixes and questions, with padding.
      decoded: steps of the answer loop times its rows.
      most_tokens: the largest chunk: rows times head, prefix, question and answer.
    """

    images: int = 0
    head_tokens: int = 0
    prefix_tokens: int = 0
    question_tokens: int = 0
    padded_tokens: int = 0
    decoded: int = 0
    most_tokens: int = 0


class ChunkRunner:
    """The text model's programs with its parameters.

    Args:
      text: graphdef and state of the split decoder.
      cfg: its sizes.
      dtype: of weights, activations and cache.
      ends: tokens that end an answer.
      pad: a token for padding.
      limits: of one program.
      mesh: rows are split over its axes `data` and `fsdp`, heads over `tensor`.
    """

    def __init__(
        self, text: tuple[nnx.GraphDef, nnx.State], cfg: DecoderConfig, dtype: Any,
        ends: tuple[int, ...], pad: int, limits: Limits, mesh: Mesh | None,
    ) -> None:  # fmt: skip
        self._pad, self._limits, self._mesh = pad, limits, mesh
        self.counts = Counts()
        graphdef, state = text
        self.programs = text_programs(graphdef, cfg, dtype, ends, mesh)
        self._params = self.programs.lay_out(state)

    def read_head(self, ids_S: np.ndarray) -> SharedPrefix:
        """What rows have in front of them: text from position 0 on, without an image."""
        padded = _padded(ids_S, rung(len(ids_S)), self._pad)
        self.counts.head_tokens += len(ids_S)
        segment = self.programs.read_head(self._params, jnp.asarray(padded[None]))
        return SharedPrefix(segment, np.array([len(ids_S)], np.int32))

    def write(
        self, chunk: Chunk, head: SharedPrefix, asked: Sequence[TokenRow], units: jax.Array
    ) -> list[GeneratedAnswers]:
        """Greedy answers to a chunk's members, in their order.

        asked: the questions, `head` taken off.
        """
        hidden, context, B = self._read(chunk, head, asked, units, reads=1)
        limits = _padded([asked[i].limit for i in chunk.members], B, 0)
        size = min(_FIRST_BUCKET, chunk.answer)
        state = self.programs.start(
            self._params, hidden, self._on_rows(limits), room=chunk.answer, size=size
        )
        del hidden
        return self._decode(head, context, state, len(chunk.members), chunk.answer)

    def score(
        self, chunk: Chunk, head: SharedPrefix, asked: Sequence[TokenRow], units: jax.Array,
        reads: int, wanted: Sequence[Sequence[Sequence[int]]],
    ) -> list[tuple[np.ndarray, bool]]:  # fmt: skip
        """Log-probabilities (M,K) behind a chunk's members, and whether logits were finite.

        wanted: for each member the tokens asked for at each of its last M = `reads` places.
        """
        hidden, _, B = self._read(chunk, head, asked, units, reads)
        most = max(len(ids) for places in wanted for ids in places)
        asked_BMK = np.zeros((B, reads, -(-most // 16) * 16), np.int32)
        for b, places in enumerate(wanted):
            for m, ids in enumerate(places):
                asked_BMK[b, m, : len(ids)] = ids
        logps, finite = self.programs.score(self._params, hidden, self._on_rows(asked_BMK))
        both = zip(np.asarray(logps), np.asarray(finite))
        return [(logp, bool(ok)) for logp, ok in both][: len(chunk.members)]

    def _read(
        self,
        chunk: Chunk,
        head: SharedPrefix,
        asked: Sequence[TokenRow],
        units: jax.Array,
        reads: int,
    ) -> tuple[jax.Array, PrefixCache, int]:
        """Hidden states of the last `reads` tokens, the context, and the number of rows."""
        members = chunk.members
        P, B = self._limits.padded(len(chunk.groups)), self._limits.padded(len(members))
        cuts = [group.prefix for group in chunk.groups]
        of_row = [g for g, group in enumerate(chunk.groups) for _ in group.members]
        prefixes = None
        if chunk.prefix:
            firsts = [asked[group.members[0]].part(0, group.prefix) for group in chunk.groups]
            prefix = self._stretch(firsts, P, chunk.prefix)
            segment = self.programs.read_prefixes(self._params, units, prefix, head)
            segment = self.programs.take(segment, self._on_rows(_padded(of_row, B, 0)))
            prefixes = segment, self._on_rows(_padded([cuts[g] for g in of_row], B, 1))
        rests = [asked[i].part(cuts[g]) for i, g in zip(members, of_row)]
        hidden, context = self.programs.read_questions(
            self._params, units, self._stretch(rests, B, chunk.rest), head, prefixes, reads=reads
        )
        counts = self.counts
        counts.prefix_tokens += sum(cuts)
        counts.question_tokens += sum(rest.size for rest in rests)
        counts.padded_tokens += P * chunk.prefix + B * chunk.rest
        counts.most_tokens = max(counts.most_tokens, B * chunk.row_tokens)
        return hidden, context, B

    def _decode(
        self, head: SharedPrefix, context: PrefixCache, state: AnswerState, count: int, longest: int
    ) -> list[GeneratedAnswers]:
        """Buckets of the answer loop; between them rows that are done are dropped by halves."""
        written: dict[int, GeneratedAnswers] = {}
        B = state.done_B.shape[0]
        owner = np.where(np.arange(B) < count, np.arange(B), -1)
        while True:
            before = state.step
            first = int(before)
            state = self.programs.bucket(self._params, head, context, state)
            done = np.asarray(state.done_B)
            self.counts.decoded += (int(state.step) - first) * len(done)
            if done.all():
                _collect(written, state, owner, done)
                return [written[i] for i in range(count)]
            left = np.flatnonzero(~done)
            if (fewer := self._limits.padded(len(left))) < len(done):
                _collect(written, state, owner, done)
                index = _padded(left, fewer, 0)
                alive = np.arange(fewer) < len(left)
                owner = np.where(alive, owner[index], -1)
                there = self._on_rows(index)
                context, state = self.programs.take((context, state), there)
                state = replace(state, done_B=state.done_B | ~self._on_rows(alive))
            size = min(2 * state.segment.size, longest)
            state = replace(state, segment=grow_cache(state.segment, size))

    def _stretch(self, parts: Sequence[TokenRow], number: int, size: int) -> PackedTokens:
        """Rows in arrays of `number` rows; those of padding are full."""
        ids = np.full((number, size), self._pad, np.int32)
        places = np.full((number, size), -1, np.int32)
        positions = np.zeros((number, 3, size), np.int32)
        lengths = _padded([row.size for row in parts], number, size)
        for b, row in enumerate(parts):
            ids[b, : row.size] = row.ids_S
            places[b, : row.size] = row.places_S
            positions[b, :, : row.size] = row.positions_3S
        return jax.tree.map(self._on_rows, PackedTokens(ids, places, positions, lengths))

    def _on_rows(self, x: np.ndarray) -> jax.Array:
        return jnp.asarray(x) if self._mesh is None else jax.device_put(x, row_sharding(self._mesh))


@dataclass(frozen=True)
class TextPrograms:
    """The text model's jitted functions; the module `programs` has what they compute.

    Attributes:
      lay_out: the decoder's state -> DecodeWeights over the mesh.
      read_head, read_prefixes, read_questions, start, bucket, score: what rows begin with,
        prefixes, questions behind them, the first tokens, a stretch of the answers, probabilities
        of scores.
      take: rows of a tree, by their index.
    """

    lay_out: Callable[[nnx.State], DecodeWeights]
    read_head: Any
    read_prefixes: Any
    read_questions: Any
    start: Any
    bucket: Any
    score: Any
    take: Any


def text_programs(
    graphdef: nnx.GraphDef, cfg: DecoderConfig, dtype: Any, ends: tuple[int, ...],
    mesh: Mesh | None,
) -> TextPrograms:  # fmt: skip
    """Jitted functions of a decoder; arguments as for `ChunkRunner`. Nothing is compiled yet."""

    def lay_out(state: nnx.State) -> DecodeWeights:
        decoder = nnx.merge(graphdef, state)
        assert isinstance(decoder, Decoder)
        params = decode_weights(decoder, dtype)
        if mesh is None:
            return params
        return jax.lax.with_sharding_constraint(params, decode_weights_shardings(params, mesh))

    def pinned(tree: Any) -> Any:
        return _pin(tree, mesh)

    def head(params: DecodeWeights, ids_1S: jax.Array) -> KVCache:
        segment = read_head(params, ids_1S, cfg)
        if mesh is None:
            return segment
        return jax.lax.with_sharding_constraint(segment, head_sharding(mesh))

    def prefixes(
        params: DecodeWeights, units: jax.Array, tokens: PackedTokens, head: SharedPrefix
    ) -> KVCache:
        return pinned(read_prefixes(params, units, tokens, head, cfg))

    def questions(
        params: DecodeWeights, units: jax.Array, tokens: PackedTokens, head: SharedPrefix,
        prefixes: tuple[KVCache, jax.Array] | None, reads: int,
    ) -> tuple[jax.Array, PrefixCache]:  # fmt: skip
        return pinned(read_questions(params, units, tokens, head, prefixes, cfg, reads))

    def start(
        params: DecodeWeights, hidden_BMD: jax.Array, limit: jax.Array, room: int, size: int
    ) -> AnswerState:
        return pinned(start_answers(params, hidden_BMD[:, -1], limit, cfg, ends, room, size))

    return TextPrograms(
        lay_out=jax.jit(lay_out),
        read_head=jax.jit(head),
        read_prefixes=jax.jit(prefixes),
        read_questions=jax.jit(questions, static_argnames="reads"),
        start=jax.jit(start, static_argnames=("room", "size")),
        bucket=jax.jit(partial(run_answer_bucket, cfg=cfg, ends=ends), donate_argnums=3),
        score=jax.jit(score_logps),
        take=jax.jit(lambda tree, index: pinned(_take_rows(tree, index))),
    )


def head_sharding(mesh: Mesh) -> NamedSharding:
    """Of a head's keys and values: whole but for the kv heads, which lie over `tensor`."""
    return NamedSharding(mesh, PartitionSpec(None, "tensor"))


def _take_rows(tree: Any, index: jax.Array) -> Any:
    """Rows of every array that has any; scalars as they are."""
    return jax.tree.map(lambda x: x[index] if x.ndim else x, tree)


def _pin(tree: Any, mesh: Mesh | None) -> Any:
    """Rows over the mesh, and kv heads of a cache, which is what has four dimensions."""
    if mesh is None:
        return tree

    def one(x: jax.Array) -> jax.Array:
        over = cache_sharding(mesh) if x.ndim == 4 else NamedSharding(mesh, ROWS)
        whole = NamedSharding(mesh, PartitionSpec())
        return jax.lax.with_sharding_constraint(x, over if x.ndim else whole)

    return jax.tree.map(one, tree)


def _padded(values: Any, size: int, fill: int) -> np.ndarray:
    """int32 (size,), `fill` behind the values."""
    out = np.full((size,), fill, np.int32)
    out[: len(values)] = values
    return out


def _collect(
    written: dict[int, GeneratedAnswers], state: AnswerState, owner: np.ndarray, done: np.ndarray
) -> None:
    """Takes over what rows that are done have written."""
    ids, length = np.asarray(state.ids_BT), np.asarray(state.len_B)
    ended, finite = np.asarray(state.ended_B), np.asarray(state.finite_B)
    for b in np.flatnonzero(done & (owner >= 0)):
        tokens = tuple(ids[b, : length[b]].tolist())
        written[int(owner[b])] = GeneratedAnswers(tokens, bool(ended[b]), bool(finite[b]))


def row_shards(mesh: Mesh | None) -> int:
    """Every number of rows is a multiple of this."""
    return 1 if mesh is None else row_multiple(mesh)
