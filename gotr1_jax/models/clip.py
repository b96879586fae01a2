"""CLIP (arXiv 2103.00020): images and captions in one embedding space. HPS v2.1 and PickScore are
fine-tuned ViT-H/14s.

Both towers are pre-norm transformers, with exact GELU or OpenAI's quick one. An image's vector is
that of the class token before its patches. A caption's is that of its end token, which under the
causal mask attends to the caption and not to padding.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from gotr1_jax.models.config import ClipConfig
from gotr1_jax.models.layers import Embedding, LayerNorm, Linear
from gotr1_jax.models.siglip import PatchEmbed, run_blocks, stacked_blocks


class ClipVisionTower(nnx.Module):
    """Normalised pixels (B,H,W,3) -> vectors (B,E), not of unit length."""

    def __init__(self, cfg: ClipConfig, *, rngs: nnx.Rngs, param_dtype: jnp.dtype) -> None:
        tower, D = cfg.vision, cfg.vision.width
        self.patch = PatchEmbed(
            cfg.patch_size, D, rngs=rngs, param_dtype=param_dtype, bias=False
        )  # fmt: skip
        tokens = (cfg.image_size // cfg.patch_size) ** 2 + 1
        self.class_token = nnx.Param(_draw(rngs, (D,), param_dtype), axes=("embed",))
        self.positions = nnx.Param(_draw(rngs, (tokens, D), param_dtype), axes=("patch", "embed"))
        self.norm_pre = LayerNorm(D, tower.norm_eps, param_dtype)
        self.blocks = stacked_blocks(tower, rngs, param_dtype)
        self.norm = LayerNorm(D, tower.norm_eps, param_dtype)
        self.projection = _projection(D, cfg, rngs, param_dtype)

    def embed(self, pixels_BHWC: jax.Array) -> jax.Array:
        """Input of the first block, (B,1+N,D): the class token, then N patches, row-major."""
        patches = self.patch(pixels_BHWC)
        token = self.class_token[...].astype(patches.dtype)
        first = jnp.broadcast_to(token, (patches.shape[0], 1, token.shape[0]))
        x = jnp.concatenate([first, patches], axis=1)
        return self.norm_pre(x + self.positions[...].astype(x.dtype))

    def pool(self, x: jax.Array) -> jax.Array:
        """Output of the last block (B,1+N,D) -> (B,E)."""
        return self.projection(self.norm(x[:, 0]), float32=True)

    def __call__(self, pixels_BHWC: jax.Array) -> jax.Array:
        return self.pool(run_blocks(self.blocks, self.embed(pixels_BHWC)))


class ClipTextTower(nnx.Module):
    """Caption ids (B,S), padded after the end token, -> vectors (B,E), not of unit length."""

    def __init__(self, cfg: ClipConfig, *, rngs: nnx.Rngs, param_dtype: jnp.dtype) -> None:
        tower, D = cfg.text, cfg.text.width
        self.table = Embedding(
            cfg.vocab_size, D, rngs=rngs, axes=("vocab", "embed"), param_dtype=param_dtype
        )
        self.positions = nnx.Param(
            _draw(rngs, (cfg.context_length, D), param_dtype), axes=("patch", "embed")
        )
        self.blocks = stacked_blocks(tower, rngs, param_dtype)
        self.norm = LayerNorm(D, tower.norm_eps, param_dtype)
        self.projection = _projection(D, cfg, rngs, param_dtype)

    def embed(self, ids_BS: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Input of the first block, (B,S,D)."""
        return self.table(ids_BS, dtype) + self.positions[: ids_BS.shape[1]].astype(dtype)

    def pool(self, x: jax.Array, ids_BS: jax.Array) -> jax.Array:
        """Output of the last block (B,S,D) -> (B,E), at the first end token, the largest id."""
        end_B = jnp.argmax(ids_BS, axis=-1)
        last_BD = jnp.take_along_axis(x, end_B[:, None, None], axis=1)[:, 0]
        return self.projection(self.norm(last_BD), float32=True)

    def __call__(self, ids_BS: jax.Array, dtype: jnp.dtype) -> jax.Array:
        x = run_blocks(self.blocks, self.embed(ids_BS, dtype), causal=True)
        return self.pool(x, ids_BS)


class Clip(nnx.Module):
    """Both towers; the cosine of an image and a caption is the dot product of their vectors."""

    def __init__(
        self, cfg: ClipConfig, *, rngs: nnx.Rngs, param_dtype: jnp.dtype = jnp.float32
    ) -> None:
        self.vision = ClipVisionTower(cfg, rngs=rngs, param_dtype=param_dtype)
        self.text = ClipTextTower(cfg, rngs=rngs, param_dtype=param_dtype)

    def encode_images(self, pixels_BHWC: jax.Array) -> jax.Array:
        """Normalised pixels, in the dtype of the activations -> float32 unit vectors (B,E)."""
        return _unit(self.vision(pixels_BHWC))

    def encode_captions(self, ids_BS: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """Caption ids int32, computed in `dtype` -> float32 unit vectors (B,E)."""
        return _unit(self.text(ids_BS, dtype))


def abstract_clip(cfg: ClipConfig, param_dtype: jnp.dtype = jnp.float32) -> Clip:
    """A Clip with shapes in place of parameters; nothing is allocated."""
    return nnx.eval_shape(lambda: Clip(cfg, rngs=nnx.Rngs(0), param_dtype=param_dtype))


def _draw(rngs: nnx.Rngs, shape: tuple[int, ...], param_dtype: jnp.dtype) -> jax.Array:
    scale = jnp.asarray(shape[-1] ** -0.5, param_dtype)
    return jax.random.normal(rngs.params(), shape, param_dtype) * scale


def _projection(width: int, cfg: ClipConfig, rngs: nnx.Rngs, param_dtype: jnp.dtype) -> Linear:
    return Linear(
        width, cfg.embedding_size, rngs=rngs, axes=("embed", "head_mlp"), param_dtype=param_dtype
    )


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
