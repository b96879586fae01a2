"""Cross entropy over plan, BOI and image tokens of one sequence."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class SftWeights:
    """Weight of a plan token, an image token and BOI; ReasonGen-R1 takes 2, 1 and 0."""

    text: float = 1.0
    image: float = 1.0
    boi: float = 1.0

    def __post_init__(self) -> None:
        values = (self.text, self.image, self.boi)
        if min(values) < 0 or max(values) == 0:
            raise ValueError(f"SFT weights {values} must not be negative nor all 0")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SftCounts:
    """Number of target tokens of a whole mini-batch, float32 scalars."""

    text: jax.Array
    image: jax.Array
    boi: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SftStats:
    """Unweighted mean cross entropy (nats) a token of each kind, as shares of the mini-batch's."""

    text: jax.Array
    image: jax.Array
    boi: jax.Array


def count_tokens(
    plan_mask_BT: jax.Array, boi_mask_BT: jax.Array, image_mask_BU: jax.Array
) -> SftCounts:
    """Counts the targets of a mini-batch; a BOI that is also in the plan's mask counts as BOI."""
    plan_mask_BT = plan_mask_BT & ~boi_mask_BT
    text, image, boi = (
        mask.sum().astype(jnp.float32) for mask in (plan_mask_BT, image_mask_BU, boi_mask_BT)
    )
    return SftCounts(text, image, boi)


def sft_loss(
    plan_logp_BT: jax.Array,
    plan_mask_BT: jax.Array,
    boi_mask_BT: jax.Array,
    image_logp_BU: jax.Array,
    image_mask_BU: jax.Array,
    weights: SftWeights,
    counts: SftCounts,
) -> tuple[jax.Array, SftStats]:
    """Weighted token mean of the cross entropy of a micro-batch, float32 scalar, and statistics.

    loss = Σ w·(-logp) / Σ w, both sums over plan, BOI and image tokens; the lower one is taken
    from `counts`, those of the whole mini-batch, so that losses, gradients and statistics of its
    micro-batches add up to its own.

    Args:
        plan_logp_BT: log-probability (nats) of every plan token, BOI included.
        plan_mask_BT: True on the plan's tokens (BOI may be in it or not).
        boi_mask_BT: True on BOI.
        image_logp_BU: log-probability of every image token.
        image_mask_BU: True on image tokens that are targets.
        weights: weight of each kind of token.
        counts: `count_tokens` of the mini-batch.
    """
    plan_mask_BT = plan_mask_BT & ~boi_mask_BT

    def total(logp: jax.Array, mask: jax.Array) -> jax.Array:
        return -jnp.where(mask, logp, 0.0).astype(jnp.float32).sum()

    text = total(plan_logp_BT, plan_mask_BT)
    boi = total(plan_logp_BT, boi_mask_BT)
    image = total(image_logp_BU, image_mask_BU)
    norm = weights.text * counts.text + weights.image * counts.image + weights.boi * counts.boi
    loss = (weights.text * text + weights.image * image + weights.boi * boi) / jnp.maximum(
        norm, 1e-9
    )
    stats = SftStats(
        text / jnp.maximum(counts.text, 1.0),
        image / jnp.maximum(counts.image, 1.0),
        boi / jnp.maximum(counts.boi, 1.0),
    )
    return loss, jax.lax.stop_gradient(stats)
