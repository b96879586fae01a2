"""What is compiled: prefill of prefixes and questions, decoding of answers, scores.

The context of a row is the shared prefix (stored once for all rows), the prefix of its group (read
once for all its questions), the rest of its question, and its answer. Letters of array names are
those of `decoding.kv_cache`; U image vectors of W numbers (`models.qwen_vl`), M positions whose
logits are needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from gotr1_jax.decoding.forward import (
    MASKED,
    attend_to_caches,
    prefill,
    prefill_after,
    run_layers,
    text_logits,
)
from gotr1_jax.decoding.kv_cache import KVCache, cast_cache, empty_cache, join_slots, write_slot
from gotr1_jax.decoding.weights import DecodeWeights
from gotr1_jax.models.config import DecoderConfig
from gotr1_jax.models.decoder import mrope_tables, rope_tables
from gotr1_jax.models.qwen_vl import place_vectors


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedTokens:
    """Token spans of B rows, padded on the right.

    Attributes:
      ids_BS: int32 token ids.
      vector_index_BS: int32 index into the image vectors; -1 for text.
      positions_B3S: int32 positions in time, height and width.
      len_B: int32 tokens without padding.
    """

    ids_BS: jax.Array | np.ndarray
    vector_index_BS: jax.Array | np.ndarray
    positions_B3S: jax.Array | np.ndarray
    len_B: jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SharedPrefix:
    """The beginning of all rows (the system's turn, an instruction): KV cache of one row.

    `len_1` is int32 (1,), the number of filled slots.
    """

    cache: KVCache
    len_1: jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QuestionCache:
    """The context of an answer behind the shared prefix.

    Attributes:
      cache: KV cache of prefix and question, B rows.
      bias_BS: float32 0 at its filled slots, MASKED elsewhere.
      start_B: int32 position of an answer's first token.
    """

    cache: KVCache
    bias_BS: jax.Array
    start_B: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AnswerState:
    """The answers so far. All rows are at the same step; a finished row idles along.

    Attributes:
      cache: KV cache of the answers; slot t holds token t.
      token_B: int32 the newest token, not yet read.
      ids_BT: int32 tokens so far; what stands behind `len_B` means nothing.
      len_B: int32 tokens of each answer, the end token included.
      limit_B: int32 tokens at which an answer is cut.
      done_B: the row has its end token, is cut, or has logits that are not finite.
      ended_B: it has its end token.
      finite_B: all logits that a token of it was taken from were finite.
      step: int32 scalar, tokens read so far; one fewer than picked.
    """

    cache: KVCache
    token_B: jax.Array
    ids_BT: jax.Array
    len_B: jax.Array
    limit_B: jax.Array
    done_B: jax.Array
    ended_B: jax.Array
    finite_B: jax.Array
    step: jax.Array


def prefill_shared(
    params: DecodeWeights, ids_1S: jax.Array, cfg: DecoderConfig, cache_dtype: jnp.dtype
) -> KVCache:
    """Keys and values of a text from position 0 on."""
    return cast_cache(prefill(params, cfg, params.text_embed_VD[ids_1S])[1], cache_dtype)


def prefill_prefixes(
    params: DecodeWeights, vectors_UW: jax.Array, tokens: PackedTokens, shared: SharedPrefix,
    cfg: DecoderConfig, cache_dtype: jnp.dtype,
) -> KVCache:  # fmt: skip
    """Keys and values of the groups' prefixes behind the shared prefix."""
    x, added, rope = _embed(params, vectors_UW, tokens, cfg)
    cache = prefill_after(params, cfg, x, rope, [_filled(shared)], added)[1]
    return cast_cache(cache, cache_dtype)


def prefill_questions(
    params: DecodeWeights, vectors_UW: jax.Array, tokens: PackedTokens, shared: SharedPrefix,
    prefixes: tuple[KVCache, jax.Array] | None, cfg: DecoderConfig, num_logits: int,
    cache_dtype: jnp.dtype,
) -> tuple[jax.Array, QuestionCache]:  # fmt: skip
    """Questions behind their prefixes: hidden (B,M,D) of their last M tokens, and the context.

    prefixes: B rows, one for each question, and how many of their slots are filled, int32 (B,);
    None: the questions follow the shared prefix at once. `num_logits` is M.
    """
    x, added, rope = _embed(params, vectors_UW, tokens, cfg)
    before = [] if prefixes is None else [prefixes]
    hidden, own = prefill_after(params, cfg, x, rope, [_filled(shared), *before], added)
    at_BM = jnp.asarray(tokens.len_B)[:, None] - num_logits + jnp.arange(num_logits)
    hidden_BMD = jnp.take_along_axis(hidden, at_BM[..., None], axis=1)
    parts = [*before, (cast_cache(own, cache_dtype), jnp.asarray(tokens.len_B))]
    cache = join_slots([part for part, _ in parts])
    filled = jnp.concatenate([jnp.arange(s.size) < n[:, None] for s, n in parts], axis=1)
    last = jnp.take_along_axis(jnp.asarray(tokens.positions_B3S)[:, 0], at_BM[:, -1:], axis=1)
    return hidden_BMD, QuestionCache(cache, jnp.where(filled, 0.0, MASKED), last[:, 0] + 1)


def _filled(shared: SharedPrefix) -> tuple[KVCache, jax.Array]:
    return shared.cache, jnp.asarray(shared.len_1)


def _embed(
    params: DecodeWeights, vectors_UW: jax.Array, tokens: PackedTokens, cfg: DecoderConfig
) -> tuple[jax.Array, list[jax.Array], tuple[jax.Array, jax.Array]]:
    """Embedded tokens, what image tokens add to the first layers' outputs, and rotary tables."""
    x = params.text_embed_VD[tokens.ids_BS]
    x, added = place_vectors(x, jnp.asarray(tokens.vector_index_BS), vectors_UW)
    positions_3BS = jnp.moveaxis(jnp.asarray(tokens.positions_B3S), 1, 0)
    return x, added, mrope_tables(positions_3BS, cfg)


def score_logps(
    params: DecodeWeights, hidden_BMD: jax.Array, ids_BMK: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities float32 (B,M,K) of `ids_BMK`; bool (B,), whether logits are finite."""
    logits = text_logits(params, hidden_BMD)
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    logps = jnp.take_along_axis(logits, ids_BMK, axis=-1) - total
    return logps, jnp.isfinite(logits).all(axis=(1, 2))


def start_answers(
    params: DecodeWeights, hidden_BMD: jax.Array, limit_B: jax.Array, cfg: DecoderConfig,
    ends: tuple[int, ...], room: int, size: int, cache_dtype: jnp.dtype,
) -> AnswerState:  # fmt: skip
    """The first token of every row. A row with limit_B 0 is padding.

    room: T, the longest answer; size: slots of the KV cache at first.
    """
    B = hidden_BMD.shape[0]
    nothing = jnp.zeros((B,), bool)
    state = AnswerState(
        cache=empty_cache(cfg, B, size, cache_dtype),
        token_B=jnp.zeros((B,), jnp.int32),
        ids_BT=jnp.zeros((B, room), jnp.int32),
        len_B=jnp.zeros((B,), jnp.int32),
        limit_B=limit_B,
        done_B=limit_B < 1,
        ended_B=nothing,
        finite_B=~nothing,
        step=jnp.int32(-1),
    )
    return _pick_token(state, text_logits(params, hidden_BMD[:, -1]), ends)


def _pick_token(state: AnswerState, logits_BV: jax.Array, ends: tuple[int, ...]) -> AnswerState:
    """The most likely token of every unfinished row."""
    t, going = state.step + 1, ~state.done_B
    picked = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    finite = jnp.isfinite(logits_BV).all(axis=-1)
    is_end = jnp.isin(picked, jnp.array(ends, jnp.int32))
    return replace(
        state,
        token_B=picked,
        ids_BT=jax.lax.dynamic_update_slice(state.ids_BT, picked[:, None], (0, t)),
        len_B=jnp.where(going, t + 1, state.len_B),
        done_B=state.done_B | is_end | ~finite | (t + 1 >= state.limit_B),
        ended_B=state.ended_B | (going & is_end),
        finite_B=state.finite_B & (finite | ~going),
        step=t,
    )


def decode_bucket(
    params: DecodeWeights, shared: SharedPrefix, context: QuestionCache, state: AnswerState,
    cfg: DecoderConfig, ends: tuple[int, ...],
) -> AnswerState:  # fmt: skip
    """Read and pick tokens until the answers' KV cache is full or every row is done."""
    size = state.cache.size
    filled = jnp.arange(shared.cache.size) < jnp.asarray(shared.len_1)
    shared_bias = jnp.where(filled, 0.0, MASKED)

    def unfinished(state: AnswerState) -> jax.Array:
        return (state.step < size) & ~jnp.all(state.done_B)

    def decode_token(state: AnswerState) -> AnswerState:
        t, cache = state.step, state.cache
        own_bias = jnp.where(jnp.arange(size) > t, MASKED, 0.0)

        def attend(i: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            nonlocal cache
            cache = write_slot(cache, i, t, k, v)
            caches = (
                (shared.cache, shared_bias), (context.cache, context.bias_BS[:, None, None]),
                (cache, own_bias),
            )  # fmt: skip
            return attend_to_caches(i, q, caches)

        rope = rope_tables(context.start_B + t, cfg.head_dim, cfg.rope_theta)
        x = params.text_embed_VD[state.token_B]
        hidden = run_layers(params, cfg, x, rope, attend)
        return _pick_token(replace(state, cache=cache), text_logits(params, hidden), ends)

    return jax.lax.while_loop(unfinished, decode_token, state)
