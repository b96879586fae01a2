"""The policy loss of a configuration, over the tokens of plans and images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from gotr1_jax.grpo.kl import MAX_LOG_RATIO, kl_estimate
from gotr1_jax.grpo.loss_config import PolicyLossConfig
from gotr1_jax.grpo.losses.batch import (
    LossBatch,
    LossStats,
    Normalisers,
    by_modality,
    clean,
    modality_max,
    modality_means,
)
from gotr1_jax.grpo.losses.importance import importance_stats, importance_weights
from gotr1_jax.grpo.losses.surrogates import (
    cispo_loss,
    clipped_surrogate,
    gmpo_log_ratio,
    sequence_means,
)
from gotr1_jax.grpo.losses.uncertain import advantages_with_entropy
from gotr1_jax.grpo.per_modality import PerModality

OwnLoss = Callable[
    [LossBatch, PolicyLossConfig, Normalisers], tuple[jax.Array, Mapping[str, jax.Array]]
]


def policy_loss(
    batch: LossBatch,
    config: PolicyLossConfig,
    normalisers: Normalisers,
    own_loss: OwnLoss | None = None,
) -> tuple[jax.Array, LossStats]:
    """Loss (float32 scalar, to be minimised) and statistics of a micro-batch.

    `normalisers` are those of its mini-batch. Log-ratios are clipped to ±20, with zero gradient
    beyond: one broken token then cannot make infinity times zero in the gradient. A token's
    surrogate is multiplied by its importance weight, and is 0 where the token is not selected; KL
    is then added as it is, of all tokens. Samples without a reward leave all of it.
    docs/conventions.md compares this with TRL and verl.

    own_loss: the whole loss where config.kind names one; only the statistics are made here.
    """
    batch = clean(batch)
    weights = None
    if config.importance is not None:
        sampler_logp_BN = _present(batch.sampler_logp_BN, "importance", "the sampler's log-probs")
        weights = importance_weights(
            batch.old_logp_BN, sampler_logp_BN, batch.mask_BN, config.importance
        )
    kl_BN = None
    if config.kl != "none":
        reference = "the reference's log-probabilities"
        ref_logp_BN = _present(batch.ref_logp_BN, f"kl {config.kl!r}", reference)
        kl_BN = kl_estimate(batch.logp_BN, ref_logp_BN, config.kl)

    log_ratio_BN = log_ratios(batch)
    clipped_BN = None
    own: Mapping[str, jax.Array] = {}
    if config.is_own:
        if own_loss is None:
            raise ValueError(f"the loss {config.kind} is not loaded")
        loss, own = own_loss(batch, config, normalisers)
    else:
        token_loss_BN, clipped_BN = _surrogates(batch, log_ratio_BN, config)
        if weights is not None:
            token_loss_BN = token_loss_BN * weights.used_BN
        if batch.selected_BN is not None:
            token_loss_BN = jnp.where(batch.selected_BN, token_loss_BN, 0.0)
        if kl_BN is not None:
            token_loss_BN = token_loss_BN + config.kl_weight * kl_BN
        loss = _reduce(token_loss_BN, batch, config, normalisers)

    def means(values_BN: jax.Array | None) -> PerModality | None:
        if values_BN is None:
            return None
        values_BN = values_BN.astype(jnp.float32)
        return modality_means(values_BN, batch.mask_BN, batch.is_image_BN, normalisers)

    stats = LossStats(
        ratio_max=modality_max(jnp.exp(log_ratio_BN), batch.mask_BN, batch.is_image_BN),
        clip_frac=means(clipped_BN),
        kl=means(kl_BN),
        importance=None if weights is None else importance_stats(weights, batch, normalisers),
        own=dict(own),
    )
    return loss, jax.lax.stop_gradient(stats)


def _present(values_BN: jax.Array | None, setting: str, what: str) -> jax.Array:
    if values_BN is None:
        raise ValueError(f"{setting} needs {what}")
    return values_BN


def log_ratios(batch: LossBatch) -> jax.Array:
    """(B, N): logp - old_logp, held at ±20."""
    return jnp.clip(batch.logp_BN - batch.old_logp_BN, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def token_weights(batch: LossBatch, config: PolicyLossConfig) -> jax.Array:
    """(B, N): the weight of each sampled token's modality, 0 elsewhere."""
    weights = PerModality(config.text_weight, config.image_weight)
    return by_modality(weights, batch.is_image_BN) * batch.mask_BN


def token_advantages(batch: LossBatch, config: PolicyLossConfig) -> jax.Array:
    """Float32 (B, N): each token's advantage, with the entropy bonus where one is configured."""
    adv_BN = by_modality(batch.advantages, batch.is_image_BN)
    if config.entropy_bonus is None:
        return adv_BN
    entropy_BN = _present(batch.entropy_BN, "entropy_bonus", "the tokens' entropies")
    return advantages_with_entropy(adv_BN, entropy_BN, batch.is_image_BN, config.entropy_bonus)


def _surrogates(
    batch: LossBatch, log_ratio_BN: jax.Array, config: PolicyLossConfig
) -> tuple[jax.Array, jax.Array]:
    """(B, N): the token losses of config.kind without KL, and where they are clipped.

    The loss of a sequence is spread evenly over its tokens, so that KL is averaged the same way.
    """
    adv_BN = token_advantages(batch, config)
    weight_BN, per_modality = token_weights(batch, config), config.gspo_ratio == "segment"
    if config.kind == "cispo":
        return cispo_loss(log_ratio_BN, batch.logp_BN, adv_BN, config)
    if config.kind == "gspo":
        mean_BN = sequence_means(log_ratio_BN, weight_BN, batch.is_image_BN, per_modality)
        return clipped_surrogate(mean_BN, adv_BN, config)
    if config.kind == "gmpo":
        bounded_BN, clipped_BN = gmpo_log_ratio(log_ratio_BN, adv_BN, config)
        mean_BN = sequence_means(bounded_BN, weight_BN, batch.is_image_BN, per_modality)
        return -adv_BN * jnp.exp(mean_BN), clipped_BN
    return clipped_surrogate(log_ratio_BN, adv_BN, config)


def token_mean(
    values_BN: jax.Array, batch: LossBatch, config: PolicyLossConfig, normalisers: Normalisers
) -> jax.Array:
    """This micro-batch's share of the weighted mean over all tokens of the mini-batch."""
    tokens = normalisers.tokens
    total = config.text_weight * tokens.text + config.image_weight * tokens.image
    return (token_weights(batch, config) * values_BN).sum() / jnp.maximum(total, 1e-9)


def sample_mean(
    values_BN: jax.Array, batch: LossBatch, config: PolicyLossConfig, normalisers: Normalisers
) -> jax.Array:
    """This micro-batch's share of the mean over samples of their weighted means over tokens."""
    weight_BN = token_weights(batch, config)
    mean_B = (weight_BN * values_BN).sum(axis=1) / jnp.maximum(weight_BN.sum(axis=1), 1e-9)
    return mean_B.sum() / jnp.maximum(normalisers.rows, 1.0)


def _reduce(
    token_loss_BN: jax.Array, batch: LossBatch, config: PolicyLossConfig, normalisers: Normalisers
) -> jax.Array:
    """The loss of token losses, as `config.kind` averages them."""
    if config.kind in ("dapo", "cispo"):
        return token_mean(token_loss_BN, batch, config, normalisers)
    if config.kind == "dr_grpo":
        if config.max_tokens < 1:
            raise ValueError("dr_grpo divides by max_tokens, which is 0")
        weighted_BN = token_weights(batch, config) * token_loss_BN
        return (weighted_BN.sum(axis=1) / config.max_tokens).sum() / jnp.maximum(
            normalisers.rows, 1.0
        )
    return sample_mean(token_loss_BN, batch, config, normalisers)
