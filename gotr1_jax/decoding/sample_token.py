"""Sampling of a token from logits: greedy, top-k, top-p."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from gotr1_jax.decoding.config import TokenSamplingConfig


def top_k_top_p_filter(logits_BV: jax.Array, config: TokenSamplingConfig) -> jax.Array:
    """Set logits outside of the top-k and top-p sets to -inf.

    Top-k is applied first; the top-p set always contains the most likely token.
    """
    if 0 < config.top_k < logits_BV.shape[-1]:
        last = jax.lax.top_k(logits_BV, config.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV >= last, logits_BV, -jnp.inf)
    if config.top_p < 1.0:
        sorted_BV = -jnp.sort(-logits_BV, axis=-1)
        probability = jax.nn.softmax(sorted_BV, axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability
        last = jnp.min(jnp.where(before < config.top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV >= last, logits_BV, -jnp.inf)
    return logits_BV


def sample_token(
    logits_BV: jax.Array, keys_B: jax.Array, positions_B: jax.Array, config: TokenSamplingConfig
) -> tuple[jax.Array, jax.Array]:
    """Sample one token per row.

    Args:
      logits_BV: float32, after guidance and division by the temperature.
      keys_B: a key per row; the token's position is folded in, so that the token depends neither
        on the bucket nor on the index in the batch.
      positions_B: int32 position of the sampled token in its row.
      config: see `TokenSamplingConfig`.

    Returns:
      ids (B,) int32 and their log-probabilities (B,) under `logits_BV` before top-k and top-p.
    """
    if config.greedy:
        ids = first_largest(logits_BV)
    else:
        keys = jax.vmap(jax.random.fold_in)(keys_B, positions_B)
        # As jax.random.categorical; but there XLA takes the logarithms one by one on a CPU.
        draw = partial(jax.random.gumbel, shape=logits_BV.shape[1:], dtype=logits_BV.dtype)
        ids = first_largest(top_k_top_p_filter(logits_BV, config) + jax.vmap(draw)(keys))
    return ids, token_logp(logits_BV, ids)


def first_largest(x_BV: jax.Array) -> jax.Array:
    """As jnp.argmax of each row, int32 (B,); in two simple reductions, which are vectorised on a
    CPU. The last index for a row with a NaN."""
    V = x_BV.shape[-1]
    at_V = jnp.arange(V, dtype=jnp.int32)
    is_largest = x_BV == x_BV.max(axis=-1, keepdims=True)
    return jnp.where(is_largest, at_V, V - 1).min(axis=-1)


def token_logp(logits_BV: jax.Array, ids_B: jax.Array) -> jax.Array:
    """Log-probabilities (B,) of tokens (B,) under float32 logits."""
    chosen = jnp.take_along_axis(logits_BV, ids_B[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits_BV, axis=-1)
