"""Causal attention in blocks, for CPUs: there the passes over the scores take most of the time."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_BLOCK, _MOST_BLOCKS = 64, 8


def is_on_cpu(x: jax.Array) -> bool:
    """Whether a program that is traced here will run on CPUs: its mesh's, else the default ones."""
    device = getattr(jax.typeof(x).sharding.mesh, "abstract_device", None)
    platform = getattr(device, "platform", None)
    return (platform or jax.default_backend()) == "cpu"


def blockwise_causal_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """q (B,S,H,C), k and v (B,S,K,C) -> (B,S,H,C), as `jax.nn.dot_product_attention`.

    A block of queries sees the keys up to its end only, which saves up to half of the scores. The
    weights are divided by their sum after the product with v, a pass over (S, C) instead of (S, S).
    Scores and sums are float32.
    """
    B, S, H, C = q.shape
    K = k.shape[2]
    q = (q * C**-0.5).reshape(B, S, K, H // K, C).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    blocks = min(-(-S // _BLOCK), _MOST_BLOCKS)
    ends = [S * i // blocks for i in range(blocks + 1)]
    mixed = [
        _attend(q[..., start:end, :], k[:, :, :end], v[:, :, :end], start)
        for start, end in zip(ends, ends[1:])
    ]
    out = jnp.concatenate(mixed, axis=3).astype(v.dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, S, H, C)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, start: int) -> jax.Array:
    """Queries (B,K,G,Q,C) from position `start` on, keys and values (B,K,E,C) -> (B,K,G,Q,C)."""
    wide = {"preferred_element_type": jnp.float32}
    scores = jnp.einsum("bkgqc,bkec->bkgqe", q, k, **wide)
    Q, E = scores.shape[-2:]
    seen = jnp.arange(E)[None, :] <= start + jnp.arange(Q)[:, None]
    scores = jnp.where(seen, scores, -jnp.inf)
    # Its own position is always seen, so the maximum is finite.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    mixed = jnp.einsum("bkgqe,bkec->bkgqc", weights.astype(v.dtype), v, **wide)
    return mixed / weights.sum(-1, keepdims=True)
