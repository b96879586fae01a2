"""Clipped policy losses over the tokens of a plan and an image.

A sample is one sequence of N = T + U tokens: its plan's, then its image's, each with the weight of
its modality. Every normaliser is counted over the whole mini-batch, so losses, gradients and
statistics of micro-batches add up to those of the mini-batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from gotr1_jax.config import CheckedConfig
from gotr1_jax.errors import ConfigError
from gotr1_jax.grpo.kl import MAX_LOG_RATIO, KlKind, kl_estimate
from gotr1_jax.grpo.per_modality import PerModality
from gotr1_jax.limits import Range, Weight

LossKind = Literal["grpo", "dapo", "dr_grpo", "gspo"]


@dataclass(frozen=True)
class PolicyLossConfig(CheckedConfig):
    """Which policy loss, and its weights."""

    # grpo: weighted mean over a sample's tokens, then mean over samples (arXiv 2402.03300).
    # dapo: weighted mean over all tokens (arXiv 2503.14476). dr_grpo: weighted sum over a sample's
    # tokens / max_tokens, then mean over samples (arXiv 2503.20783). gspo: one ratio a sample,
    # exp(weighted mean log-ratio), clipped as one (arXiv 2507.18071).
    kind: LossKind = "grpo"
    # What gspo takes for one sequence: the whole sample, or the plan and the image, each with a
    # ratio of its own. In a run's configuration auto stands for what advantage.scope compares.
    gspo_ratio: Literal["auto", "sample", "segment"] = "auto"
    # The ratio is clipped to [1 - clip_low, 1 + clip_high].
    clip_low: Annotated[float, Range("(0, 1)")] = 0.2
    clip_high: Annotated[float, Range("(0, 1000]")] = 0.2
    # Weight of a plan token and of an image token.
    text_weight: Weight = 1.0
    image_weight: Weight = 1.0
    # Estimator of the KL to the reference, added to each token's loss, and its weight.
    kl: KlKind = "none"
    kl_weight: Weight = 0.0
    # The constant length of dr_grpo; in a run's configuration 0 stands for all tokens that a sample
    # can have: rollout.max_plan_tokens and those of an image.
    max_tokens: Annotated[int, Range("[0, 10000000]")] = 0

    def check(self) -> None:
        """Something to learn."""
        if self.text_weight == self.image_weight == 0:
            raise ConfigError("text_weight and image_weight are both 0; give one a weight")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossBatch:
    """Log-probabilities (nats) of the tokens of B samples, and the samples' advantages.

    Attributes:
        logp_BN: of the policy; differentiated.
        old_logp_BN: of the policy before the update.
        mask_BN: True on sampled tokens; values elsewhere are ignored.
        is_image_BN: True on image tokens, False on plan tokens.
        advantages: of the plan's and of the image's tokens, float32 (B,).
        row_mask_B: False on samples without a reward; they leave the loss.
        ref_logp_BN: of the reference policy; None without KL.
    """

    logp_BN: jax.Array
    old_logp_BN: jax.Array
    mask_BN: jax.Array
    is_image_BN: jax.Array
    advantages: PerModality
    row_mask_B: jax.Array
    ref_logp_BN: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Normalisers:
    """Samples with a reward and their sampled tokens, counted over a mini-batch; float32."""

    rows: jax.Array
    tokens: PerModality


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossStats:
    """Statistics of a micro-batch; means are its shares of the mini-batch's means."""

    ratio_max: PerModality  # largest exp(logp - old_logp); 1 before an update, 0 without tokens
    clip_frac: PerModality  # fraction of tokens whose gradient is 0 because of the clip
    kl: PerModality | None  # mean KL to the reference; None without one


def count_normalisers(
    mask_BN: jax.Array, is_image_BN: jax.Array, row_mask_B: jax.Array
) -> Normalisers:
    """Count the samples and sampled tokens of a mini-batch."""
    mask_BN = mask_BN & row_mask_B[:, None]
    tokens = PerModality((mask_BN & ~is_image_BN).sum(), (mask_BN & is_image_BN).sum())
    counts = Normalisers(row_mask_B.sum(), tokens)
    return jax.tree.map(lambda count: count.astype(jnp.float32), counts)


def modality_means(
    values_BN: jax.Array, mask_BN: jax.Array, is_image_BN: jax.Array, normalisers: Normalisers
) -> PerModality:
    """Mean of `values_BN` over the tokens of each modality where `mask_BN` is True.

    The sums are this micro-batch's and the counts the mini-batch's: shares that add up.
    """

    def share(of_modality_BN: jax.Array, tokens: jax.Array) -> jax.Array:
        return jnp.where(mask_BN & of_modality_BN, values_BN, 0.0).sum() / jnp.maximum(tokens, 1.0)

    tokens = normalisers.tokens
    return PerModality(share(~is_image_BN, tokens.text), share(is_image_BN, tokens.image))


def add_stats(a: LossStats, b: LossStats) -> LossStats:
    """Statistics of two micro-batches of one mini-batch together."""
    total = jax.tree.map(jnp.add, a, b)
    return replace(total, ratio_max=jax.tree.map(jnp.maximum, a.ratio_max, b.ratio_max))


def policy_loss(
    batch: LossBatch, config: PolicyLossConfig, normalisers: Normalisers
) -> tuple[jax.Array, LossStats]:
    """Loss (float32 scalar, to be minimised) and statistics of a micro-batch.

    `normalisers` are those of its mini-batch. Log-ratios are clipped to ±20, with zero gradient
    beyond: one broken token then cannot make infinity times zero in the gradient. KL is added to a
    token's loss as it is, not multiplied by the ratio, and samples without a reward leave it too.
    docs/conventions.md compares this with TRL and verl.
    """
    mask_BN = batch.mask_BN & batch.row_mask_B[:, None]

    def masked(values_BN: jax.Array) -> jax.Array:
        return jnp.where(mask_BN, values_BN, 0.0).astype(jnp.float32)

    logp_BN = masked(batch.logp_BN)
    log_ratio_BN = logp_BN - jax.lax.stop_gradient(masked(batch.old_logp_BN))
    log_ratio_BN = jnp.clip(log_ratio_BN, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    weight_BN = jnp.where(batch.is_image_BN, config.image_weight, config.text_weight) * mask_BN
    weight_B = jnp.maximum(weight_BN.sum(axis=1), 1e-9)
    adv_BN = token_advantages(batch)

    if config.kind == "dr_grpo" and config.max_tokens < 1:
        raise ValueError("dr_grpo divides by max_tokens, which is 0")
    if config.kind == "gspo":
        # A sequence's loss is spread evenly over its tokens, so that KL is averaged the same way.
        per_modality = config.gspo_ratio == "segment"
        mean_BN = _sequence_means(log_ratio_BN, weight_BN, batch.is_image_BN, per_modality)
        token_loss_BN, clipped_BN = clipped_surrogate(mean_BN, adv_BN, config)
    else:
        token_loss_BN, clipped_BN = clipped_surrogate(log_ratio_BN, adv_BN, config)

    kl_BN = None
    if config.kl != "none":
        if batch.ref_logp_BN is None:
            raise ValueError(f"kl {config.kl!r} needs the reference's log-probabilities")
        ref_logp_BN = jax.lax.stop_gradient(masked(batch.ref_logp_BN))
        kl_BN = kl_estimate(logp_BN, ref_logp_BN, config.kl)
        token_loss_BN = token_loss_BN + config.kl_weight * kl_BN

    loss = _reduce(weight_BN * token_loss_BN, weight_B, config, normalisers)
    return loss, _stats(log_ratio_BN, clipped_BN, kl_BN, mask_BN, batch.is_image_BN, normalisers)


def token_advantages(batch: LossBatch) -> jax.Array:
    """Float32 (B, N): of each token its modality's advantage; 0 in samples without a reward."""

    def rewarded(advantages_B: jax.Array) -> jax.Array:
        return jnp.where(batch.row_mask_B, advantages_B, 0.0).astype(jnp.float32)[:, None]

    text_B1, image_B1 = rewarded(batch.advantages.text), rewarded(batch.advantages.image)
    return jnp.where(batch.is_image_BN, image_B1, text_B1)


def _sequence_means(
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


def clipped_surrogate(
    log_ratio: jax.Array, adv: jax.Array, config: PolicyLossConfig
) -> tuple[jax.Array, jax.Array]:
    """PPO's loss -min(ratio · A, clip(ratio) · A), and where the clip takes its gradient away."""
    ratio = jnp.exp(log_ratio)
    bounded = jnp.clip(ratio, 1.0 - config.clip_low, 1.0 + config.clip_high)
    clipped = bounded * adv < ratio * adv
    return -jnp.where(clipped, bounded * adv, ratio * adv), clipped


def _reduce(
    weighted_BN: jax.Array, weight_B: jax.Array, config: PolicyLossConfig, normalisers: Normalisers
) -> jax.Array:
    """The loss of weighted token losses, as `config.kind` averages them."""
    if config.kind == "dapo":
        tokens = normalisers.tokens
        total = config.text_weight * tokens.text + config.image_weight * tokens.image
        return weighted_BN.sum() / jnp.maximum(total, 1e-9)
    length = config.max_tokens if config.kind == "dr_grpo" else weight_B
    return (weighted_BN.sum(axis=1) / length).sum() / jnp.maximum(normalisers.rows, 1.0)


def _stats(
    log_ratio_BN: jax.Array, clipped_BN: jax.Array, kl_BN: jax.Array | None, mask_BN: jax.Array,
    is_image_BN: jax.Array, normalisers: Normalisers,
) -> LossStats:  # fmt: skip
    def ratio_max(keep_BN: jax.Array) -> jax.Array:
        return jnp.exp(jnp.where(keep_BN, log_ratio_BN, -jnp.inf).max(initial=-jnp.inf))

    def means(values_BN: jax.Array) -> PerModality:
        return modality_means(values_BN, mask_BN, is_image_BN, normalisers)

    stats = LossStats(
        PerModality(ratio_max(mask_BN & ~is_image_BN), ratio_max(mask_BN & is_image_BN)),
        means(clipped_BN.astype(jnp.float32)),
        None if kl_BN is None else means(kl_BN),
    )
    return jax.lax.stop_gradient(stats)
