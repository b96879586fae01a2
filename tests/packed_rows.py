"""Whole rows as one sequence, by the plainest code: oracles of `sampler.token_batch`."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gotr1_jax.models.janus import JanusPolicy
from gotr1_jax.sampler.token_batch import TokenBatch, drop_context, embed_rows, packed_source
from gotr1_jax.tokenizers.janus import SpecialIds


@dataclass(frozen=True)
class PackedRows:
    """Rows as one sequence each: S = C + T + U - 1 input positions.

    Attributes:
      ids_BS: int32 ids, of text or of the image; 0 on padding.
      is_image_BS: True where the id is an image token.
      positions_1S: int32 0 .. S-1, the same for all rows.
    """

    ids_BS: jax.Array
    is_image_BS: jax.Array
    positions_1S: jax.Array


def pack(rows: TokenBatch) -> PackedRows:
    """Rows as one sequence: prompt, plan with BOI, image without its last token, padding."""
    U = rows.image_ids_BU.shape[1]
    parts = [rows.prompt_ids_BC, rows.plan_ids_BT, rows.image_ids_BU[:, : U - 1]]
    ids = jnp.take_along_axis(jnp.concatenate(parts, axis=1), packed_source(rows), axis=1)
    at = jnp.arange(ids.shape[1], dtype=jnp.int32)[None, :]
    context = rows.context_len_B[:, None]
    is_image = (at >= context) & (at < context + U - 1)
    ids = jnp.where((at < context) | is_image, ids, 0)
    return PackedRows(ids, is_image, at)


def embed_null_rows(
    policy: JanusPolicy, rows: TokenBatch, specials: SpecialIds
) -> tuple[jax.Array, jax.Array]:
    """Inputs of a whole unconditional forward, in the same positions as those of `embed_rows`."""
    everywhere = jnp.ones(rows.prompt_len_B.shape, bool)
    return embed_rows(policy, drop_context(rows, everywhere, specials))
