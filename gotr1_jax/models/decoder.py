"""The decoder of the policy (Llama, Janus-Pro) and of the judge (Qwen2, Qwen3).

Layers are stacked: every array under `Decoder.layers` has a leading axis of length num_layers
and the forward pass is one `lax.scan`. For token-by-token decoding see `decoding.forward`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gotr1_jax.models.attention import (
    attention,
    blockwise_causal_attention,
    flash_attention,
    is_on_cpu,
)
from gotr1_jax.models.config import DecoderConfig, LoraConfig
from gotr1_jax.models.flash import AttentionMask
from gotr1_jax.models.layers import Embedding, Linear, RMSNorm, float32_product, stack_blocks
from gotr1_jax.parallel.sharding import constrain_rows

# q (B,S,H,C), k (B,S,K,C), v (B,S,K,C), rotary applied -> attention output (B,S,H,C)
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# What `jax.checkpoint` keeps of a block: nothing, matmul results, or everything (no remat).
REMAT_POLICIES: dict[str, Any] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def rope_frequencies(head_dim: int, theta: float) -> jax.Array:
    """Angle per position of each rotary pair, float32 (head_dim // 2,)."""
    return theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)


def rope_tables(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine, float32, of positions (...,) int32: each (..., head_dim // 2)."""
    angle = positions[..., None].astype(jnp.float32) * rope_frequencies(head_dim, theta)
    return jnp.cos(angle), jnp.sin(angle)


def mrope_axes(section: tuple[int, ...], interleaved: bool) -> np.ndarray:
    """The axis (0 time, 1 height, 2 width) of the positions that each rotary pair rotates with.

    In blocks (arXiv 2409.12191, section 2.1), or by turns, time taking what is left at the end
    (arXiv 2511.21631).
    """
    if not interleaved:
        return np.repeat(np.arange(3), section)
    axes = np.zeros(sum(section), int)
    for axis in (1, 2):
        axes[axis : 3 * section[axis] : 3] = axis
    return axes


def mrope_tables(positions_3: jax.Array, cfg: DecoderConfig) -> tuple[jax.Array, jax.Array]:
    """`rope_tables` of positions (3,...) in time, height and width: each (..., head_dim // 2)."""
    axes = mrope_axes(cfg.mrope_section, cfg.mrope_interleaved)
    by_pair = jnp.moveaxis(positions_3[axes], 0, -1)
    angle = by_pair.astype(jnp.float32) * rope_frequencies(cfg.head_dim, cfg.rope_theta)
    return jnp.cos(angle), jnp.sin(angle)


def apply_rope(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate x (..., S, heads, C) by tables (..., S, C // 2); pairs are (i, i + C // 2)."""
    cos, sin = (t[..., None, :] for t in tables)
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)
    return rotated.astype(x.dtype)


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Causal attention; k and v may have fewer heads than q (grouped-query attention)."""
    by_kernel = flash_attention(q, k, v, AttentionMask(causal=True))
    if by_kernel is not None:
        return by_kernel
    if is_on_cpu(q):
        return blockwise_causal_attention(q, k, v)
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def packed_attention(sequences_BS: jax.Array) -> Attend:
    """Causal attention within each of several sequences that share a row.

    sequences_BS: int32 number of the sequence that a token belongs to; padding is one of its own.
    """
    return partial(attention_within, segments_BS=sequences_BS, causal=True)


def attention_within(
    q: jax.Array, k: jax.Array, v: jax.Array, segments_BS: jax.Array, causal: bool
) -> jax.Array:
    """Attention among positions with the same number, int32; if causal, to earlier ones only."""
    return attention(q, k, v, AttentionMask(causal, (segments_BS, segments_BS)))


def checkpointed(step: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """A step (carry, layer) -> (carry, None) of a scan over layers by a policy of REMAT_POLICIES.

    With "full", all that is kept is the carry of every layer: it is spread over `tensor`, whose
    devices gather it when they compute the layer, and once more in the backward pass.
    """
    policy = REMAT_POLICIES[remat]
    if policy is None:
        return step
    recomputed = jax.checkpoint(step, policy=policy, prevent_cse=False)
    if remat != "full":
        return recomputed

    def spread(carry: Any, layer: Any) -> tuple[Any, None]:
        carry = jax.tree.map(lambda x: constrain_rows(x, width="tensor"), carry)
        carry, _ = recomputed(carry, layer)
        return jax.tree.map(lambda x: constrain_rows(x, width="tensor"), carry), None

    return spread


class DecoderBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); gated SiLU mlp."""

    def __init__(
        self, cfg: DecoderConfig, *, rngs: nnx.Rngs, lora: LoraConfig | None = None,
        param_dtype: jnp.dtype = jnp.float32,
    ) -> None:  # fmt: skip
        def linear(
            name: str, n_in: int, n_out: int, axes: tuple[str, str], bias: bool = False
        ) -> Linear:
            adapter = lora if lora is not None and name in lora.targets else None
            return Linear(
                n_in, n_out, rngs=rngs, axes=axes, bias=bias, lora=adapter, param_dtype=param_dtype
            )

        D, F = cfg.hidden_size, cfg.mlp_size
        q_size, kv_size = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
        self.cfg = cfg
        self.attention_norm = RMSNorm(D, cfg.norm_eps, param_dtype)
        self.q = linear("q", D, q_size, ("embed", "heads"), cfg.qkv_bias)
        self.k = linear("k", D, kv_size, ("embed", "kv_heads"), cfg.qkv_bias)
        self.v = linear("v", D, kv_size, ("embed", "kv_heads"), cfg.qkv_bias)
        self.o = linear("o", q_size, D, ("heads", "embed"))
        self.q_norm, self.k_norm = (
            RMSNorm(cfg.head_dim, cfg.norm_eps, param_dtype, axis=None) if cfg.qk_norm else None
            for _ in "qk"
        )
        self.mlp_norm = RMSNorm(D, cfg.norm_eps, param_dtype)
        self.gate = linear("gate", D, F, ("embed", "mlp"))
        self.up = linear("up", D, F, ("embed", "mlp"))
        self.down = linear("down", F, D, ("mlp", "embed"))

    def __call__(
        self, x: jax.Array, rope: tuple[jax.Array, jax.Array], attend: Attend
    ) -> jax.Array:
        """x (B,S,D), rope tables (B or 1,S,C//2) -> (B,S,D)."""
        cfg, lead = self.cfg, x.shape[:-1]
        x = constrain_rows(x)
        h = self.attention_norm(x)
        q = self.q(h).reshape(*lead, cfg.num_heads, cfg.head_dim)
        k = self.k(h).reshape(*lead, cfg.num_kv_heads, cfg.head_dim)
        v = self.v(h).reshape(*lead, cfg.num_kv_heads, cfg.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        mixed = attend(apply_rope(q, rope), apply_rope(k, rope), v)
        x = x + self.o(mixed.reshape(*lead, -1))
        h = self.mlp_norm(x)
        return constrain_rows(x + self.down(jax.nn.silu(self.gate(h)) * self.up(h)))


class Decoder(nnx.Module):
    """Token embedding, stacked blocks, final norm, text head."""

    def __init__(
        self, cfg: DecoderConfig, *, rngs: nnx.Rngs, lora: LoraConfig | None = None,
        param_dtype: jnp.dtype = jnp.float32, remat: str = "none",
    ) -> None:  # fmt: skip
        self.cfg = cfg
        self.remat = remat
        self.embed = Embedding(
            cfg.vocab_size, cfg.hidden_size, rngs=rngs, axes=("vocab", "embed"),
            param_dtype=param_dtype,
        )  # fmt: skip

        def block(rngs: nnx.Rngs) -> DecoderBlock:
            return DecoderBlock(cfg, rngs=rngs, lora=lora, param_dtype=param_dtype)

        self.layers = stack_blocks(block, rngs, cfg.num_layers)
        self.norm = RMSNorm(cfg.hidden_size, cfg.norm_eps, param_dtype)
        self.lm_head = (
            None
            if cfg.tie_embeddings
            else Linear(
                cfg.hidden_size, cfg.vocab_size, rngs=rngs, axes=("embed", "vocab"),
                param_dtype=param_dtype,
            )
        )  # fmt: skip

    def rope(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Rotary tables of positions (B or 1, S), or (3, B or 1, S) in time, height, width."""
        if positions.ndim == 3:
            return mrope_tables(positions, self.cfg)
        return rope_tables(positions, self.cfg.head_dim, self.cfg.rope_theta)

    def __call__(
        self, x: jax.Array, positions: jax.Array, attend: Attend = causal_attention,
        added_NBSD: jax.Array | None = None,
    ) -> jax.Array:  # fmt: skip
        """Embedded x (B,S,D), int32 positions as for `rope` -> hidden (B,S,D) after the norm.

        added_NBSD: is added to the outputs of the first N layers (DeepStack).
        """
        rope = self.rope(positions)
        graphdef, stacked = nnx.split(self.layers)
        index_L = None if added_NBSD is None else jnp.arange(self.cfg.num_layers)

        def step(h: jax.Array, layer: tuple[Any, jax.Array | None]) -> tuple[jax.Array, None]:
            params, index = layer
            h = nnx.merge(graphdef, params)(h, rope, attend)
            if added_NBSD is not None and index is not None:
                last = added_NBSD.shape[0] - 1
                h = jnp.where(index > last, h, h + added_NBSD[jnp.minimum(index, last)])
            return h, None

        x, _ = jax.lax.scan(checkpointed(step, self.remat), x, (stacked, index_L))
        return self.norm(x)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Text logits (..., V), float32, of hidden (..., D) after the final norm."""
        if self.lm_head is None:
            table = self.embed.table[...].astype(hidden.dtype)
            logits = float32_product(hidden.reshape(-1, hidden.shape[-1]), table.T)
            return logits.reshape(*hidden.shape[:-1], -1)
        return self.lm_head(hidden, float32=True)
