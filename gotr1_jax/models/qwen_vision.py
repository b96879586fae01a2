"""Qwen2.5-VL's vision tower on packed rows of patches (arXiv 2502.13923, section 2.1).

Patches of several images are packed into rows, so that products with weights need little padding.
Attention is over windows in most blocks (queries, keys and values are gathered into windows of J
slots and the result is gathered back) and over the full image in a few (a mask separates images).
`images.qwen_pack` makes all indices. Letters as there, and D width, H heads, C head width.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gotr1_jax.images.qwen_pack import PatchBatch
from gotr1_jax.models.decoder import Attend, apply_rope, rope_frequencies
from gotr1_jax.models.layers import GeluMLP, Linear, RMSNorm, stack_blocks
from gotr1_jax.models.qwen_config import QwenVisionConfig

jax.tree_util.register_dataclass(
    PatchBatch,
    data_fields=[
        "patches_RNE", "positions_RN2", "images_RN", "windows_RWJ", "slots_RN", "units_RU",
    ],
    meta_fields=[],
)  # fmt: skip


def window_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, windows_RWJ: jax.Array, slots_RN: jax.Array
) -> jax.Array:
    """Attention within windows: q, k, v (R,N,H,C) -> attention output (R,N,H,C).

    There are R · W · H · J² scores. `windows_RWJ` and `slots_RN` as in PatchBatch.
    """
    R, W, J = windows_RWJ.shape

    def into_windows(x: jax.Array) -> jax.Array:
        index = jnp.maximum(windows_RWJ, 0).reshape(R, W * J, 1, 1)
        return jnp.take_along_axis(x, index, axis=1).reshape(R * W, J, *x.shape[2:])

    mask = (windows_RWJ >= 0).reshape(R * W, 1, 1, J)
    q, k, v = (into_windows(x) for x in (q, k, v))
    mixed = jax.nn.dot_product_attention(q, k, v, mask=mask)
    mixed = mixed.reshape(R, W * J, *q.shape[2:])
    return jnp.take_along_axis(mixed, slots_RN[:, :, None, None], axis=1)


def image_attention(q: jax.Array, k: jax.Array, v: jax.Array, images_RN: jax.Array) -> jax.Array:
    """Attention within images: q, k, v (R,N,H,C) -> attention output (R,N,H,C).

    There are R · H · N² scores, the tower's largest array. `images_RN` as in PatchBatch.
    """
    mask = (images_RN[:, :, None] == images_RN[:, None, :])[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask)


class QwenVisionBlock(nnx.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)); gated SiLU mlp; biases everywhere."""

    def __init__(self, cfg: QwenVisionConfig, *, rngs: nnx.Rngs, param_dtype: jnp.dtype) -> None:
        def linear(n_in: int, n_out: int, axes: tuple[str, str]) -> Linear:
            return Linear(n_in, n_out, rngs=rngs, axes=axes, bias=True, param_dtype=param_dtype)

        D, F = cfg.width, cfg.mlp_size
        self.cfg = cfg
        self.norm1 = RMSNorm(D, cfg.norm_eps, param_dtype)
        self.q = linear(D, D, ("embed", "heads"))
        self.k = linear(D, D, ("embed", "heads"))
        self.v = linear(D, D, ("embed", "heads"))
        self.out = linear(D, D, ("heads", "embed"))
        self.norm2 = RMSNorm(D, cfg.norm_eps, param_dtype)
        self.gate = linear(D, F, ("embed", "vision_mlp"))
        self.up = linear(D, F, ("embed", "vision_mlp"))
        self.down = linear(F, D, ("vision_mlp", "embed"))

    def __call__(
        self, x: jax.Array, rope: tuple[jax.Array, jax.Array], attend: Attend
    ) -> jax.Array:
        """x (R,N,D), rope tables (R,N,C//2) -> (R,N,D)."""
        cfg, lead = self.cfg, x.shape[:-1]
        h = self.norm1(x)
        q, k, v = (
            layer(h).reshape(*lead, cfg.num_heads, cfg.head_dim)
            for layer in (self.q, self.k, self.v)
        )
        mixed = attend(apply_rope(q, rope), apply_rope(k, rope), v)
        x = x + self.out(mixed.reshape(*lead, -1))
        h = self.norm2(x)
        return x + self.down(jax.nn.silu(self.gate(h)) * self.up(h))


class QwenPatchEmbed(nnx.Module):
    """Patches (..., 3 · P²) of still images -> (..., D); `kernel` is (3,T,P,P,D), no bias."""

    def __init__(self, cfg: QwenVisionConfig, *, rngs: nnx.Rngs, param_dtype: jnp.dtype) -> None:
        P, T = cfg.geometry.patch_size, cfg.geometry.temporal_patch_size
        scale = (3 * T * P * P) ** -0.5
        draw = jax.random.normal(rngs.params(), (3, T, P, P, cfg.width), param_dtype)
        self.kernel = nnx.Param(
            draw * jnp.asarray(scale, param_dtype), axes=("patch",) * 4 + ("embed",)
        )

    def __call__(self, patches: jax.Array) -> jax.Array:
        # The T frames of a still image are equal, so their kernels are summed.
        kernel = self.kernel[...].astype(jnp.float32).sum(1)
        return patches @ kernel.reshape(-1, kernel.shape[-1]).astype(patches.dtype)


class QwenMerger(nnx.Module):
    """Patches (R,N,D) -> units (R,N/M,out): norm, concatenation of a unit's M patches, GELU mlp."""

    def __init__(self, cfg: QwenVisionConfig, *, rngs: nnx.Rngs, param_dtype: jnp.dtype) -> None:
        joined = cfg.width * cfg.geometry.unit_patches
        self.norm = RMSNorm(cfg.width, cfg.norm_eps, param_dtype)
        self.mlp = GeluMLP(
            joined, joined, cfg.out_size, rngs=rngs, axes=("embed", "mlp", "embed"),
            param_dtype=param_dtype,
        )  # fmt: skip

    def __call__(self, x: jax.Array) -> jax.Array:
        joined = self.mlp.first.kernel.shape[0]
        return self.mlp(self.norm(x).reshape(x.shape[0], -1, joined))


class QwenVisionTower(nnx.Module):
    """A batch of packed images -> inputs of the text model, one vector per unit.

    All blocks are stacked and run by one `lax.scan`; a `lax.cond` on a flag of each layer selects
    window or full attention, so that the block is compiled once.
    """

    def __init__(
        self, cfg: QwenVisionConfig, *, rngs: nnx.Rngs, param_dtype: jnp.dtype = jnp.float32
    ) -> None:
        self.cfg = cfg
        self.patch = QwenPatchEmbed(cfg, rngs=rngs, param_dtype=param_dtype)

        self.blocks = stack_blocks(
            lambda rngs: QwenVisionBlock(cfg, rngs=rngs, param_dtype=param_dtype),
            rngs, cfg.num_layers,
        )  # fmt: skip
        self.merger = QwenMerger(cfg, rngs=rngs, param_dtype=param_dtype)

    def rope(self, positions_RN2: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Rotary tables (R,N,C//2): half of the pairs rotate with the row, half with the column."""
        frequency = rope_frequencies(self.cfg.head_dim // 2, self.cfg.rope_theta)
        angle = positions_RN2[..., None].astype(jnp.float32) * frequency
        angle = angle.reshape(*positions_RN2.shape[:2], -1)
        return jnp.cos(angle), jnp.sin(angle)

    def __call__(self, batch: PatchBatch, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """-> (R,U,out), units of each image row-major; padding is arbitrary but finite.

        dtype: of the activations.
        """
        images_RN, windows_RWJ, slots_RN = (
            jnp.asarray(x) for x in (batch.images_RN, batch.windows_RWJ, batch.slots_RN)
        )
        rope = self.rope(jnp.asarray(batch.positions_RN2))
        graphdef, stacked = nnx.split(self.blocks)
        full = jnp.array([i in self.cfg.full_attention for i in range(self.cfg.num_layers)])

        def step(x: jax.Array, layer: tuple[Any, jax.Array]) -> tuple[jax.Array, None]:
            params, full_attention = layer

            def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
                return jax.lax.cond(
                    full_attention,
                    lambda: image_attention(q, k, v, images_RN),
                    lambda: window_attention(q, k, v, windows_RWJ, slots_RN),
                )

            return nnx.merge(graphdef, params)(x, rope, attend), None

        x = self.patch(jnp.asarray(batch.patches_RNE, dtype))
        x, _ = jax.lax.scan(step, x, (stacked, full))
        units = self.merger(x)
        return jnp.take_along_axis(units, jnp.asarray(batch.units_RU)[..., None], axis=1)
