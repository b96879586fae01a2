"""What a policy loss gets and gives, and sums over tokens.

Every normaliser is counted over the whole mini-batch, so losses, gradients and statistics of
micro-batches add up to those of the mini-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp

from gotr1_jax.grpo.per_modality import PerModality


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossBatch:
    """Log-probabilities (nats) of the tokens of B samples, and the samples' advantages.

    A sample is one sequence of N = T + U tokens: its plan's, then its image's.

    Attributes:
        logp_BN: of the policy; differentiated.
        old_logp_BN: of the policy before the update.
        mask_BN: True on sampled tokens; values elsewhere are ignored.
        is_image_BN: True on image tokens, False on plan tokens.
        advantages: of the plan's and of the image's tokens, float32 (B,).
        row_mask_B: False on samples without a reward; they leave the loss.
        ref_logp_BN: of the reference policy; None without KL.
        sampler_logp_BN: those that the sampler recorded when it drew the tokens.
        entropy_BN: of the policy's distribution at each token, nats; differentiable.
        selected_BN: True on the tokens that `loss.tokens` selects; None: all.
    """

    logp_BN: jax.Array
    old_logp_BN: jax.Array
    mask_BN: jax.Array
    is_image_BN: jax.Array
    advantages: PerModality
    row_mask_B: jax.Array
    ref_logp_BN: jax.Array | None = None
    sampler_logp_BN: jax.Array | None = None
    entropy_BN: jax.Array | None = None
    selected_BN: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Normalisers:
    """Samples with a reward and their sampled tokens, counted over a mini-batch; float32."""

    rows: jax.Array
    tokens: PerModality


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ImportanceStats:
    """Of the importance weights between sampler and trainer, by modality."""

    mean: PerModality  # as they are used
    max: PerModality  # before truncation or masking; 0 without tokens
    cut_frac: PerModality  # fraction of tokens whose weight was truncated or masked


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossStats:
    """Statistics of a micro-batch; means are its shares of the mini-batch's means."""

    ratio_max: PerModality  # largest exp(logp - old_logp); 1 before an update, 0 without tokens
    # Fraction of tokens whose gradient is 0 because of the clip, in cispo: whose ratio is clipped;
    # None of a loss of one's own.
    clip_frac: PerModality | None
    kl: PerModality | None  # mean KL to the reference; None without one
    importance: ImportanceStats | None = None  # None without correction
    own: Mapping[str, jax.Array] = field(default_factory=dict)  # of a loss of one's own


def clean(batch: LossBatch) -> LossBatch:
    """The batch without the tokens of samples that have no reward, and 0 where nothing counts.

    Whatever stands at masked positions then reaches no sum and no gradient.
    """
    mask_BN = batch.mask_BN & batch.row_mask_B[:, None]

    def masked(values_BN: jax.Array) -> jax.Array:
        return jnp.where(mask_BN, values_BN, 0.0).astype(jnp.float32)

    def constant(values_BN: jax.Array | None) -> jax.Array | None:
        return None if values_BN is None else jax.lax.stop_gradient(masked(values_BN))

    def rewarded(advantages_B: jax.Array) -> jax.Array:
        return jnp.where(batch.row_mask_B, advantages_B, 0.0).astype(jnp.float32)

    return replace(
        batch,
        mask_BN=mask_BN,
        logp_BN=masked(batch.logp_BN),
        old_logp_BN=jax.lax.stop_gradient(masked(batch.old_logp_BN)),
        ref_logp_BN=constant(batch.ref_logp_BN),
        sampler_logp_BN=constant(batch.sampler_logp_BN),
        entropy_BN=None if batch.entropy_BN is None else masked(batch.entropy_BN),
        advantages=jax.tree.map(rewarded, batch.advantages),
    )


def count_normalisers(
    mask_BN: jax.Array, is_image_BN: jax.Array, row_mask_B: jax.Array
) -> Normalisers:
    """Count the samples and sampled tokens of a mini-batch."""
    mask_BN = mask_BN & row_mask_B[:, None]
    tokens = PerModality((mask_BN & ~is_image_BN).sum(), (mask_BN & is_image_BN).sum())
    counts = Normalisers(row_mask_B.sum(), tokens)
    return jax.tree.map(lambda count: count.astype(jnp.float32), counts)


def by_modality(values: PerModality, is_image_BN: jax.Array) -> jax.Array:
    """(B, N): at each token the value of its modality; values are scalars or (B,)."""
    text, image = (jnp.asarray(value)[..., None] for value in (values.text, values.image))
    return jnp.where(is_image_BN, image, text)


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


def modality_max(values_BN: jax.Array, mask_BN: jax.Array, is_image_BN: jax.Array) -> PerModality:
    """Largest of values that are positive, over the tokens of each modality; 0 without tokens."""

    def largest(keep_BN: jax.Array) -> jax.Array:
        return jnp.where(keep_BN, values_BN, 0.0).max(initial=0.0)

    return PerModality(largest(mask_BN & ~is_image_BN), largest(mask_BN & is_image_BN))


def is_maximum(name: str) -> bool:
    """Whether a value of a loss of one's own is a maximum: its micro-batches are not added."""
    return name.endswith("max")


def add_stats(a: LossStats, b: LossStats) -> LossStats:
    """Statistics of two micro-batches of one mini-batch together."""
    total: LossStats = jax.tree.map(jnp.add, a, b)
    importance = total.importance
    if importance is not None and a.importance is not None and b.importance is not None:
        largest = jax.tree.map(jnp.maximum, a.importance.max, b.importance.max)
        importance = replace(importance, max=largest)
    own = {
        name: jnp.maximum(a.own[name], b.own[name]) if is_maximum(name) else value
        for name, value in total.own.items()
    }
    ratio_max = jax.tree.map(jnp.maximum, a.ratio_max, b.ratio_max)
    return replace(total, ratio_max=ratio_max, importance=importance, own=own)
