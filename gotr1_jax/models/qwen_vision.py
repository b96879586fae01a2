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
from gotr1_jax.models.decoder import Attend, apply_rope, attention_within, rope_frequencies
from gotr1_jax.models.layers import GeluMLP, LayerNorm, Linear, RMSNorm, stack_blocks
from gotr1_jax.models.qwen_config import QwenVisionConfig, VisionConfig

jax.tree_util.register_dataclass(
    PatchBatch,
    data_fields=[
        "patches_RNE", "positions_RN2", "sizes_RN2", "images_RN", "windows_RWJ", "slots_RN",
        "units_RU",
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

    Without a kernel there are R · H · N² scores, the tower's largest array. `images_RN` as in
    PatchBatch.
    """
    return attention_within(q, k, v, images_RN, causal=False)


class VisionBlock(nnx.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)); biases everywhere.

    The norms' kind is an argument; the mlp is a subclass's.
    """

    def __init__(
        self, cfg: VisionConfig, norm: type[RMSNorm | LayerNorm], *, rngs: nnx.Rngs,
        param_dtype: jnp.dtype,
    ) -> None:  # fmt: skip
        def linear(axes: tuple[str, str]) -> Linear:
            return Linear(D, D, rngs=rngs, axes=axes, bias=True, param_dtype=param_dtype)

        D = cfg.width
        self.cfg = cfg
        self.norm1 = norm(D, cfg.norm_eps, param_dtype)
        self.q = linear(("embed", "heads"))
        self.k = linear(("embed", "heads"))
        self.v = linear(("embed", "heads"))
        self.out = linear(("heads", "embed"))
        self.norm2 = norm(D, cfg.norm_eps, param_dtype)

    def mlp(self, x: jax.Array) -> jax.Array:
        """(R,N,D) -> (R,N,D)."""
        raise NotImplementedError

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
        return x + self.mlp(self.norm2(x))


class QwenVisionBlock(VisionBlock):
    """A `VisionBlock` with RMSNorm and a gated SiLU mlp."""

    def __init__(self, cfg: QwenVisionConfig, *, rngs: nnx.Rngs, param_dtype: jnp.dtype) -> None:
        def linear(n_in: int, n_out: int, axes: tuple[str, str]) -> Linear:
            return Linear(n_in, n_out, rngs=rngs, axes=axes, bias=True, param_dtype=param_dtype)

        super().__init__(cfg, RMSNorm, rngs=rngs, param_dtype=param_dtype)
        D, F = cfg.width, cfg.mlp_size
        self.gate = linear(D, F, ("embed", "vision_mlp"))
        self.up = linear(D, F, ("embed", "vision_mlp"))
        self.down = linear(F, D, ("vision_mlp", "embed"))

    def mlp(self, x: jax.Array) -> jax.Array:
        """(R,N,D) -> (R,N,D)."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class QwenPatchEmbed(nnx.Module):
    """Patches (..., 3 · P²) of still images -> (..., D); `kernel` is (3,T,P,P,D)."""

    def __init__(
        self, cfg: VisionConfig, *, rngs: nnx.Rngs, param_dtype: jnp.dtype, bias: bool = False
    ) -> None:
        P, T = cfg.geometry.patch_size, cfg.geometry.temporal_patch_size
        scale = (3 * T * P * P) ** -0.5
        draw = jax.random.normal(rngs.params(), (3, T, P, P, cfg.width), param_dtype)
        self.kernel = nnx.Param(
            draw * jnp.asarray(scale, param_dtype), axes=("patch",) * 4 + ("embed",)
        )
        self.bias = (
            nnx.Param(jnp.zeros((cfg.width,), param_dtype), axes=("embed",)) if bias else None
        )

    def __call__(self, patches: jax.Array) -> jax.Array:
        # The T frames of a still image are equal, so their kernels are summed.
        kernel = self.kernel[...].astype(jnp.float32).sum(1)
        x = patches @ kernel.reshape(-1, kernel.shape[-1]).astype(patches.dtype)
        return x if self.bias is None else x + self.bias[...].astype(x.dtype)


class QwenMerger(nnx.Module):
    """Patches (R,N,D) -> units (R,N/M,out): norm, concatenation of a unit's M patches, GELU mlp.

    norm: its kind; norm_joined: it comes behind the concatenation, and is over all of a unit.
    """

    def __init__(
        self, cfg: VisionConfig, norm: type[RMSNorm | LayerNorm], *, rngs: nnx.Rngs,
        param_dtype: jnp.dtype, norm_joined: bool = False,
    ) -> None:  # fmt: skip
        joined = cfg.width * cfg.geometry.unit_patches
        self.norm_joined = norm_joined
        self.norm = norm(joined if norm_joined else cfg.width, cfg.norm_eps, param_dtype)
        self.mlp = GeluMLP(
            joined, joined, cfg.out_size, rngs=rngs, axes=("embed", "mlp", "embed"),
            param_dtype=param_dtype,
        )  # fmt: skip

    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[0], -1, self.mlp.first.kernel.shape[0])
        if self.norm_joined:
            return self.mlp(self.norm(x.reshape(shape)))
        return self.mlp(self.norm(x).reshape(shape))


def vision_rope(cfg: VisionConfig, positions_RN2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rotary tables (R,N,C//2): half of the pairs rotate with the row, half with the column."""
    frequency = rope_frequencies(cfg.head_dim // 2, cfg.rope_theta)
    angle = positions_RN2[..., None].astype(jnp.float32) * frequency
    angle = angle.reshape(*positions_RN2.shape[:2], -1)
    return jnp.cos(angle), jnp.sin(angle)


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
        self.merger = QwenMerger(cfg, RMSNorm, rngs=rngs, param_dtype=param_dtype)

    def __call__(self, batch: PatchBatch, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """-> (R,U,out), units of each image row-major; padding is arbitrary but finite.

        dtype: of the activations.
        """
        images_RN, windows_RWJ, slots_RN = (
            jnp.asarray(x) for x in (batch.images_RN, batch.windows_RWJ, batch.slots_RN)
        )
        rope = vision_rope(self.cfg, jnp.asarray(batch.positions_RN2))
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
