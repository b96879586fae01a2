"""Qwen2.5-VL: the vision tower in front of the shared decoder (arXiv 2502.13923).

    units = model.embed_images(packed.batch)            # once per image
    x = model.embed(ids_BS, places_BS, units)           # any number of rows with these images
    logits = model.logits(model.hidden(x, positions_3BS))

`images.qwen_pack` makes `packed`, `places_BS` and `positions_3BS`. Rows are padded on the right, so
a causal mask suffices.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from gotr1_jax.images.qwen_pack import PatchBatch
from gotr1_jax.models.config import LoraConfig
from gotr1_jax.models.decoder import Decoder, packed_attention
from gotr1_jax.models.qwen_config import QwenConfig
from gotr1_jax.models.qwen_vision import QwenVisionTower


class QwenVL(nnx.Module):
    """Images and text -> logits of text.

    `dtype` is the dtype of activations; logits are always float32. Adapters are on the text model.
    """

    def __init__(
        self, cfg: QwenConfig, *, rngs: nnx.Rngs, lora: LoraConfig | None = None,
        dtype: jnp.dtype = jnp.float32, param_dtype: jnp.dtype = jnp.float32, remat: str = "none",
    ) -> None:  # fmt: skip
        self.cfg = cfg
        self.dtype = dtype
        self.vision = QwenVisionTower(cfg.vision, rngs=rngs, param_dtype=param_dtype)
        self.text = Decoder(cfg.text, rngs=rngs, lora=lora, param_dtype=param_dtype, remat=remat)

    def embed_images(self, batch: PatchBatch) -> jax.Array:
        """Packed images -> vectors of their units (R,U,D), row-major."""
        return self.vision(batch, self.dtype)

    def embed(
        self, ids_BS: jax.Array, places_BS: jax.Array | None = None, units: jax.Array | None = None
    ) -> jax.Array:
        """Text ids (B,S) -> (B,S,D), with image vectors in place of image tokens.

        Args:
          places_BS: index of each image token in the flattened (R*U) `units`; -1 for text.
          units: (R,U,D) from `embed_images`.
        """
        x = self.text.embed(ids_BS, self.dtype)
        if units is None or places_BS is None:
            return x
        images = jnp.take(units.reshape(-1, units.shape[-1]), jnp.maximum(places_BS, 0), axis=0)
        return jnp.where((places_BS >= 0)[..., None], images.astype(self.dtype), x)

    def hidden(
        self, x: jax.Array, positions: jax.Array, sequences_BS: jax.Array | None = None
    ) -> jax.Array:
        """Embedded rows x (B,S,D) -> hidden (B,S,D) after the final norm.

        positions: (3,B,S) int32 in time, height, width; or (B or 1,S) if the three are equal, as
        in text without images and in answers. sequences_BS: int32 number of the sequence of each
        token where a row holds several, see `packed_attention`.
        """
        if sequences_BS is None:
            return self.text(x, positions)
        return self.text(x, positions, packed_attention(sequences_BS))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """(..., D) -> float32 (..., V)."""
        return self.text.logits(hidden)


def abstract_qwen(cfg: QwenConfig, **settings) -> QwenVL:
    """A QwenVL with shapes in place of parameters; nothing is allocated."""
    return nnx.eval_shape(lambda: QwenVL(cfg, rngs=nnx.Rngs(0), **settings))
