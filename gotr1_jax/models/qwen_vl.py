"""Qwen2.5-VL (arXiv 2502.13923) and Qwen3-VL (arXiv 2511.21631): a tower before the shared decoder.

    units = model.embed_images(packed.batch)            # once per image
    x = model.embed(ids_BS, places_BS, units)           # any number of rows with these images
    logits = model.logits(model.hidden(x, positions_3BS))

An image's unit is a vector of W numbers: the D that stand in place of its token, then, in Qwen3-VL,
N times D that are added to this token's hidden states after the first N layers (DeepStack).
`images.qwen_pack` makes `packed`, `places_BS` and `positions_3BS`. Rows are padded on the right, so
a causal mask suffices.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from gotr1_jax.images.qwen_pack import PatchBatch
from gotr1_jax.models.config import LoraConfig
from gotr1_jax.models.decoder import Decoder, causal_attention, packed_attention
from gotr1_jax.models.qwen3_vision import Qwen3VisionTower
from gotr1_jax.models.qwen_config import Qwen3VisionConfig, QwenConfig, QwenVisionConfig
from gotr1_jax.models.qwen_vision import QwenVisionTower


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EmbeddedRows:
    """The decoder's input.

    Attributes:
      x_BSD: in front of the first layer.
      added_NBSD: added to the outputs of the first N layers; None: nothing is.
    """

    x_BSD: jax.Array
    added_NBSD: jax.Array | None


def place_vectors(
    x_BSD: jax.Array, places_BS: jax.Array, vectors_UW: jax.Array
) -> tuple[jax.Array, list[jax.Array]]:
    """Embedded tokens with image vectors in place of image tokens, and W / D - 1 arrays like it:
    what these tokens add to the outputs of the first layers, zero for text.

    places_BS: index of each image token's vector; -1 for text.
    """
    seen = jnp.take(vectors_UW, jnp.maximum(places_BS, 0), axis=0).astype(x_BSD.dtype)
    is_image = (places_BS >= 0)[..., None]
    first, *others = jnp.split(seen, vectors_UW.shape[-1] // x_BSD.shape[-1], axis=-1)
    return jnp.where(is_image, first, x_BSD), [jnp.where(is_image, v, 0) for v in others]


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
        self.vision: QwenVisionTower | Qwen3VisionTower
        if isinstance(cfg.vision, Qwen3VisionConfig):
            self.vision = Qwen3VisionTower(cfg.vision, rngs=rngs, param_dtype=param_dtype)
        else:
            assert isinstance(cfg.vision, QwenVisionConfig)
            self.vision = QwenVisionTower(cfg.vision, rngs=rngs, param_dtype=param_dtype)
        self.text = Decoder(cfg.text, rngs=rngs, lora=lora, param_dtype=param_dtype, remat=remat)

    def embed_images(self, batch: PatchBatch) -> jax.Array:
        """Packed images -> vectors of their units (R,U,W), row-major."""
        return self.vision(batch, self.dtype)

    def embed(
        self, ids_BS: jax.Array, places_BS: jax.Array | None = None, units: jax.Array | None = None
    ) -> EmbeddedRows:
        """Text ids (B,S) embedded, with image vectors in place of image tokens.

        Args:
          places_BS: index of each image token in the flattened (R*U) `units`; -1 for text.
          units: (R,U,W) from `embed_images`.
        """
        x = self.text.embed(ids_BS, self.dtype)
        if units is None or places_BS is None:
            return EmbeddedRows(x, None)
        x, added = place_vectors(x, places_BS, units.reshape(-1, units.shape[-1]))
        return EmbeddedRows(x, jnp.stack(added) if added else None)

    def hidden(
        self, rows: EmbeddedRows, positions: jax.Array, sequences_BS: jax.Array | None = None
    ) -> jax.Array:
        """Embedded rows -> hidden (B,S,D) after the final norm.

        positions: (3,B,S) int32 in time, height, width; or (B or 1,S) if the three are equal, as
        in text without images and in answers. sequences_BS: int32 number of the sequence of each
        token where a row holds several, see `packed_attention`.
        """
        attend = causal_attention if sequences_BS is None else packed_attention(sequences_BS)
        return self.text(rows.x_BSD, positions, attend, rows.added_NBSD)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """(..., D) -> float32 (..., V)."""
        return self.text.logits(hidden)


def abstract_qwen(cfg: QwenConfig, **settings) -> QwenVL:
    """A QwenVL with shapes in place of parameters; nothing is allocated."""
    return nnx.eval_shape(lambda: QwenVL(cfg, rngs=nnx.Rngs(0), **settings))
