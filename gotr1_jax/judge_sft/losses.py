"""Cross entropy over the tokens of answers."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AnswerSums:
    """Float32 sums over answers, which add up over micro-batches.

    Attributes:
      nats: of -log-probability of the targets.
      right_tokens: targets that are the most likely token.
      right_answers: answers all of whose targets are.
    """

    nats: jax.Array
    right_tokens: jax.Array
    right_answers: jax.Array


def target_mask(lengths_B: jax.Array, width: int) -> jax.Array:
    """The first lengths_B of `width` places: bool (B, A). A row without an answer has none."""
    return jnp.arange(width)[None, :] < lengths_B[:, None]


def target_weights(lengths_B: jax.Array, width: int, mean_over: str) -> jax.Array:
    """The weight of each target, float32 (B, A): 1, or for a mean over answers 1 / its length."""
    mask_BA = target_mask(lengths_B, width).astype(jnp.float32)
    if mean_over == "tokens":
        return mask_BA
    return mask_BA / jnp.maximum(lengths_B, 1)[:, None]


def answer_loss(
    logits_BAV: jax.Array,
    targets_BA: jax.Array,
    weights_BA: jax.Array,
    total_weight: jax.Array,
) -> tuple[jax.Array, AnswerSums]:
    """Weighted mean cross entropy of a micro-batch: Σ w·(-logp) / total_weight, and its sums.

    Losses and gradients of micro-batches add up to those of the mini-batch.

    Args:
      logits_BAV: float32, those that predict each target.
      targets_BA: ids; where the weight is 0 anything.
      weights_BA: of `target_weights`.
      total_weight: sum of the weights of the whole mini-batch.
    """
    logp_BAV = jax.nn.log_softmax(logits_BAV, axis=-1)
    logp_BA = jnp.take_along_axis(logp_BAV, targets_BA[..., None], axis=-1)[..., 0]
    mask_BA = weights_BA > 0
    logp_BA = jnp.where(mask_BA, logp_BA, 0.0)
    right_BA = (logits_BAV.argmax(-1) == targets_BA) & mask_BA
    whole_B = (right_BA | ~mask_BA).all(-1) & mask_BA.any(-1)
    sums = AnswerSums(-logp_BA.sum(), right_BA.sum() * 1.0, whole_B.sum() * 1.0)
    loss = -(weights_BA * logp_BA).sum() / jnp.maximum(total_weight, 1e-9)
    return loss, jax.lax.stop_gradient(sums)
