"""Classifier-free guidance, and what a recorded log-probability means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp


def guide(cond: jax.Array, uncond: jax.Array, weight: float) -> jax.Array:
    """uncond + weight * (cond - uncond), any shape (GoT-R1, arXiv 2505.17022: weight 5)."""
    return uncond + weight * (cond - uncond)


def split_branches(x: jax.Array, rows: int) -> tuple[jax.Array, ...]:
    """(N, ...) with N = `rows` times the branches -> an array (rows, ...) for each branch.

    Where rows are sharded, both branches of a row are on one device.
    """
    by_row = x.reshape(rows, -1, *x.shape[1:])
    return tuple(by_row[:, i] for i in range(by_row.shape[1]))


def join_branches(cond: jax.Array, uncond: jax.Array) -> jax.Array:
    """(B, ...) of each branch -> (2 B, ...), those of a row adjacent; undoes `split_branches`."""
    return jnp.stack([cond, uncond], axis=1).reshape(-1, *cond.shape[1:])


LogpMode = Literal["guided", "guided_detach", "conditional"]


@dataclass(frozen=True)
class LogpSettings:
    """What a log-probability means; part of a rollout, whose tokens are scored at the same values.

    Attributes:
      mode: `guided` scores image tokens under the guided distribution and differentiates both
        branches; `guided_detach` has the same values, the unconditional branch being a constant;
        `conditional` leaves guidance out.
      guidance: w in uncond + w (cond - uncond); 1 needs no unconditional branch.
      text_temperature, image_temperature: logits are divided by them, greater than 0.
    """

    mode: LogpMode = "guided"
    guidance: float = 5.0
    text_temperature: float = 1.0
    image_temperature: float = 1.0

    @property
    def needs_unconditional(self) -> bool:
        """Whether image tokens are scored with both branches."""
        return self.mode != "conditional" and self.guidance != 1.0
