"""Estimators of the KL divergence from single samples (J. Schulman, "Approximating KL")."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gotr1_jax.grpo.loss_config import KlKind

# exp(20) is finite in float32 and so is its square; beyond this a ratio carries no information.
MAX_LOG_RATIO = 20.0


def kl_estimate(logp: jax.Array, ref_logp: jax.Array, kind: KlKind) -> jax.Array:
    """KL(policy || reference) of every sampled token, in nats, same shape; differentiable in logp.

    With d = logp - ref: k1 = d (unbiased value, but its gradient has mean zero), k2 = d² / 2
    (its gradient is the unbiased one), k3 = exp(-d) - 1 + d (unbiased value, never negative).

    d is held at ±20, with zero gradient beyond. Conventions of others: verl also bounds k3 itself,
    to ±10; TRL holds neither, and can multiply k3 by the policy's ratio (docs/conventions.md).
    """
    difference = jnp.clip(logp - ref_logp, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    if kind == "k1":
        return difference
    if kind == "k2":
        return 0.5 * jnp.square(difference)
    if kind == "k3":
        return jnp.expm1(-difference) + difference
    raise ValueError(f"KL kind {kind!r} is not k1, k2 or k3")
