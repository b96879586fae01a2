"""Classifier-free guidance and the choice of a token from logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def guide(cond: jax.Array, uncond: jax.Array, weight: float) -> jax.Array:
    """uncond + weight * (cond - uncond), any shape (GoT-R1, arXiv 2505.17022: weight 5)."""
    return uncond + weight * (cond - uncond)
