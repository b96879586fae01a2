"""Classifier-free guidance."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def guide(cond: jax.Array, uncond: jax.Array, weight: float) -> jax.Array:
    """uncond + weight * (cond - uncond), any shape (GoT-R1, arXiv 2505.17022: weight 5)."""
    return uncond + weight * (cond - uncond)


def split_branches(x: jax.Array, rows: int) -> tuple[jax.Array, ...]:
    """(rows * branches, ...) -> an array (rows, ...) for each branch.

    The branches of a row are adjacent, so that they are on one device when rows are sharded.
    """
    by_row = x.reshape(rows, -1, *x.shape[1:])
    return tuple(by_row[:, i] for i in range(by_row.shape[1]))


def join_branches(cond: jax.Array, uncond: jax.Array) -> jax.Array:
    """Inverse of `split_branches`: (B, ...) of each branch -> (2 B, ...)."""
    return jnp.stack([cond, uncond], axis=1).reshape(-1, *cond.shape[1:])
