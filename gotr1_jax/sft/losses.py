"""Cross entropy over the plan, BOI and image tokens of a sequence."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gotr1_jax.config import CheckedConfig
from gotr1_jax.errors import ConfigError
from gotr1_jax.limits import Weight


@dataclass(frozen=True)
class SftWeights(CheckedConfig):
    """Weight of a plan token, an image token and BOI; ReasonGen-R1 takes 2, 1 and 0."""

    text: Weight = 1.0
    image: Weight = 1.0
    boi: Weight = 1.0

    def check(self) -> None:
        """Something to learn."""
        if self.text == self.image == self.boi == 0:
            raise ConfigError("text, image and boi are all 0; give one a weight")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TargetKinds:
    """One array for each kind of target token: plan tokens but BOI, image tokens, BOI."""

    text: jax.Array
    image: jax.Array
    boi: jax.Array


def count_targets(masks_BN: TargetKinds) -> TargetKinds:
    """Number of target tokens of each kind, float32 scalars."""
    return jax.tree.map(lambda mask_BN: mask_BN.sum().astype(jnp.float32), masks_BN)


def sft_loss(
    logp_BN: jax.Array, masks_BN: TargetKinds, weights: SftWeights, counts: TargetKinds
) -> tuple[jax.Array, TargetKinds]:
    """Weighted mean cross entropy of a micro-batch, and the unweighted mean of each kind (nats).

    loss = Σ w·(-logp) / Σ w over the targets. The denominators come from `counts`, those of the
    whole mini-batch: losses, gradients and means of its micro-batches add up to its own.

    Args:
        logp_BN: log-probability (nats) of every token; values outside of the masks are ignored.
        masks_BN: bool; no token has two kinds.
        weights: weight of a token of each kind.
        counts: `count_targets` of the mini-batch.
    """

    def total(mask_BN: jax.Array) -> jax.Array:
        return -jnp.where(mask_BN, logp_BN, 0.0).astype(jnp.float32).sum()

    def weighted(x: TargetKinds) -> jax.Array:
        return weights.text * x.text + weights.image * x.image + weights.boi * x.boi

    sums = jax.tree.map(total, masks_BN)
    loss = weighted(sums) / jnp.maximum(weighted(counts), 1e-9)
    means = jax.tree.map(lambda x, count: x / jnp.maximum(count, 1.0), sums, counts)
    return loss, jax.lax.stop_gradient(means)
