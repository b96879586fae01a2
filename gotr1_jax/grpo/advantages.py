"""Advantages of samples relative to the other samples of their caption.

A group is G samples of one caption. Where M images are drawn after each of K plans, its samples
are plan-major: sample = plan * M + image, G = K * M. docs/methods.md has the equations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from gotr1_jax.grpo.advantage_config import AdvantageKind, AdvantageScope
from gotr1_jax.grpo.per_modality import PerModality

EPS = 1e-6
_LARGE = 1e12


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GroupAdvantages:
    """Advantages of P groups of G samples, from one reward."""

    adv_PG: jax.Array  # float32; 0 where the reward is invalid and in groups without variance
    mask_PG: jax.Array  # bool; what is learned from: of raft the best, else every valid reward
    zero_variance_P: jax.Array  # bool; all rewards equal: zero advantage


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SampleAdvantages:
    """Advantages of the plan's and of the image's tokens of P groups of G samples.

    Attributes:
        advantages: float32 (P, G) of each modality; 0 where nothing can be learned.
        mask_PG: bool; samples that the loss is made of.
        zero_variance_P: bool; both advantages of all samples are 0.
    """

    advantages: PerModality
    mask_PG: jax.Array
    zero_variance_P: jax.Array


def group_advantages(
    rewards_PG: jax.typing.ArrayLike,
    valid_mask_PG: jax.typing.ArrayLike = True,
    kind: AdvantageKind = "mean_std",
    eps: float = EPS,
) -> GroupAdvantages:
    """Advantage of each reward relative to its group.

    - `mean`: r - mean (Dr. GRPO, arXiv 2503.20783).
    - `mean_std`, and of one term `gdpo`: (r - mean) / (std + eps), std with n - 1 (GRPO, arXiv
      2402.03300).
    - `leave_one_out`: r - mean of the others (RLOO, arXiv 2402.14740).
    - `raft`: 1 for the best, of equals the first, and the others leave (RAFT, arXiv 2304.06767).

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
    # Squares of rewards beyond 1e19 overflow in float32; dividing by 1 changes no bit.
    largest_P1 = jnp.abs(safe_PG).max(axis=1, keepdims=True, initial=0.0)
    unit_P1 = jnp.where(largest_P1 > _LARGE, largest_P1, 1.0)
    safe_PG = safe_PG / unit_P1
    count_P = mask_PG.sum(axis=1)
    mean_P = safe_PG.sum(axis=1) / jnp.maximum(count_P, 1)
    centered_PG = jnp.where(mask_PG, safe_PG - mean_P[:, None], 0.0)
    others_P = jnp.maximum(count_P - 1, 1)
    highest_P = jnp.where(mask_PG, rewards_PG, -jnp.inf).max(axis=1)
    lowest_P = jnp.where(mask_PG, rewards_PG, jnp.inf).min(axis=1)
    # Also of one reward (spread 0) and of none (-inf).
    zero_variance_P = highest_P - lowest_P <= eps

    if kind == "mean":
        adv_PG = centered_PG * unit_P1
    elif kind in ("mean_std", "gdpo"):
        std_P = jnp.sqrt(jnp.square(centered_PG).sum(axis=1) / others_P)
        adv_PG = centered_PG / (std_P[:, None] + eps)
    elif kind == "leave_one_out":
        # r - (n * mean - r) / (n - 1)  =  (r - mean) * n / (n - 1)
        adv_PG = centered_PG * (count_P / others_P)[:, None] * unit_P1
    elif kind == "raft":
        mask_PG = _best(rewards_PG, mask_PG) & ~zero_variance_P[:, None]
        adv_PG = mask_PG.astype(jnp.float32)
    else:
        raise ValueError(
            f"advantage kind {kind!r} is not mean, mean_std, leave_one_out, gdpo or raft"
        )
    adv_PG = jnp.where(zero_variance_P[:, None], 0.0, adv_PG)
    return GroupAdvantages(adv_PG, mask_PG, zero_variance_P)


def _best(rewards_PG: jax.Array, mask_PG: jax.Array) -> jax.Array:
    """Bool (P, G): the first of the highest rewards of each group; none where all are masked."""
    safe_PG = jnp.where(mask_PG, rewards_PG, -jnp.inf)
    is_best_PG = jnp.arange(safe_PG.shape[1]) == safe_PG.argmax(axis=1)[:, None]
    return is_best_PG & mask_PG


def sample_advantages(
    rewards: PerModality,
    kind: AdvantageKind = "mean_std",
    scope: AdvantageScope = "sample",
    images_per_plan: int = 1,
) -> SampleAdvantages:
    """Advantages of all tokens, from the rewards (P, G) that plan and image learn from.

    A sample with a reward that is not finite leaves. In the scopes `sample` and `best_of_plan`
    only `rewards.text` counts. See `AdvantageConfig`.
    """
    text_PG, image_PG = (jnp.asarray(r, jnp.float32) for r in (rewards.text, rewards.image))
    if scope in ("sample", "best_of_plan"):
        M = images_per_plan if scope == "best_of_plan" else 1
        found = best_of_plan_advantages(text_PG, kind, M)
        advantages = PerModality(found.adv_PG, found.adv_PG)
        return SampleAdvantages(advantages, found.mask_PG, found.zero_variance_P)
    valid_PG = jnp.isfinite(text_PG) & jnp.isfinite(image_PG)
    if scope == "tree":
        text = plan_advantages(text_PG, valid_PG, kind, images_per_plan)
        image = image_advantages(image_PG, valid_PG, kind, images_per_plan)
    else:
        text = group_advantages(text_PG, valid_PG, kind)
        image = group_advantages(image_PG, valid_PG, kind)
    return SampleAdvantages(
        PerModality(text.adv_PG, image.adv_PG),
        (text.mask_PG | image.mask_PG) & valid_PG,
        text.zero_variance_P & image.zero_variance_P,
    )


def plan_advantages(
    rewards_PG: jax.Array, valid_mask_PG: jax.Array, kind: AdvantageKind, images_per_plan: int
) -> GroupAdvantages:
    """Advantages of plans by the mean reward of their images, repeated for each image.

    Images without a valid reward leave the mean; a plan without any leaves its group.
    """
    P, M = rewards_PG.shape[0], images_per_plan
    valid_PKM = valid_mask_PG.reshape(P, -1, M)
    sum_PK = jnp.where(valid_PKM, rewards_PG.reshape(P, -1, M), 0.0).sum(axis=2)
    count_PK = valid_PKM.sum(axis=2)
    found = group_advantages(sum_PK / jnp.maximum(count_PK, 1), count_PK > 0, kind)
    adv_PG = jnp.where(valid_mask_PG, jnp.repeat(found.adv_PG, M, axis=1), 0.0)
    mask_PG = jnp.repeat(found.mask_PG, M, axis=1) & valid_mask_PG
    return GroupAdvantages(adv_PG, mask_PG, found.zero_variance_P)


def image_advantages(
    rewards_PG: jax.Array, valid_mask_PG: jax.Array, kind: AdvantageKind, images_per_plan: int
) -> GroupAdvantages:
    """Advantages of images relative to the other images of their plan."""
    P, M = rewards_PG.shape[0], images_per_plan
    found = group_advantages(rewards_PG.reshape(-1, M), valid_mask_PG.reshape(-1, M), kind)
    return GroupAdvantages(
        found.adv_PG.reshape(P, -1),
        found.mask_PG.reshape(P, -1),
        found.zero_variance_P.reshape(P, -1).all(axis=1),
    )


def best_of_plan_advantages(
    rewards_PG: jax.Array, kind: AdvantageKind, images_per_plan: int
) -> GroupAdvantages:
    """Advantages of each plan's best image relative to the other plans' best; the others leave.

    With one image a plan these are `group_advantages`.
    """
    if images_per_plan == 1:
        return group_advantages(rewards_PG, kind=kind)
    best_RM = rewards_PG.reshape(-1, images_per_plan)
    best_PG = _best(best_RM, jnp.isfinite(best_RM)).reshape(rewards_PG.shape)
    return group_advantages(rewards_PG, best_PG, kind)


def gdpo_advantages(
    terms: PerModality,
    weights: PerModality,
    scope: AdvantageScope = "sample",
    images_per_plan: int = 1,
) -> SampleAdvantages:
    """GDPO (arXiv 2601.05242) before its normalisation over the batch, see `normalise_batch`.

    A_sum = sum over terms of weight * (r - mean) / (std + eps), where mean and std are those of the
    term in its group. A term without variance in a group adds 0 to it. A sample with a term that is
    not finite leaves, with all its terms.

    Args:
        terms: what each modality learns from, a sequence of (P, G) float, one of each term.
        weights: of these terms, floats.
        scope, images_per_plan: which samples form a group, see `sample_advantages`.
    """
    known_PG = jnp.ones(jnp.asarray(terms.text[0]).shape, bool)
    for term_PG in (*terms.text, *terms.image):
        known_PG &= jnp.isfinite(jnp.asarray(term_PG, jnp.float32))

    def found(term_PG: jax.typing.ArrayLike) -> SampleAdvantages:
        reward_PG = jnp.where(known_PG, jnp.asarray(term_PG, jnp.float32), jnp.nan)
        return sample_advantages(PerModality(reward_PG, reward_PG), "gdpo", scope, images_per_plan)

    def total(columns: Sequence[jax.Array], weights: Sequence[float]) -> jax.Array:
        return sum((w * column for w, column in zip(weights, columns)), jnp.zeros(known_PG.shape))

    text_PG = total([found(t).advantages.text for t in terms.text], weights.text)
    image_PG = text_PG
    if scope != "sample":
        image_PG = total([found(t).advantages.image for t in terms.image], weights.image)
    # What cancels is 0 but for rounding, which the batch's deviation must not enlarge.
    kept = PerModality(*(jnp.where(jnp.abs(a) > EPS, a, 0.0) for a in (text_PG, image_PG)))
    zero_P = (kept.text == 0).all(axis=1) & (kept.image == 0).all(axis=1)
    return SampleAdvantages(kept, known_PG, zero_P)


def normalise_batch(found: SampleAdvantages, eps: float = EPS) -> SampleAdvantages:
    """(A - mean) / (std + eps) of each modality, over the batch's samples in the mask.

    Groups without variance stay at exactly 0, and so does a modality without variance in the
    batch. The mean is 0 in every group, and what rounding leaves of it is not subtracted: terms of
    a sample that cancel stay at exactly 0. Only in a tree that lacks images it can be another,
    since a plan's advantage stands once for each of its images.
    """

    def normalised(adv_PG: jax.Array) -> jax.Array:
        adv_PG, mask_PG = jnp.asarray(adv_PG), jnp.asarray(found.mask_PG)
        count = mask_PG.sum()
        mean = jnp.where(mask_PG, adv_PG, 0.0).sum() / jnp.maximum(count, 1)
        mean = jnp.where(jnp.abs(mean) > eps, mean, 0.0)
        centered_PG = jnp.where(mask_PG, adv_PG - mean, 0.0)
        std = jnp.sqrt(jnp.square(centered_PG).sum() / jnp.maximum(count - 1, 1))
        keep_PG = mask_PG & (adv_PG != 0).any(axis=1, keepdims=True) & (std > eps)
        return jnp.where(keep_PG, centered_PG / (std + eps), 0.0)

    text_PG = normalised(found.advantages.text)
    return replace(found, advantages=PerModality(text_PG, normalised(found.advantages.image)))


def mean_over_chosen(found: SampleAdvantages) -> SampleAdvantages:
    """RAFT's advantages of plan and image, whose best samples are not the same ones.

    The loss is a mean over all samples in the mask. A modality that learns from n of these N has
    N / n instead of 1: its part of the loss is then the mean over its own n.
    """
    N = jnp.asarray(found.mask_PG).sum()

    def of_its_own(adv_PG: jax.Array) -> jax.Array:
        adv_PG = jnp.asarray(adv_PG)
        return adv_PG * (N / jnp.maximum((adv_PG != 0).sum(), 1))

    advantages = PerModality(*map(of_its_own, (found.advantages.text, found.advantages.image)))
    return replace(found, advantages=advantages)


def keep_groups(zero_variance_P: jax.Array, count: int) -> jax.Array:
    """Which groups an update uses: indices (count,), int32, ascending.

    The first `count` groups with variance. If there are fewer, zero-variance groups follow in
    their order: their advantage is 0, and the shapes stay the same.
    """
    flagged_P = jnp.asarray(zero_variance_P, bool)
    if flagged_P.shape[0] < count:
        raise ValueError(f"{count} groups wanted, {flagged_P.shape[0]} given")
    return jnp.sort(jnp.argsort(flagged_P, stable=True)[:count]).astype(jnp.int32)
