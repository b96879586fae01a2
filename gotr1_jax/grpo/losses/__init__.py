"""Policy losses over the tokens of a plan and an image: small pure functions.

`policy_loss` is the loss of a configuration. A function of one's own gets the same batch; what it
may want is here: `log_ratios`, `token_advantages`, `token_mean`, `sample_mean`,
`importance_weights`, `kl_estimate`.
"""

from __future__ import annotations

from gotr1_jax.grpo.kl import kl_estimate
from gotr1_jax.grpo.loss_config import (
    EntropyBonusConfig,
    ImportanceConfig,
    PolicyLossConfig,
    TokenChoiceConfig,
)
from gotr1_jax.grpo.losses.batch import (
    ImportanceStats,
    LossBatch,
    LossStats,
    Normalisers,
    add_stats,
    by_modality,
    clean,
    count_normalisers,
    is_maximum,
    modality_max,
    modality_means,
)
from gotr1_jax.grpo.losses.importance import importance_weights
from gotr1_jax.grpo.losses.policy import (
    OwnLoss,
    log_ratios,
    policy_loss,
    sample_mean,
    token_advantages,
    token_mean,
    token_weights,
)
from gotr1_jax.grpo.losses.surrogates import clipped_surrogate
from gotr1_jax.grpo.losses.uncertain import advantages_with_entropy, select_tokens

__all__ = [
    "EntropyBonusConfig",
    "ImportanceConfig",
    "ImportanceStats",
    "LossBatch",
    "LossStats",
    "Normalisers",
    "OwnLoss",
    "PolicyLossConfig",
    "TokenChoiceConfig",
    "add_stats",
    "advantages_with_entropy",
    "by_modality",
    "clean",
    "clipped_surrogate",
    "count_normalisers",
    "importance_weights",
    "is_maximum",
    "kl_estimate",
    "log_ratios",
    "modality_max",
    "modality_means",
    "policy_loss",
    "sample_mean",
    "select_tokens",
    "token_advantages",
    "token_mean",
    "token_weights",
]
