"""Policy-gradient mathematics as small pure functions: advantages, losses, KL estimators."""

from __future__ import annotations

from gotr1_jax.rl.advantages import GroupAdvantages, group_advantages, keep_groups
from gotr1_jax.rl.kl import kl_estimate
from gotr1_jax.rl.losses import (
    LossBatch,
    LossStats,
    ModalityStats,
    Normalisers,
    PolicyLossConfig,
    add_stats,
    count_normalisers,
    policy_loss,
)

__all__ = [
    "GroupAdvantages",
    "LossBatch",
    "LossStats",
    "ModalityStats",
    "Normalisers",
    "PolicyLossConfig",
    "add_stats",
    "count_normalisers",
    "group_advantages",
    "keep_groups",
    "kl_estimate",
    "policy_loss",
]
