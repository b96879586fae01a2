"""Clipped policy losses over rows of a plan and an image.

A row is one sequence: its plan's and its image's tokens are joined, each with its modality's
weight. Every normaliser is an argument counted over the whole mini-batch, so losses, gradients
and statistics of micro-batches add up to those of the mini-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from gotr1_jax.grpo.kl import MAX_LOG_RATIO, KlKind, kl_estimate

LossKind = Literal["grpo", "dapo", "dr_grpo", "gspo"]


@dataclass(frozen=True)
class PolicyLossConfig:
    """How rows become one loss.

    Attributes:
        kind: `grpo`: weighted mean over a row's tokens, then mean over rows (arXiv 2402.03300).
            `dapo`: weighted mean over all tokens (arXiv 2503.14476). `dr_grpo`: weighted sum over
            a row's tokens / max_tokens, then mean over rows (arXiv 2503.20783). `gspo`: one ratio
            a row, exp(weighted mean log-ratio), clipped as one (arXiv 2507.18071).
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
        text_weight, image_weight: weight of a plan token and of an image token.
        kl_kind: estimator of the KL to the reference, added a token and summed like the loss.
        kl_weight: its weight.
        max_tokens: the constant length of `dr_grpo`.
    """

    kind: LossKind = "grpo"
    clip_low: float = 0.2
    clip_high: float = 0.2
    text_weight: float = 1.0
    image_weight: float = 1.0
    kl_kind: KlKind = "none"
    kl_weight: float = 0.0
    max_tokens: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("grpo", "dapo", "dr_grpo", "gspo"):
            raise ValueError(f"loss kind {self.kind!r} is not grpo, dapo, dr_grpo or gspo")
        if self.kl_kind not in ("none", "k1", "k2", "k3"):
            raise ValueError(f"kl_kind {self.kl_kind!r} is not none, k1, k2 or k3")
        if not 0 < self.clip_low <= 1 or self.clip_high <= 0:
            raise ValueError(
                f"clip_low {self.clip_low} must lie in (0, 1], clip_high {self.clip_high} above 0"
            )
        if (
            min(self.text_weight, self.image_weight) < 0
            or self.text_weight + self.image_weight == 0
        ):
            raise ValueError(
                f"text_weight {self.text_weight} and image_weight {self.image_weight} must not be"
                " negative nor both 0"
            )
        if self.kl_weight < 0:
            raise ValueError(f"kl_weight {self.kl_weight} must not be negative")
        if self.kind == "dr_grpo" and self.max_tokens < 1:
            raise ValueError(f"dr_grpo divides by max_tokens, which is {self.max_tokens}")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossBatch:
    """Log-probabilities (nats) of the sampled tokens of B rows, and their advantages.

    `logp` is the policy's (differentiated), `old` the one that the update starts from, `ref` the
    reference's (None without KL). Masks are True on tokens that were sampled; values elsewhere
    are ignored.
    """

    logp_text_BT: jax.Array
    old_text_BT: jax.Array
    mask_text_BT: jax.Array
    logp_image_BU: jax.Array
    old_image_BU: jax.Array
    mask_image_BU: jax.Array
    advantages_B: jax.Array
    row_mask_B: jax.Array  # False: the row has no reward and leaves the loss
    ref_text_BT: jax.Array | None = None
    ref_image_BU: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Normalisers:
    """Counts over a whole mini-batch, float32 scalars; only rows in the loss count."""

    rows: jax.Array
    text_tokens: jax.Array
    image_tokens: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ModalityStats:
    """Of one modality's tokens: float32 scalars; means are shares of the mini-batch's."""

    ratio_max: jax.Array  # largest exp(logp - old); 1 with nothing updated, 0 without tokens
    clip_frac: jax.Array  # fraction of tokens whose gradient the clip took away
    kl: jax.Array | None  # mean KL to the reference; None without one


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossStats:
    text: ModalityStats
    image: ModalityStats


def count_normalisers(
    mask_text_BT: jax.Array, mask_image_BU: jax.Array, row_mask_B: jax.Array
) -> Normalisers:
    """Counts rows and sampled tokens of a mini-batch."""
    row_mask_B = jnp.asarray(row_mask_B, bool)

    def tokens(mask: jax.Array) -> jax.Array:
        return (mask & row_mask_B[:, None]).sum().astype(jnp.float32)

    return Normalisers(
        row_mask_B.sum().astype(jnp.float32), tokens(mask_text_BT), tokens(mask_image_BU)
    )


def add_stats(a: LossStats, b: LossStats) -> LossStats:
    """Joins the statistics of two micro-batches of one mini-batch."""

    def add(x: ModalityStats, y: ModalityStats) -> ModalityStats:
        kl = None if x.kl is None or y.kl is None else x.kl + y.kl
        return ModalityStats(jnp.maximum(x.ratio_max, y.ratio_max), x.clip_frac + y.clip_frac, kl)

    return LossStats(add(a.text, b.text), add(a.image, b.image))


def policy_loss(
    batch: LossBatch, config: PolicyLossConfig, normalisers: Normalisers
) -> tuple[jax.Array, LossStats]:
    """Loss (float32 scalar, to be minimised) and statistics of a micro-batch.

    `normalisers` are those of the mini-batch that it is a part of. Log-ratios are held within
    ±20 so that one broken token cannot make infinity times zero in the gradient.
    """
    if config.kl_kind != "none" and (batch.ref_text_BT is None or batch.ref_image_BU is None):
        raise ValueError(f"kl_kind {config.kl_kind!r} needs the reference's log-probabilities")
    both_BS = _join(batch, config)
    adv_B = jnp.where(batch.row_mask_B, batch.advantages_B, 0.0).astype(jnp.float32)
    weight_B = both_BS.weight.sum(axis=1)

    if config.kind == "gspo":
        mean_B = (both_BS.weight * both_BS.log_ratio).sum(axis=1) / jnp.maximum(weight_B, 1e-9)
        surrogate_B, clipped_B = _surrogate(mean_B, adv_B, config)
        # A row's loss spread evenly over its tokens, so that KL joins it by the same mean.
        token_loss_BS = jnp.broadcast_to(surrogate_B[:, None], both_BS.weight.shape)
        clipped_BS = jnp.broadcast_to(clipped_B[:, None], both_BS.weight.shape)
    else:
        token_loss_BS, clipped_BS = _surrogate(both_BS.log_ratio, adv_B[:, None], config)

    kl_BS = None
    if config.kl_kind != "none":
        kl_BS = kl_estimate(both_BS.logp, both_BS.ref, config.kl_kind)
        token_loss_BS = token_loss_BS + config.kl_weight * kl_BS

    weighted_BS = both_BS.weight * token_loss_BS
    if config.kind == "dapo":
        total = (
            config.text_weight * normalisers.text_tokens
            + config.image_weight * normalisers.image_tokens
        )
        loss = weighted_BS.sum() / jnp.maximum(total, 1e-9)
    else:
        row_B = weighted_BS.sum(axis=1)
        if config.kind == "dr_grpo":
            row_B = row_B / config.max_tokens
        else:
            row_B = row_B / jnp.maximum(weight_B, 1e-9)
        loss = row_B.sum() / jnp.maximum(normalisers.rows, 1.0)
    return loss, _stats(both_BS, clipped_BS, kl_BS, batch.mask_text_BT.shape[1], normalisers)


@dataclass(frozen=True)
class _Tokens:
    """Plan and image as one sequence, (B, T + U); zero wherever the mask is False."""

    logp: jax.Array
    ref: jax.Array
    log_ratio: jax.Array
    mask: jax.Array
    weight: jax.Array


def _join(batch: LossBatch, config: PolicyLossConfig) -> _Tokens:
    mask_BS = jnp.concatenate([batch.mask_text_BT, batch.mask_image_BU], axis=1).astype(bool)
    mask_BS = mask_BS & jnp.asarray(batch.row_mask_B, bool)[:, None]

    def join(text: jax.Array, image: jax.Array) -> jax.Array:
        return jnp.where(mask_BS, jnp.concatenate([text, image], axis=1), 0.0).astype(jnp.float32)

    logp_BS = join(batch.logp_text_BT, batch.logp_image_BU)
    old_BS = join(batch.old_text_BT, batch.old_image_BU)
    ref_BS = logp_BS
    if batch.ref_text_BT is not None and batch.ref_image_BU is not None:
        ref_BS = join(batch.ref_text_BT, batch.ref_image_BU)
    log_ratio_BS = logp_BS - jax.lax.stop_gradient(old_BS)
    plan_length = batch.mask_text_BT.shape[1]
    is_text_S = jnp.arange(mask_BS.shape[1]) < plan_length
    return _Tokens(
        logp=logp_BS,
        ref=jax.lax.stop_gradient(ref_BS),
        log_ratio=jnp.clip(log_ratio_BS, -MAX_LOG_RATIO, MAX_LOG_RATIO),
        mask=mask_BS,
        weight=jnp.where(is_text_S, config.text_weight, config.image_weight) * mask_BS,
    )


def _surrogate(
    log_ratio: jax.Array, adv: jax.Array, config: PolicyLossConfig
) -> tuple[jax.Array, jax.Array]:
    """PPO's pessimistic loss, and where the clip takes its gradient away."""
    ratio = jnp.exp(log_ratio)
    bounded = jnp.clip(ratio, 1.0 - config.clip_low, 1.0 + config.clip_high)
    clipped = bounded * adv < ratio * adv
    return -jnp.where(clipped, bounded * adv, ratio * adv), clipped


def _stats(
    both_BS: _Tokens,
    clipped_BS: jax.Array,
    kl_BS: jax.Array | None,
    plan_length: int,
    normalisers: Normalisers,
) -> LossStats:
    def of(part: slice, tokens: jax.Array) -> ModalityStats:
        mask = both_BS.mask[:, part]
        count = jnp.maximum(tokens, 1.0)
        log_ratio = jnp.where(mask, both_BS.log_ratio[:, part], -jnp.inf)
        kl = None
        if kl_BS is not None:
            kl = jnp.where(mask, kl_BS[:, part], 0.0).sum() / count
        return ModalityStats(
            ratio_max=jnp.exp(log_ratio.max(initial=-jnp.inf)),
            clip_frac=(mask & clipped_BS[:, part]).sum() / count,
            kl=kl,
        )

    stats = LossStats(
        of(slice(None, plan_length), normalisers.text_tokens),
        of(slice(plan_length, None), normalisers.image_tokens),
    )
    return jax.lax.stop_gradient(stats)
