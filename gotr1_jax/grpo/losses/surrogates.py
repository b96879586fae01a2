"""The token losses of the published kinds, from log-ratios and advantages."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gotr1_jax.grpo.loss_config import PolicyLossConfig


def clipped_surrogate(
    log_ratio: jax.Array, adv: jax.Array, config: PolicyLossConfig
) -> tuple[jax.Array, jax.Array]:
    """PPO's loss -min(ratio · A, clip(ratio) · A), and where the clip takes its gradient away."""
    ratio = jnp.exp(log_ratio)
    bounded = jnp.clip(ratio, 1.0 - config.clip_low, 1.0 + config.clip_high)
    clipped = bounded * adv < ratio * adv
    return -jnp.where(clipped, bounded * adv, ratio * adv), clipped


def cispo_loss(
    log_ratio: jax.Array, logp: jax.Array, adv: jax.Array, config: PolicyLossConfig
) -> tuple[jax.Array, jax.Array]:
    """-sg(clip(ratio)) · A · logp, and where the ratio is clipped (arXiv 2506.13585, eq. 4).

    Every token keeps a gradient; the clip bounds its weight.
    """
    ratio = jax.lax.stop_gradient(jnp.exp(log_ratio))
    bounded = jnp.clip(ratio, 1.0 - config.clip_low, 1.0 + config.clip_high)
    return -bounded * adv * logp, bounded != ratio


def gmpo_log_ratio(
    log_ratio: jax.Array, adv: jax.Array, config: PolicyLossConfig
) -> tuple[jax.Array, jax.Array]:
    """Log-ratios whose mean makes GMPO's geometric mean, and where they are clipped.

    Clipped to [-clip_low, clip_high] on the side that A rewards: from above where A > 0, from
    below where A < 0 (arXiv 2507.20673, eq. 4).
    """
    bounded = jnp.clip(log_ratio, -config.clip_low, config.clip_high)
    clipped = bounded * jnp.sign(adv) < log_ratio * jnp.sign(adv)
    return jnp.where(clipped, bounded, log_ratio), clipped


def sequence_means(
    values_BN: jax.Array, weight_BN: jax.Array, is_image_BN: jax.Array, per_modality: bool
) -> jax.Array:
    """(B, N): at each token the weighted mean over its sample, or over its modality's tokens."""

    def mean_B1(weight_BN: jax.Array) -> jax.Array:
        total_B1 = jnp.maximum(weight_BN.sum(axis=1, keepdims=True), 1e-9)
        return (weight_BN * values_BN).sum(axis=1, keepdims=True) / total_B1

    if not per_modality:
        return jnp.broadcast_to(mean_B1(weight_BN), values_BN.shape)
    text_B1 = mean_B1(jnp.where(is_image_BN, 0.0, weight_BN))
    return jnp.where(is_image_BN, mean_B1(jnp.where(is_image_BN, weight_BN, 0.0)), text_B1)
