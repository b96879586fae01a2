"""Janus-Pro's policy: one decoder over text and image tokens, with a head for each.

The VQ tokenizer (`models.vq`) and the understanding side (`models.siglip`) are separate modules,
which are frozen while the policy is trained.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from gotr1_jax.models.config import JanusConfig, LoraConfig
from gotr1_jax.models.decoder import Decoder
from gotr1_jax.models.layers import Embedding, GeluMLP


class JanusPolicy(nnx.Module):
    """caption -> plan tokens -> image tokens.

    `dtype` is the dtype of activations; logits are always float32.
    """

    def __init__(
        self, cfg: JanusConfig, *, rngs: nnx.Rngs, lora: LoraConfig | None = None,
        dtype: jnp.dtype = jnp.float32, param_dtype: jnp.dtype = jnp.float32, remat: str = "none",
    ) -> None:  # fmt: skip
        D, I = cfg.decoder.hidden_size, cfg.image_vocab
        self.cfg = cfg
        self.dtype = dtype
        self.decoder = Decoder(
            cfg.decoder, rngs=rngs, lora=lora, param_dtype=param_dtype, remat=remat
        )
        self.gen_embed = Embedding(
            I, cfg.vq.code_dim, rngs=rngs, axes=("image_vocab", "code"), param_dtype=param_dtype
        )
        self.gen_aligner = GeluMLP(
            cfg.vq.code_dim, D, D, rngs=rngs, axes=("code", "mlp", "embed"), param_dtype=param_dtype
        )
        self.gen_head = GeluMLP(
            D, D, I, rngs=rngs, axes=("embed", "head_mlp", "image_vocab"), param_dtype=param_dtype
        )

    def embed_text(self, ids: jax.Array) -> jax.Array:
        """Text ids (...) -> (..., D)."""
        return self.decoder.embed(ids, self.dtype)

    def embed_image(self, ids: jax.Array) -> jax.Array:
        """Image ids (...) -> (..., D), through gen_embed and gen_aligner."""
        return self.gen_aligner(self.gen_embed(ids, self.dtype))

    def hidden(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """Embedded rows x (B,S,D), positions (B or 1,S) -> hidden (B,S,D) after the final norm."""
        return self.decoder(x, positions)

    def text_logits(self, hidden: jax.Array) -> jax.Array:
        """(..., D) -> float32 (..., V)."""
        return self.decoder.logits(hidden)

    def image_logits(self, hidden: jax.Array) -> jax.Array:
        """(..., D) -> float32 (..., I)."""
        return self.gen_head(hidden, float32=True)


def abstract_policy(cfg: JanusConfig, **settings) -> JanusPolicy:
    """A JanusPolicy with shapes in place of parameters; nothing is allocated."""
    return nnx.eval_shape(lambda: JanusPolicy(cfg, rngs=nnx.Rngs(0), **settings))
