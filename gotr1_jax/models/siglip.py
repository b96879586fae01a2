"""Janus's understanding side: the SigLIP vision tower and the aligner into the decoder's width.

The tower is SigLIP-L/16-384 in the released models (arXiv 2303.15343): patches, learned
positions, pre-norm blocks, a final norm; no class token and no pooling. CLIP (`models.clip`) uses
the same patches and blocks.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gotr1_jax.models.attention import attention
from gotr1_jax.models.config import ClipTowerConfig, JanusConfig, SiglipConfig
from gotr1_jax.models.flash import AttentionMask
from gotr1_jax.models.layers import GeluMLP, LayerNorm, Linear, stack_blocks


class PatchEmbed(nnx.Module):
    """Images (B,H,W,3) -> patches (B, (H/P)·(W/P), D), row-major; `kernel` is (P,P,3,D)."""

    def __init__(
        self, patch_size: int, width: int, *, rngs: nnx.Rngs, param_dtype: jnp.dtype,
        bias: bool = True,
    ) -> None:  # fmt: skip
        self.size = patch_size
        shape = (patch_size, patch_size, 3, width)
        scale = (3 * patch_size**2) ** -0.5
        draw = jax.random.normal(rngs.params(), shape, param_dtype)
        self.kernel = nnx.Param(
            draw * jnp.asarray(scale, param_dtype), axes=("patch", "patch", "patch", "embed")
        )
        self.bias = nnx.Param(jnp.zeros((width,), param_dtype), axes=("embed",)) if bias else None

    def __call__(self, pixels: jax.Array) -> jax.Array:
        B, H, W, channels = pixels.shape
        P = self.size
        patches = pixels.reshape(B, H // P, P, W // P, P, channels).transpose(0, 1, 3, 2, 4, 5)
        patches = patches.reshape(B, (H // P) * (W // P), P * P * channels)
        kernel = self.kernel[...].astype(pixels.dtype)
        patches = patches @ kernel.reshape(-1, kernel.shape[-1])
        return patches if self.bias is None else patches + self.bias[...].astype(pixels.dtype)


class SiglipBlock(nnx.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)); biases everywhere.

    GELU is exact, unless the tower of a CLIP says otherwise.
    """

    def __init__(
        self, cfg: SiglipConfig | ClipTowerConfig, *, rngs: nnx.Rngs, param_dtype: jnp.dtype
    ) -> None:
        def linear(n_in: int, n_out: int, axes: tuple[str, str]) -> Linear:
            return Linear(n_in, n_out, rngs=rngs, axes=axes, bias=True, param_dtype=param_dtype)

        D, F = cfg.width, cfg.mlp_size
        self.num_heads = cfg.num_heads
        self.norm1 = LayerNorm(D, cfg.norm_eps, param_dtype)
        self.q = linear(D, D, ("embed", "heads"))
        self.k = linear(D, D, ("embed", "heads"))
        self.v = linear(D, D, ("embed", "heads"))
        self.out = linear(D, D, ("heads", "embed"))
        self.norm2 = LayerNorm(D, cfg.norm_eps, param_dtype)
        self.fc1 = linear(D, F, ("embed", "mlp"))
        self.fc2 = linear(F, D, ("mlp", "embed"))
        self.quick = isinstance(cfg, ClipTowerConfig) and cfg.activation == "quick_gelu"

    def __call__(self, x: jax.Array, causal: bool = False) -> jax.Array:
        """x (B,N,D) -> (B,N,D); attention over all positions or, if `causal`, over earlier ones."""
        B, N, D = x.shape
        h = self.norm1(x)
        q, k, v = (f(h).reshape(B, N, self.num_heads, -1) for f in (self.q, self.k, self.v))
        mixed = attention(q, k, v, AttentionMask(causal))
        x = x + self.out(mixed.reshape(B, N, D))
        hidden = self.fc1(self.norm2(x))
        hidden = quick_gelu(hidden) if self.quick else jax.nn.gelu(hidden, approximate=False)
        return x + self.fc2(hidden)


def quick_gelu(x: jax.Array) -> jax.Array:
    """x · sigmoid(1.702 x), OpenAI's approximation of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


def stacked_blocks(
    cfg: SiglipConfig | ClipTowerConfig, rngs: nnx.Rngs, param_dtype: jnp.dtype
) -> SiglipBlock:
    """All blocks of a tower, stacked by `stack_blocks`."""
    return stack_blocks(
        lambda rngs: SiglipBlock(cfg, rngs=rngs, param_dtype=param_dtype), rngs, cfg.num_layers
    )


def run_blocks(blocks: SiglipBlock, x: jax.Array, causal: bool = False) -> jax.Array:
    """x (B,N,D) through stacked blocks, by one `lax.scan`."""
    graphdef, stacked = nnx.split(blocks)

    def step(h: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        return nnx.merge(graphdef, layer)(h, causal), None

    return jax.lax.scan(step, x, stacked)[0]


class SiglipTower(nnx.Module):
    """Normalised pixels (B,H,W,3) -> features (B,N,width) of N = (H/P)·(W/P) patches."""

    def __init__(
        self, cfg: SiglipConfig, *, rngs: nnx.Rngs, param_dtype: jnp.dtype = jnp.float32
    ) -> None:
        self.cfg = cfg
        self.patch = PatchEmbed(cfg.patch_size, cfg.width, rngs=rngs, param_dtype=param_dtype)
        draw = jax.random.normal(rngs.params(), (cfg.num_tokens, cfg.width), param_dtype)
        self.positions = nnx.Param(
            draw * jnp.asarray(cfg.width**-0.5, param_dtype), axes=("patch", "embed")
        )
        self.blocks = stacked_blocks(cfg, rngs, param_dtype)
        self.norm = LayerNorm(cfg.width, cfg.norm_eps, param_dtype)

    def __call__(self, pixels_BHWC: jax.Array) -> jax.Array:
        x = self.patch(pixels_BHWC)
        x = x + self.positions[...].astype(x.dtype)
        return self.norm(run_blocks(self.blocks, x))


class JanusUnderstanding(nnx.Module):
    """Images -> inputs of the decoder: tower, then aligner.

    Pixels are (B, image_size, image_size, 3), scaled to [0,1] and normalised by the checkpoint's
    preprocessor_config.json (mean and deviation 0.5 in the released ones: [-1,1]), in the dtype
    of the activations. The result is (B, N, decoder width); its N vectors replace the image's
    placeholder tokens.
    """

    def __init__(
        self, cfg: JanusConfig, *, rngs: nnx.Rngs, param_dtype: jnp.dtype = jnp.float32
    ) -> None:
        D = cfg.decoder.hidden_size
        self.tower = SiglipTower(cfg.siglip, rngs=rngs, param_dtype=param_dtype)
        self.aligner = GeluMLP(
            cfg.siglip.width, D, D, rngs=rngs, axes=("embed", "mlp", "embed"),
            param_dtype=param_dtype,
        )  # fmt: skip

    def __call__(self, pixels_BHWC: jax.Array) -> jax.Array:
        return self.aligner(self.tower(pixels_BHWC))
