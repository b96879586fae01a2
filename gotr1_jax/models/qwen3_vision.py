"""Qwen3-VL's vision tower on packed rows of patches (arXiv 2511.21631).

Every block attends over the full image. Outputs of some blocks are merged into units like the last
one's and travel along with it, for the text model's first layers (DeepStack, arXiv 2406.04334).
Letters as in `models.qwen_vision`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gotr1_jax.images.qwen_pack import PatchBatch
from gotr1_jax.models.layers import Embedding, LayerNorm, Linear, stack_blocks
from gotr1_jax.models.qwen_config import Qwen3VisionConfig
from gotr1_jax.models.qwen_vision import (
    QwenMerger,
    QwenPatchEmbed,
    VisionBlock,
    image_attention,
    vision_rope,
)


class Qwen3VisionBlock(VisionBlock):
    """A `VisionBlock` with LayerNorm and a mlp of two layers with GELU (by tanh)."""

    def __init__(self, cfg: Qwen3VisionConfig, *, rngs: nnx.Rngs, param_dtype: jnp.dtype) -> None:
        super().__init__(cfg, LayerNorm, rngs=rngs, param_dtype=param_dtype)
        self.up = Linear(
            cfg.width, cfg.mlp_size, rngs=rngs, axes=("embed", "vision_mlp"), bias=True,
            param_dtype=param_dtype,
        )  # fmt: skip
        self.down = Linear(
            cfg.mlp_size, cfg.width, rngs=rngs, axes=("vision_mlp", "embed"), bias=True,
            param_dtype=param_dtype,
        )  # fmt: skip

    def mlp(self, x: jax.Array) -> jax.Array:
        """(R,N,D) -> (R,N,D)."""
        return self.down(jax.nn.gelu(self.up(x), approximate=True))


class Qwen3VisionTower(nnx.Module):
    """A batch of packed images -> vectors of their units, DeepStack's behind the last block's."""

    def __init__(
        self, cfg: Qwen3VisionConfig, *, rngs: nnx.Rngs, param_dtype: jnp.dtype = jnp.float32
    ) -> None:
        self.cfg = cfg
        self.patch = QwenPatchEmbed(cfg, rngs=rngs, param_dtype=param_dtype, bias=True)
        self.positions = Embedding(
            cfg.position_side**2, cfg.width, rngs=rngs, axes=("patch", "embed"),
            param_dtype=param_dtype,
        )  # fmt: skip
        self.blocks = stack_blocks(
            lambda rngs: Qwen3VisionBlock(cfg, rngs=rngs, param_dtype=param_dtype),
            rngs, cfg.num_layers,
        )  # fmt: skip

        def merger(rngs: nnx.Rngs, deep: bool) -> QwenMerger:
            return QwenMerger(cfg, LayerNorm, rngs=rngs, param_dtype=param_dtype, norm_joined=deep)

        self.merger = merger(rngs, False)
        count = len(cfg.deepstack)
        self.deepstack = (
            stack_blocks(lambda rngs: merger(rngs, True), rngs, count) if count else None
        )

    def embed_positions(self, positions_RN2: jax.Array, sizes_RN2: jax.Array) -> jax.Array:
        """The table of positions, laid over each image corner to corner, at its patches.

        Float32 (R,N,D), bilinear between the table's points.
        """
        side = self.cfg.position_side
        steps = positions_RN2.astype(jnp.float32) * (side - 1)
        place_RN2 = steps / jnp.maximum(sizes_RN2 - 1, 1)
        low = jnp.floor(place_RN2).astype(jnp.int32)
        share = place_RN2 - low
        total = jnp.zeros((), jnp.float32)
        for down in (0, 1):
            for right in (0, 1):
                corner = jnp.minimum(low + jnp.array([down, right]), side - 1)
                near = jnp.where(jnp.array([down, right]) == 1, share, 1 - share)
                row = self.positions(corner[..., 0] * side + corner[..., 1], jnp.float32)
                total = total + row * near.prod(-1, keepdims=True)
        return total

    def __call__(self, batch: PatchBatch, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """-> (R,U,W), units of each image row-major; padding is arbitrary but finite.

        dtype: of the activations.
        """
        images_RN, positions_RN2, sizes_RN2 = (
            jnp.asarray(x) for x in (batch.images_RN, batch.positions_RN2, batch.sizes_RN2)
        )
        rope = vision_rope(self.cfg, positions_RN2)
        graphdef, stacked = nnx.split(self.blocks)
        taps = self.cfg.deepstack
        # Where each block's output is kept; those of no tap are written nowhere.
        slots = np.full(self.cfg.num_layers, len(taps))
        slots[list(taps)] = np.arange(len(taps))

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return image_attention(q, k, v, images_RN)

        def step(
            carry: tuple[jax.Array, jax.Array], layer: tuple[Any, jax.Array]
        ) -> tuple[tuple[jax.Array, jax.Array], None]:
            (x, kept), (params, slot) = carry, layer
            x = nnx.merge(graphdef, params)(x, rope, attend)
            return (x, kept.at[slot].set(x, mode="drop")), None

        x = self.patch(jnp.asarray(batch.patches_RNE, dtype))
        x = x + self.embed_positions(positions_RN2, sizes_RN2).astype(dtype)
        kept = jnp.zeros((len(taps), *x.shape), x.dtype)
        (x, kept), _ = jax.lax.scan(step, (x, kept), (stacked, jnp.asarray(slots)))
        units = [self.merger(x)]
        if self.deepstack is not None:
            merger, params = nnx.split(self.deepstack)
            units += list(jax.vmap(lambda p, x: nnx.merge(merger, p)(x))(params, kept))
        return jnp.concatenate(units, axis=-1)
