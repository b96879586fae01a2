"""The decoder on `TextParams`: whole stretches at once (prefill), or one token a row.

The same mathematics as `models.decoder.Block`; a test holds the two together. Letters as in
`sampling.state`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gotr1_jax.decoding.kv_cache import KVCache
from gotr1_jax.decoding.weights import LayerWeights, TextParams
from gotr1_jax.models.config import DecoderConfig
from gotr1_jax.models.decoder import rope_tables

MASKED = -1e30
"""Score of a masked slot: finite, so that a fully masked segment yields no NaN."""


# layer index, q (..., K, g, h), k (..., K, h), v (..., K, h) -> mixed values (..., K, g, h)
LayerAttend = Callable[[int, jax.Array, jax.Array, jax.Array], jax.Array]


def rope_table(cfg: DecoderConfig, size: int) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of positions 0 .. size-1, float32 (size, h // 2)."""
    return rope_tables(jnp.arange(size, dtype=jnp.int32), cfg.head_dim, cfg.rope_theta)


def project(x: jax.Array, weight: jax.Array, contracted: int = 1) -> jax.Array:
    """Sum over the last `contracted` axes of x (..., *in) and weight (*out, *in): (..., *out).

    On a CPU the product is made as weight @ x.T: with a handful of rows XLA's matrix product is
    bound by the operand that it packs, and this way that is the small one (a third faster in all).
    """
    lead = x.shape[: x.ndim - contracted]
    x = x.reshape(-1, *x.shape[len(lead) :])

    def weight_first(x: jax.Array, weight: jax.Array) -> jax.Array:
        axes = range(weight.ndim - contracted, weight.ndim), range(1, x.ndim)
        product = jax.lax.dot_general(weight, x, (axes, ((), ())))
        # Without the barrier XLA swaps the operands back.
        return jnp.moveaxis(jax.lax.optimization_barrier(product), -1, 0)

    def rows_first(x: jax.Array, weight: jax.Array) -> jax.Array:
        axes = range(1, x.ndim), range(weight.ndim - contracted, weight.ndim)
        return jax.lax.dot_general(x, weight, (axes, ((), ())))

    y = jax.lax.platform_dependent(x, weight, cpu=weight_first, default=rows_first)
    return y.reshape(*lead, *y.shape[1:])


def _norm(x: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return wide.astype(x.dtype) * scale_D


def _rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, None, :], sin[..., None, None, :]
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], -1).astype(x.dtype)


def _block(
    layer: LayerWeights, cfg: DecoderConfig, x: jax.Array, rope: tuple[jax.Array, jax.Array],
    attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
) -> jax.Array:  # fmt: skip
    """x (..., D), rope tables (..., h // 2) of its positions -> (..., D)."""
    g = cfg.num_heads // cfg.num_kv_heads
    normed = _norm(x, layer.attention_norm_D, cfg.norm_eps)
    qkv = project(normed, layer.qkv_KfhD)
    if layer.qkv_bias_Kfh is not None:
        qkv = qkv + layer.qkv_bias_Kfh
    turned = _rotate(qkv[..., : g + 1, :], *rope)
    mixed = attend(turned[..., :g, :], turned[..., g, :], qkv[..., g + 1, :])
    x = x + project(mixed, layer.out_DKgh, contracted=3)
    normed = _norm(x, layer.mlp_norm_D, cfg.norm_eps)
    gate_up = project(normed, layer.gate_up_2FD)
    return x + project(jax.nn.silu(gate_up[..., 0, :]) * gate_up[..., 1, :], layer.down_DF)


def run_layers(
    params: TextParams, cfg: DecoderConfig, x: jax.Array,
    rope: tuple[jax.Array, jax.Array], attend: LayerAttend,
) -> jax.Array:  # fmt: skip
    """All blocks and the final norm; layers are unrolled, so no weight is ever sliced out."""
    for i, layer in enumerate(params.layers):

        def attend_here(q: jax.Array, k: jax.Array, v: jax.Array, i: int = i) -> jax.Array:
            return attend(i, q, k, v)

        x = _block(layer, cfg, x, rope, attend_here)
    return _norm(x, params.norm_D, cfg.norm_eps)


def text_logits(params: TextParams, hidden: jax.Array) -> jax.Array:
    """(..., D) -> float32 (..., V)."""
    return project(hidden, params.text_head_VD).astype(jnp.float32)


def shared_scores(q_BKgh: jax.Array, k_PKhS: jax.Array) -> jax.Array:
    """Scores (B,K,g,S) of B = P·G rows against keys that G rows share; unscaled, float32."""
    P, (B, K, g, h) = k_PKhS.shape[0], q_BKgh.shape
    if P == B:  # XLA's CPU backend cannot widen this product of bfloat16
        return jnp.einsum("bkgh,bkhs->bkgs", q_BKgh, k_PKhS).astype(jnp.float32)
    q = q_BKgh.reshape(P, B // P, K, g, h)
    wide = {"preferred_element_type": jnp.float32}
    scores = jnp.einsum("pnkgh,pkhs->pnkgs", q, k_PKhS, **wide)
    return scores.reshape(B, K, g, k_PKhS.shape[-1])


def shared_values(weights_BKgS: jax.Array, v_PKSh: jax.Array) -> jax.Array:
    """Values (B,K,g,h) that G rows share, mixed by each row's weights."""
    P, (B, K, g, S) = v_PKSh.shape[0], weights_BKgS.shape
    weights = weights_BKgS.reshape(P, B // P, K, g, S)
    mixed = jnp.einsum("pnkgs,pksh->pnkgh", weights, v_PKSh)
    return mixed.reshape(B, K, g, v_PKSh.shape[-1])


def softmax_parts(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """exp(scores - max) and the inverse of its sum over the last axis, which is kept."""
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights, 1.0 / weights.sum(axis=-1, keepdims=True)


def prefill(params: TextParams, cfg: DecoderConfig, ids_NS: jax.Array) -> tuple[jax.Array, KVCache]:
    """Text from position 0 on, causal: hidden (N,S,D) after the final norm, and the segment."""
    return prefill_embedded(params, cfg, params.text_embed_VD[ids_NS])


def prefill_embedded(
    params: TextParams, cfg: DecoderConfig, x_NSD: jax.Array,
    rope: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, KVCache]:  # fmt: skip
    """As `prefill`, of embedded tokens: some of them may be an image's.

    rope: rotary tables (N or 1, S, h // 2); None takes positions 0 .. S-1.
    """
    S, keys, values = x_NSD.shape[1], [], []
    if rope is None:
        cos, sin = rope_table(cfg, S)
        rope = cos[None], sin[None]

    def attend(i: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        keys.append(k.transpose(0, 2, 3, 1))
        values.append(v.transpose(0, 2, 1, 3))
        flat = q.reshape(*q.shape[:2], -1, q.shape[-1])
        return jax.nn.dot_product_attention(flat, k, v, is_causal=True).reshape(q.shape)

    hidden = run_layers(params, cfg, x_NSD, rope, attend)
    return hidden, KVCache(tuple(keys), tuple(values))


def prefill_behind(
    params: TextParams, cfg: DecoderConfig, ids_BS: jax.Array, captions: KVCache,
    caption_len_B: jax.Array,
) -> KVCache:  # fmt: skip
    """Text behind captions, causal: the segment of ids (B,S), row b starting at caption_len_B[b].

    captions: segment of P captions, each shared by B / P rows.
    """
    S = ids_BS.shape[1]
    cos, sin = rope_table(cfg, captions.size + S)
    positions_BS = caption_len_B[:, None] + jnp.arange(S, dtype=jnp.int32)
    x, rope = params.text_embed_VD[ids_BS], (cos[positions_BS], sin[positions_BS])
    return prefill_embedded_behind(params, cfg, x, rope, [(captions, caption_len_B)])[1]


def prefill_embedded_behind(
    params: TextParams, cfg: DecoderConfig, x_BSD: jax.Array, rope: tuple[jax.Array, jax.Array],
    before: Sequence[tuple[KVCache, jax.Array]],
) -> tuple[jax.Array, KVCache]:  # fmt: skip
    """As `prefill_behind`, of embedded tokens: hidden (B,S,D) after the final norm, and segment.

    Args:
      rope: rotary tables (B, S, h // 2) of the tokens' own positions.
      before: what stands in front: segments of N rows, each shared by B / N rows, and how many of
        its slots are filled, int32 (B,) or (1,).
    """
    S, keys, values = x_BSD.shape[1], [], []
    filled = [
        jnp.arange(segment.size) < length[:, None, None, None, None] for segment, length in before
    ]
    sizes = [segment.size for segment, _ in before]
    ends = [int(n) for n in np.cumsum(sizes)]
    causal = jnp.tril(jnp.ones((S, S), bool))

    def attend(i: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        keys.append(k.transpose(0, 2, 3, 1))
        values.append(v.transpose(0, 2, 1, 3))
        B, _, K, g, h = q.shape
        # The S tokens of a row stand where the g heads of one token stand while decoding.
        q = q.transpose(0, 2, 3, 1, 4).reshape(B, K, g * S, h) * h**-0.5
        scores = [
            jnp.where(seen, shared_scores(q, part.k_NKhS[i]).reshape(B, K, g, S, size), MASKED)
            for size, seen, (part, _) in zip(sizes, filled, before)
        ]
        own = jnp.einsum("bkxh,bkhs->bkxs", q, keys[i]).astype(jnp.float32)
        scores.append(jnp.where(causal, own.reshape(B, K, g, S, S), MASKED))
        weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(v.dtype)
        *parts, weights = jnp.split(weights.reshape(B, K, g * S, sum(sizes) + S), ends, axis=-1)
        mixed = jnp.einsum("bkxs,bksh->bkxh", weights, values[i])
        for weights, (part, _) in zip(parts, before):
            mixed = mixed + shared_values(weights, part.v_NKSh[i])
        return mixed.reshape(B, K, g, S, h).transpose(0, 3, 1, 2, 4)

    hidden = run_layers(params, cfg, x_BSD, rope, attend)
    return hidden, KVCache(tuple(keys), tuple(values))
