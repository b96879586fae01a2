"""Importance sampling correction between sampler and trainer.

Tokens are drawn by the sampler and learnt by the trainer, whose log-probs of the same tokens can
differ: another precision, another program, older weights. The loss of a token is multiplied by
w = exp(trainer - sampler), which is truncated (TIS) or set to 0 (MIS) outside of bounds.
Names and order as in TRL (`vllm_importance_sampling_mode`) and verl (`rollout_is`).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gotr1_jax.grpo.kl import MAX_LOG_RATIO
from gotr1_jax.grpo.loss_config import ImportanceConfig
from gotr1_jax.grpo.losses.batch import (
    ImportanceStats,
    LossBatch,
    Normalisers,
    modality_max,
    modality_means,
)
from gotr1_jax.grpo.per_modality import PerModality


@dataclass(frozen=True)
class ImportanceWeights:
    """Of the tokens of B samples, not differentiated.

    Attributes:
        used_BN: what a token's loss is multiplied by.
        raw_BN: before truncation or masking.
        is_cut_BN: where that changed it.
    """

    used_BN: jax.Array
    raw_BN: jax.Array
    is_cut_BN: jax.Array


def importance_weights(
    old_logp_BN: jax.Array,
    sampler_logp_BN: jax.Array,
    mask_BN: jax.Array,
    config: ImportanceConfig,
) -> ImportanceWeights:
    """Weights exp(old - sampler) of each token, or of a sample: the product over its tokens.

    The log of a weight, of one token or of a whole sample, is held at ±20. Modalities count alike
    in the product, whatever their weights in the loss: it is a ratio of probabilities.
    """
    log_BN = jnp.where(mask_BN, old_logp_BN - sampler_logp_BN, 0.0)
    if config.kind in ("sequence_truncate", "sequence_mask"):
        log_BN = jnp.broadcast_to(log_BN.sum(axis=1, keepdims=True), mask_BN.shape)
    raw_BN = jnp.exp(jnp.clip(log_BN, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    bounded_BN = jnp.clip(raw_BN, config.low, config.high)
    is_cut_BN = bounded_BN != raw_BN
    if config.kind in ("token_mask", "sequence_mask"):
        bounded_BN = jnp.where(is_cut_BN, 0.0, raw_BN)
    return ImportanceWeights(*jax.lax.stop_gradient((bounded_BN, raw_BN, is_cut_BN)))


def importance_stats(
    weights: ImportanceWeights, batch: LossBatch, normalisers: Normalisers
) -> ImportanceStats:
    """Mean, largest and cut share of a micro-batch's weights."""

    def means(values_BN: jax.Array) -> PerModality:
        return modality_means(values_BN, batch.mask_BN, batch.is_image_BN, normalisers)

    return ImportanceStats(
        means(weights.used_BN),
        modality_max(weights.raw_BN, batch.mask_BN, batch.is_image_BN),
        means(weights.is_cut_BN.astype(jnp.float32)),
    )
