"""Advantages of samples relative to the other samples of their caption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from gotr1_jax.config import CheckedConfig

AdvantageKind = Literal["mean", "mean_std", "leave_one_out"]


@dataclass(frozen=True)
class AdvantageConfig(CheckedConfig):
    """How the rewards of a caption's samples become advantages."""

    # See `group_advantages`.
    kind: AdvantageKind = "mean_std"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GroupAdvantages:
    """Advantages of P groups of G samples."""

    adv_PG: jax.Array  # float32; 0 where the reward is invalid and in groups without variance
    mask_PG: jax.Array  # bool; True where the reward is finite and valid
    zero_variance_P: jax.Array  # bool; all rewards equal: zero advantage


def group_advantages(
    rewards_PG: jax.typing.ArrayLike,
    valid_mask_PG: jax.typing.ArrayLike = True,
    kind: AdvantageKind = "mean_std",
    eps: float = 1e-6,
) -> GroupAdvantages:
    """Advantage of each reward relative to its group.

    - `mean`: r - mean (Dr. GRPO, arXiv 2503.20783).
    - `mean_std`: (r - mean) / (std + eps), std with n - 1 (GRPO, arXiv 2402.03300).
    - `leave_one_out`: r - mean of the others (RLOO, arXiv 2402.14740).

    Rewards that are not finite or not valid leave the statistics of their group. A group with
    fewer than two rewards left, or with all rewards within `eps` of one another, has zero variance
    and advantages of exactly 0. Without this rule the rounding error of a float32 mean, divided by
    its own deviation, would give advantages of size 1.

    Args:
        rewards_PG: float, (P, G).
        valid_mask_PG: bool, (P, G), or one value for all.
        kind: which advantage.
        eps: added to the deviation, and the spread below which rewards count as equal. verl adds
            1e-6 too, TRL 1e-4; neither sets groups of equal rewards to 0.
    """
    rewards_PG = jnp.asarray(rewards_PG, jnp.float32)
    mask_PG = jnp.asarray(valid_mask_PG, bool) & jnp.isfinite(rewards_PG)
    safe_PG = jnp.where(mask_PG, rewards_PG, 0.0)
    count_P = mask_PG.sum(axis=1)
    mean_P = safe_PG.sum(axis=1) / jnp.maximum(count_P, 1)
    centered_PG = jnp.where(mask_PG, safe_PG - mean_P[:, None], 0.0)
    others_P = jnp.maximum(count_P - 1, 1)

    if kind == "mean":
        adv_PG = centered_PG
    elif kind == "mean_std":
        std_P = jnp.sqrt(jnp.square(centered_PG).sum(axis=1) / others_P)
        adv_PG = centered_PG / (std_P[:, None] + eps)
    elif kind == "leave_one_out":
        # r - (n * mean - r) / (n - 1)  =  (r - mean) * n / (n - 1)
        adv_PG = centered_PG * (count_P / others_P)[:, None]
    else:
        raise ValueError(f"advantage kind {kind!r} is not mean, mean_std or leave_one_out")

    highest_P = jnp.where(mask_PG, rewards_PG, -jnp.inf).max(axis=1)
    lowest_P = jnp.where(mask_PG, rewards_PG, jnp.inf).min(axis=1)
    # Also of one reward (spread 0) and of none (-inf).
    zero_variance_P = highest_P - lowest_P <= eps
    adv_PG = jnp.where(zero_variance_P[:, None], 0.0, adv_PG)
    return GroupAdvantages(adv_PG, mask_PG, zero_variance_P)


def keep_groups(zero_variance_P: jax.Array, count: int) -> jax.Array:
    """Which groups an update uses: indices (count,), int32, ascending.

    The first `count` groups with variance. If there are fewer, zero-variance groups follow in
    their order: their advantage is 0, and the shapes stay the same.
    """
    flagged_P = jnp.asarray(zero_variance_P, bool)
    if flagged_P.shape[0] < count:
        raise ValueError(f"{count} groups wanted, {flagged_P.shape[0]} given")
    return jnp.sort(jnp.argsort(flagged_P, stable=True)[:count]).astype(jnp.int32)
