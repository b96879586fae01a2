"""Token batches of the policy: prompt, plan, BOI, image; and the unconditional context.

For a full forward a row is packed from position 0 and padded on the right: a causal mask suffices,
and positions equal the reference's. The last image token is not an input, as it predicts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from gotr1_jax.models.janus import JanusPolicy
    from gotr1_jax.tokenizers.janus import SpecialIds


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PromptBatch:
    """Prompts of P captions, padded on the right.

    Attributes:
      ids_PC: int32 token ids, BOS first; ids after `len_P` have no effect. Use few sizes C (such as
        multiples of 16): every new C compiles the sampler again.
      len_P: int32 number of tokens of each prompt, at least 1.
    """

    ids_PC: jax.Array
    len_P: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenBatch:
    """B sampled or supervised rows; prompt, plan and image are each padded on the right.

    Attributes:
      prompt_ids_BC: int32, BOS first.
      prompt_len_B: int32, at least 1.
      plan_ids_BT: int32 plan tokens; the last one of a row is BOI.
      plan_len_B: int32 number of plan tokens with BOI, at least 1.
      plan_mask_BT: True on sampled plan tokens, False on a forced BOI and padding.
      image_ids_BU: int32 image tokens, row-major; all are sampled.
      context_limit: a length that no row's prompt and plan exceed together; None: C + T.
    """

    prompt_ids_BC: jax.Array
    prompt_len_B: jax.Array
    plan_ids_BT: jax.Array
    plan_len_B: jax.Array
    plan_mask_BT: jax.Array
    image_ids_BU: jax.Array
    context_limit: int | None = field(default=None, metadata={"static": True})

    @property
    def context_size(self) -> int:
        """Positions of a packed row that prompt and plan may take."""
        columns = self.prompt_ids_BC.shape[1] + self.plan_ids_BT.shape[1]
        return columns if self.context_limit is None else min(columns, self.context_limit)

    def cut(self, limit: int) -> TokenBatch:
        """The rows without the padding after `limit` tokens of prompt and plan, which none has."""
        T = min(limit, self.plan_ids_BT.shape[1])
        return replace(
            self,
            plan_ids_BT=self.plan_ids_BT[:, :T],
            plan_mask_BT=self.plan_mask_BT[:, :T],
            context_limit=limit,
        )

    @property
    def context_len_B(self) -> jax.Array:
        """Tokens of prompt and plan, BOI included: the position of the first image token."""
        return self.prompt_len_B + self.plan_len_B

    @property
    def sampled_mask_BN(self) -> jax.Array:
        """True on sampled tokens, N = T + U: plan tokens, then image tokens."""
        image_mask_BU = jnp.ones(self.image_ids_BU.shape, bool)
        return jnp.concatenate([self.plan_mask_BT, image_mask_BU], axis=1)

    @property
    def is_image_BN(self) -> jax.Array:
        """True on image tokens, on the axis of `sampled_mask_BN`."""
        (B, T), U = self.plan_ids_BT.shape, self.image_ids_BU.shape[1]
        return jnp.broadcast_to(jnp.arange(T + U) >= T, (B, T + U))


def rows_without_image(
    prompts: PromptBatch, ids_BT: jax.Array, len_B: jax.Array, mask_BT: jax.Array
) -> TokenBatch:
    """Rows of plans, caption-major, as many of each prompt; U = 0."""
    samples = ids_BT.shape[0] // prompts.ids_PC.shape[0]
    return TokenBatch(
        prompt_ids_BC=jnp.repeat(prompts.ids_PC, samples, axis=0),
        prompt_len_B=jnp.repeat(prompts.len_P, samples),
        plan_ids_BT=ids_BT,
        plan_len_B=len_B,
        plan_mask_BT=mask_BT,
        image_ids_BU=jnp.zeros((ids_BT.shape[0], 0), jnp.int32),
    )


def null_context(length_B: jax.Array, size: int, specials: SpecialIds) -> jax.Array:
    """The unconditional context: BOS, pads, BOI; unmasked, as long as prompt and plan.

    Args:
      length_B: int32 tokens of prompt and plan with BOI, at least 2.
      size: columns of the result; those after a row's length are padding.
      specials: ids of BOS, pad and BOI.

    Returns:
      ids (B, size) int32. Without BOI, every context is a prefix of the longer ones.
    """
    at_1S = jnp.arange(size, dtype=jnp.int32)[None, :]
    ids = jnp.where(at_1S == 0, specials.bos, specials.pad)
    ids = jnp.where(at_1S == length_B[:, None] - 1, specials.boi, ids)
    return ids.astype(jnp.int32)


def unconditional_prefix(size: int, specials: SpecialIds) -> jax.Array:
    """The first `size` tokens of all null contexts, without BOI: ids (1, size) int32."""
    longest = jnp.full((1,), size + 1, jnp.int32)
    return null_context(longest, size + 1, specials)[:, :size]


def packed_source(rows: TokenBatch) -> jax.Array:
    """Column in [prompt C | plan T | image U - 1] of each packed position, int32 (B, S).

    S = context_size + U - 1. Padding positions get a column of the image.
    """
    C, T = rows.prompt_ids_BC.shape[1], rows.plan_ids_BT.shape[1]
    U = rows.image_ids_BU.shape[1]
    at = jnp.arange(rows.context_size + U - 1, dtype=jnp.int32)[None, :]
    prompt, context = rows.prompt_len_B[:, None], rows.context_len_B[:, None]
    plan = C + at - prompt
    image = jnp.minimum(C + T + at - context, C + T + U - 2)
    return jnp.where(at < prompt, at, jnp.where(at < context, plan, image))


def embed_rows(policy: JanusPolicy, rows: TokenBatch) -> tuple[jax.Array, jax.Array]:
    """Inputs of the conditional forward: x (B, S, D) and positions (1, S), S as of
    `packed_source`.

    Padding repeats an image embedding of the row; no other position attends to it.
    """
    U = rows.image_ids_BU.shape[1]
    text = policy.embed_text(jnp.concatenate([rows.prompt_ids_BC, rows.plan_ids_BT], axis=1))
    image = policy.embed_image(rows.image_ids_BU[:, : U - 1])
    source = packed_source(rows)
    x = jnp.take_along_axis(jnp.concatenate([text, image], axis=1), source[..., None], axis=1)
    return x, jnp.arange(source.shape[1], dtype=jnp.int32)[None, :]


def drop_context(rows: TokenBatch, drop_B: jax.Array, specials: SpecialIds) -> TokenBatch:
    """Caption dropout: replace prompt and plan by the null context where `drop_B` is True.

    Lengths and positions do not change; the plan mask of a dropped row is False.
    """
    C, T = rows.prompt_ids_BC.shape[1], rows.plan_ids_BT.shape[1]
    context = null_context(rows.context_len_B, C + T, specials)
    plan_at = rows.prompt_len_B[:, None] + jnp.arange(T, dtype=jnp.int32)[None, :]
    plan = jnp.take_along_axis(context, jnp.minimum(plan_at, C + T - 1), axis=1)
    drop = drop_B[:, None]
    return replace(
        rows,
        prompt_ids_BC=jnp.where(drop, context[:, :C], rows.prompt_ids_BC),
        plan_ids_BT=jnp.where(drop, plan, rows.plan_ids_BT),
        plan_mask_BT=rows.plan_mask_BT & ~drop,
    )
