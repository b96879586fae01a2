"""VQ-16, the image tokenizer of Janus (from LlamaGen, arXiv 2406.06525, section 2.1).

VQEncoder → 1×1 convolution → nearest unit-length code → 1×1 convolution → decoder. Codes and
encodings are both L2-normalised before they are compared, so nearest means largest cosine
(Improved VQGAN, arXiv 2110.04627). Pixels are (B, height, width, 3) in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gotr1_jax.models.config import VQConfig
from gotr1_jax.models.vq_blocks import SAME, Conv, GroupNorm, VQLevel, middle


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VQOutput:
    """Output of the quantizer.

    Attributes:
      codes_BhwZ: nearest unit codes, with the straight-through gradient to the encodings.
      ids_Bhw: int32 index of the nearest code.
      latents_BhwZ: unit-length encodings (float32), with their gradient.
      nearest_BhwZ: nearest unit codes (float32), with the codebook's gradient.
    """

    codes_BhwZ: jax.Array
    ids_Bhw: jax.Array
    latents_BhwZ: jax.Array
    nearest_BhwZ: jax.Array


def unit(x: jax.Array) -> jax.Array:
    """x scaled to length 1 along the last axis, in float32; zero vectors stay zero."""
    x = x.astype(jnp.float32)
    # The floor is inside the root, so that a zero vector has gradient 0 and not NaN.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


class VQEncoder(nnx.Module):
    """(B, H, W, 3) → (B, h, w, z_channels)."""

    def __init__(self, cfg: VQConfig, *, rngs: nnx.Rngs, dtype):
        groups, base = cfg.norm_groups, cfg.base_channels
        widths = [base] + [base * m for m in cfg.encoder_multipliers]
        last = len(cfg.encoder_multipliers) - 1
        self.conv_in = Conv(3, base, 3, rngs=rngs, dtype=dtype)
        self.conv_blocks = nnx.List(
            VQLevel(
                widths[i], widths[i + 1], cfg.num_res_blocks, groups, attention=i == last,
                resize=None if i == last else "down", rngs=rngs, dtype=dtype,
            )
            for i in range(last + 1)
        )  # fmt: skip
        self.mid = middle(widths[-1], groups, rngs=rngs, dtype=dtype)
        self.norm_out = GroupNorm(widths[-1], groups, dtype=dtype)
        self.conv_out = Conv(widths[-1], cfg.z_channels, 3, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.conv_in(x, SAME)
        for level in self.conv_blocks:
            h = level(h)
        for block in self.mid:
            h = block(h)
        return self.conv_out(jax.nn.silu(self.norm_out(h)), SAME)


class VQDecoder(nnx.Module):
    """(B, h, w, z_channels) → (B, H, W, 3); one more residual block per level than the encoder."""

    def __init__(self, cfg: VQConfig, *, rngs: nnx.Rngs, dtype):
        groups, base = cfg.norm_groups, cfg.base_channels
        outs = [base * m for m in reversed(cfg.decoder_multipliers)]
        widths = [outs[0], *outs]
        last = len(outs) - 1
        self.conv_in = Conv(cfg.z_channels, outs[0], 3, rngs=rngs, dtype=dtype)
        self.mid = middle(outs[0], groups, rngs=rngs, dtype=dtype)
        self.conv_blocks = nnx.List(
            VQLevel(
                widths[i], widths[i + 1], cfg.num_res_blocks + 1, groups, attention=i == 0,
                resize=None if i == last else "up", rngs=rngs, dtype=dtype,
            )
            for i in range(last + 1)
        )  # fmt: skip
        self.norm_out = GroupNorm(outs[-1], groups, dtype=dtype)
        self.conv_out = Conv(outs[-1], 3, 3, rngs=rngs, dtype=dtype)

    def __call__(self, z: jax.Array) -> jax.Array:
        h = self.conv_in(z, SAME)
        for block in self.mid:
            h = block(h)
        for level in self.conv_blocks:
            h = level(h)
        return self.conv_out(jax.nn.silu(self.norm_out(h)), SAME)


class VQQuantizer(nnx.Module):
    """The codebook; `embedding` is (codebook_size, code_dim), normalised on every look-up."""

    def __init__(self, cfg: VQConfig, *, rngs: nnx.Rngs, dtype):
        shape = (cfg.codebook_size, cfg.code_dim)
        rows = unit(jax.random.normal(rngs.params(), shape, jnp.float32))
        self.embedding = nnx.Param(rows.astype(dtype), axes=("image_vocab", "vq_code"))

    def lookup(self, ids: jax.Array) -> jax.Array:
        """ids (...) → unit codes (..., code_dim), float32."""
        return unit(self.embedding[...][ids])

    def __call__(self, prequant_BhwZ: jax.Array) -> VQOutput:
        latents = unit(prequant_BhwZ)
        codebook = unit(self.embedding[...])
        # For unit vectors the nearest code has the largest cosine.
        cosines = jnp.einsum("bhwz,iz->bhwi", latents, codebook)
        ids = jnp.argmax(jax.lax.stop_gradient(cosines), axis=-1).astype(jnp.int32)
        nearest = codebook[ids]
        codes = latents + jax.lax.stop_gradient(nearest - latents)
        return VQOutput(codes.astype(prequant_BhwZ.dtype), ids, latents, nearest)


class VQModel(nnx.Module):
    """The image tokenizer: `encode_ids` maps images to tokens, `decode_ids` tokens to images.

    Args:
      cfg: sizes.
      rngs: for the initial weights, stream `params`.
      dtype: of parameters and of the computation (norms, softmax and look-up are float32).
    """

    def __init__(self, cfg: VQConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.config = cfg
        self.encoder = VQEncoder(cfg, rngs=rngs, dtype=dtype)
        self.decoder = VQDecoder(cfg, rngs=rngs, dtype=dtype)
        self.quantize = VQQuantizer(cfg, rngs=rngs, dtype=dtype)
        self.quant_conv = Conv(cfg.z_channels, cfg.code_dim, 1, rngs=rngs, dtype=dtype)
        self.post_quant_conv = Conv(cfg.code_dim, cfg.z_channels, 1, rngs=rngs, dtype=dtype)

    def encode(self, pixels_BHWC: jax.Array) -> jax.Array:
        """Pixels (B, H, W, 3) in [-1, 1] → encodings before quantizing, (B, h, w, code_dim)."""
        return self.quant_conv(self.encoder(pixels_BHWC))

    def decode(self, codes_BhwZ: jax.Array) -> jax.Array:
        """Unit codes (B, h, w, code_dim) → pixels (B, H, W, 3), about [-1, 1]."""
        return self.decoder(self.post_quant_conv(codes_BhwZ))

    def encode_ids(self, pixels_BHWC: jax.Array) -> jax.Array:
        """Pixels (B, H, W, 3) in [-1, 1] → token ids (B, h·w), int32, row-major."""
        ids_Bhw = self.quantize(self.encode(pixels_BHWC)).ids_Bhw
        return ids_Bhw.reshape(ids_Bhw.shape[0], -1)

    def decode_ids(self, ids_BU: jax.Array, grid: int | tuple[int, int]) -> jax.Array:
        """Token ids (B, U) → pixels (B, H, W, 3), about [-1, 1].

        grid: (rows, columns) of tokens with rows·columns = U, or one number for a square.
        """
        rows, columns = (grid, grid) if isinstance(grid, int) else grid
        codes_BUZ = self.quantize.lookup(ids_BU)
        return self.decode(codes_BUZ.reshape(ids_BU.shape[0], rows, columns, -1))


def abstract_vq(config: VQConfig, dtype: jnp.dtype = jnp.float32) -> VQModel:
    """A VQModel with shapes in place of parameters; nothing is allocated."""
    return nnx.eval_shape(lambda: VQModel(config, rngs=nnx.Rngs(0), dtype=dtype))


def to_pixels(images: jax.Array) -> jax.Array:
    """uint8 0..255 → float32 [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def image_encoder(graphdef: nnx.GraphDef) -> Any:
    """A jitted function (state of a split `VQModel`, images uint8 (B,H,W,3)) -> ids_BU, int32."""

    def encode(state: Any, images_BHWC: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state).encode_ids(to_pixels(images_BHWC))

    return jax.jit(encode)


def image_decoder(graphdef: nnx.GraphDef, grid: int) -> Any:
    """A jitted function (state of a split `VQModel`, ids_BU) -> images, uint8 (B,H,W,3)."""

    def decode(state: Any, ids_BU: jax.Array) -> jax.Array:
        pixels = nnx.merge(graphdef, state).decode_ids(ids_BU, grid)
        # Truncated, not rounded, as in the reference.
        return jnp.clip((pixels + 1.0) / 2 * 255, 0, 255).astype(jnp.uint8)

    return jax.jit(decode)
