"""The decoder's forward pass on `DecodeWeights`: prefill of sequences, or one token per row.

`models.decoder.DecoderBlock` is not used here: its q, k, v, gate and up are separate kernels, each
with its adapter, and stacked layers would be sliced at every token. With few rows the time of a
token is the time to read the weights; so q, k, v are one product, gate and up another, and each
layer has its own arrays, outputs first. Norm and rotary embedding are shared with the module; tests
compare the rest with its full forward. Letters as in `decoding.kv_cache`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from gotr1_jax.decoding.kv_cache import KVCache
from gotr1_jax.decoding.panels import Matrix, Panels
from gotr1_jax.decoding.weights import AdapterWeights, DecodeWeights, LayerWeights
from gotr1_jax.models.attention import attention, flash_attention_behind
from gotr1_jax.models.config import DecoderConfig
from gotr1_jax.models.decoder import apply_rope, rope_tables
from gotr1_jax.models.flash import AttentionMask
from gotr1_jax.models.layers import rms_norm

MASKED = -1e30
"""Score of a masked slot: finite, so that a fully masked cache yields no NaN."""


# layer index, q (..., K, g, h), k (..., K, h), v (..., K, h) -> attention output (..., K, g, h)
LayerAttend = Callable[[int, jax.Array, jax.Array, jax.Array], jax.Array]


class ReadableCache(Protocol):
    """A KVCache, or several caches with the same interface, as read by attention."""

    def scores(self, layer: int, q_BKgh: jax.Array, /) -> jax.Array: ...
    def values(self, layer: int, weights_BKgS: jax.Array, /) -> jax.Array: ...


def attend_to_caches(
    layer: int, q_BKgh: jax.Array, caches: Sequence[tuple[ReadableCache, jax.Array]]
) -> jax.Array:
    """Attention of one token per row over several caches with one softmax: (B,K,g,h).

    caches: each with an additive mask, 0 or MASKED, that broadcasts to its scores (B,K,g,S).
    """
    q = q_BKgh * q_BKgh.shape[-1] ** -0.5
    scores = [cache.scores(layer, q) + bias for cache, bias in caches]
    joined = jnp.concatenate(scores, axis=-1)
    weights = jnp.exp(joined - joined.max(axis=-1, keepdims=True))
    inverse = 1.0 / weights.sum(axis=-1, keepdims=True)
    ends = np.cumsum([part.shape[-1] for part in scores])[:-1].tolist()
    parts = jnp.split(weights.astype(q.dtype), ends, axis=-1)
    mixed = [cache.values(layer, part) for part, (cache, _) in zip(parts, caches)]
    return (sum(mixed[1:], mixed[0]) * inverse).astype(q.dtype)


def rope_table(cfg: DecoderConfig, size: int) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of positions 0 .. size-1, float32 (size, h // 2)."""
    return rope_tables(jnp.arange(size, dtype=jnp.int32), cfg.head_dim, cfg.rope_theta)


def project(
    x: jax.Array, weight: Matrix, contracted: int = 1, dtype: jnp.dtype | None = None
) -> jax.Array:
    """Sum over the last `contracted` axes of x (..., *in) and weight (*out, *in): (..., *out).

    The sum is accumulated in float32 and rounded to `dtype` (None: of x). Logits take float32:
    rounded to bfloat16, values near 20 would lie .125 apart.

    On a CPU the product is weight @ x.T: XLA then packs the smaller operand, which makes decoding
    of a few rows a third faster; or of `panels`, which the caller made.
    """
    lead = x.shape[: x.ndim - contracted]
    if isinstance(weight, Panels):
        y = weight.product(x.reshape(math.prod(lead), -1), dtype)
        return y.reshape(*lead, *weight.out)
    x = x.reshape(-1, *x.shape[len(lead) :])

    def weight_first(x: jax.Array, weight: jax.Array) -> jax.Array:
        axes = range(weight.ndim - contracted, weight.ndim), range(1, x.ndim)
        product = jax.lax.dot_general(weight, x, (axes, ((), ())), preferred_element_type=dtype)
        # Without the barrier XLA swaps the operands back.
        return jnp.moveaxis(jax.lax.optimization_barrier(product), -1, 0)

    def rows_first(x: jax.Array, weight: jax.Array) -> jax.Array:
        axes = range(1, x.ndim), range(weight.ndim - contracted, weight.ndim)
        return jax.lax.dot_general(x, weight, (axes, ((), ())), preferred_element_type=dtype)

    y = jax.lax.platform_dependent(x, weight, cpu=weight_first, default=rows_first)
    return y.reshape(*lead, *y.shape[1:])


def adapted(
    x: jax.Array, weight: Matrix, lora: AdapterWeights | None, contracted: int = 1
) -> jax.Array:
    """`project`, with the layer's adapters: rounded as by `models.layers.Linear`."""
    y = project(x, weight, contracted)
    if lora is None:
        return y
    # XLA on GPUs would make one product of the two that share x, and for it copy the weight behind
    # the adapter at every token.
    apart = jax.lax.optimization_barrier(x)
    return y + project(project(apart, lora.a, contracted), lora.b) * lora.scale


def _block(
    layer: LayerWeights, cfg: DecoderConfig, x: jax.Array, rope: tuple[jax.Array, jax.Array],
    attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
) -> jax.Array:  # fmt: skip
    """x (..., D), rope tables (..., h // 2) of its positions -> (..., D)."""
    g = cfg.num_heads // cfg.num_kv_heads
    cos, sin = rope
    normed = rms_norm(x, layer.attention_norm_D, cfg.norm_eps)
    qkv = adapted(normed, layer.qkv_KfhD, layer.qkv_lora)
    if layer.qkv_bias_Kfh is not None:
        qkv = qkv + layer.qkv_bias_Kfh
    qk = qkv[..., : g + 1, :]
    if layer.qk_norm_fh is not None:
        qk = rms_norm(qk, layer.qk_norm_fh, cfg.norm_eps)
    rotated = apply_rope(qk, (cos[..., None, :], sin[..., None, :]))
    mixed = attend(rotated[..., :g, :], rotated[..., g, :], qkv[..., g + 1, :])
    x = x + adapted(mixed, layer.out_DKgh, layer.out_lora, contracted=3)
    normed = rms_norm(x, layer.mlp_norm_D, cfg.norm_eps)
    gate_up = adapted(normed, layer.gate_up_2FD, layer.gate_up_lora)
    gated = jax.nn.silu(gate_up[..., 0, :]) * gate_up[..., 1, :]
    return x + adapted(gated, layer.down_DF, layer.down_lora)


def run_layers(
    params: DecodeWeights, cfg: DecoderConfig, x: jax.Array,
    rope: tuple[jax.Array, jax.Array], attend: LayerAttend, added: Sequence[jax.Array] = (),
) -> jax.Array:  # fmt: skip
    """All blocks and the final norm; layers are unrolled, so that no weight is sliced.

    added: arrays like x, added to the outputs of the first layers (DeepStack).
    """
    for i, layer in enumerate(params.layers):

        def attend_here(q: jax.Array, k: jax.Array, v: jax.Array, i: int = i) -> jax.Array:
            return attend(i, q, k, v)

        x = _block(layer, cfg, x, rope, attend_here)
        if i < len(added):
            x = x + added[i]
    return rms_norm(x, params.norm_D, cfg.norm_eps)


def text_logits(params: DecodeWeights, hidden: jax.Array) -> jax.Array:
    """(..., D) -> float32 (..., V)."""
    return project(hidden, params.text_head_VD, dtype=jnp.float32)


def prefill(
    params: DecodeWeights, cfg: DecoderConfig, x_NSD: jax.Array
) -> tuple[jax.Array, KVCache]:
    """Causal forward of embedded sequences (N,S,D): hidden (N,S,D) after the final norm; cache."""
    keys, values = [], []
    cos, sin = rope_table(cfg, x_NSD.shape[1])

    def attend(i: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        keys.append(k.transpose(0, 2, 3, 1))
        values.append(v.transpose(0, 2, 1, 3))
        by_head = q.reshape(*q.shape[:2], -1, q.shape[-1])
        return attention(by_head, k, v, AttentionMask(causal=True)).reshape(q.shape)

    hidden = run_layers(params, cfg, x_NSD, (cos[None], sin[None]), attend)
    return hidden, KVCache(tuple(keys), tuple(values))


def prefill_after(
    params: DecodeWeights, cfg: DecoderConfig, x_BSD: jax.Array, rope: tuple[jax.Array, jax.Array],
    before: Sequence[tuple[KVCache, jax.Array]], added: Sequence[jax.Array] = (),
) -> tuple[jax.Array, KVCache]:  # fmt: skip
    """Causal forward of embedded tokens that follow cached ones: hidden (B,S,D), and their cache.

    Args:
      rope: rotary tables (B, S, h // 2) of the tokens' positions.
      before: caches of N rows, each shared by B / N rows, with the number of filled slots, int32
        (B,) or (1,).
      added: as of `run_layers`.
    """
    S, keys, values = x_BSD.shape[1], [], []
    filled = [jnp.arange(c.size) < length[:, None, None, None, None] for c, length in before]
    sizes = [cache.size for cache, _ in before]
    ends = [int(n) for n in np.cumsum(sizes)]
    causal = jnp.tril(jnp.ones((S, S), bool))

    def attend(i: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        keys.append(k.transpose(0, 2, 3, 1))
        values.append(v.transpose(0, 2, 1, 3))
        B, _, K, g, h = q.shape
        floats = [(*cache.as_floats(i, k.dtype), length) for cache, length in before]
        by_kernel = flash_attention_behind(q.reshape(B, S, K * g, h), k, v, floats)
        if by_kernel is not None:
            return by_kernel.reshape(q.shape)
        # (B, K, g * S, h): the g query heads of all S tokens on one axis.
        q = q.transpose(0, 2, 3, 1, 4).reshape(B, K, g * S, h) * h**-0.5
        scores = [
            jnp.where(seen, cache.scores(i, q).reshape(B, K, g, S, size), MASKED)
            for size, seen, (cache, _) in zip(sizes, filled, before)
        ]
        wide = {"preferred_element_type": jnp.float32}
        own = jnp.einsum("bkxh,bkhs->bkxs", q, keys[i], **wide)
        scores.append(jnp.where(causal, own.reshape(B, K, g, S, S), MASKED))
        weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(v.dtype)
        *parts, weights = jnp.split(weights.reshape(B, K, g * S, sum(sizes) + S), ends, axis=-1)
        mixed = jnp.einsum("bkxs,bksh->bkxh", weights, values[i], **wide)
        for weights, (cache, _) in zip(parts, before):
            mixed = mixed + cache.values(i, weights)
        return mixed.astype(q.dtype).reshape(B, K, g, S, h).transpose(0, 3, 1, 2, 4)

    hidden = run_layers(params, cfg, x_BSD, rope, attend, added)
    return hidden, KVCache(tuple(keys), tuple(values))
