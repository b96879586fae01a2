"""The compiled programs of a GRPO update: teacher-forced log-probabilities and the policy step.

Each `make_*` closes over what is static and returns a jitted function of pure trees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.decoding.config import LogpConfig
from gotr1_jax.grpo.config import EntropyConfig
from gotr1_jax.grpo.dynamic_sampling import SampledGroups
from gotr1_jax.grpo.entropy import (
    EntropyState,
    coefficients,
    entropy_loss,
    update_coefficients,
)
from gotr1_jax.grpo.losses import (
    LossBatch,
    LossStats,
    OwnLoss,
    PolicyLossConfig,
    TokenChoiceConfig,
    add_stats,
    count_normalisers,
    modality_means,
    policy_loss,
    select_tokens,
)
from gotr1_jax.grpo.per_modality import PerModality
from gotr1_jax.parallel.mesh import row_sharding
from gotr1_jax.parallel.placement import move_rows, put_rows, take_on_mesh
from gotr1_jax.sampler.sampler import Rollout
from gotr1_jax.sampler.token_batch import TokenBatch
from gotr1_jax.tokenizers.janus import SpecialIds
from gotr1_jax.trainer.length_buckets import (
    at_length,
    context_lengths,
    length_order,
    reorder,
    token_logps_at,
)
from gotr1_jax.trainer.logprobs import TokenLogps
from gotr1_jax.trainer.state import (
    TrainState,
    accumulate_gradients,
    apply_gradients,
    split_micro_batches,
)


def make_token_logps(
    graphdef: Any, specials: SpecialIds, settings: LogpConfig, micro_batch: int,
    length_buckets: int = 1,
) -> Callable[[Any, Any, TokenBatch], TokenLogps]:  # fmt: skip
    """f(params, frozen, rows): teacher-forced log-probabilities of B samples.

    Samples are split into the same micro-batches as in the update, of the same lengths: before an
    update the ratio is then 1 to the bit.
    """

    def all_logps(params: Any, frozen: Any, rows: TokenBatch) -> TokenLogps:
        B = rows.plan_len_B.shape[0]
        lengths = context_lengths(rows.context_size, length_buckets)
        order_B = length_order(rows, B // micro_batch) if len(lengths) > 1 else None

        def logps_at(length: int, part: TokenBatch) -> TokenLogps:
            policy = nnx.merge(graphdef, params, frozen)
            return token_logps_at(length, policy, part, specials, settings)

        def micro_logps(part: TokenBatch) -> TokenLogps:
            return at_length(logps_at, part, lengths, part)

        grouped = rows if order_B is None else reorder(rows, order_B)
        logps = jax.lax.map(micro_logps, split_micro_batches(grouped, B // micro_batch))
        logps = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(B, *x.shape[2:]), logps)
        return logps if order_B is None else reorder(logps, jnp.argsort(order_B))

    return jax.jit(all_logps)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PolicyBatch:
    """What one policy update learns from.

    Attributes:
      rollout: B samples; the sampler's own log-probabilities are used for a metric, and for
        importance weights.
      old_logp_BN: log-probabilities under the policy that sampled. None: those of the update's own
        forward, so that the ratio is exactly 1.
      ref_logp_BN: those under the reference policy, or None without KL.
      advantages: of the plan's and of the image's tokens, float32 (B,).
      row_mask_B: False on samples that could not be scored.
      selected_BN: tokens whose surrogate is in the loss; None: all.
      is_first_B: True in the first update after a rollout: whatever `old_logp_BN` has, they are
        those of the update's own forward. One program then serves all updates of a rollout.
    """

    rollout: Rollout
    old_logp_BN: jax.Array | None
    ref_logp_BN: jax.Array | None
    advantages: PerModality
    row_mask_B: jax.Array
    selected_BN: jax.Array | None = None
    is_first_B: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PolicyMetrics:
    """Scalars of one policy update.

    Attributes:
      loss: as it was minimised.
      stats: ratio, clipping, KL, importance weights, and what a loss of one's own gives.
      entropy: mean entropy, nats a token.
      logp_diff: mean |logp of the update's forward - logp of the sampler|, nats a token: the error
        of cached decoding, and how far a sampler lags behind that has older weights. Meaningful in
        the first update after a rollout only.
      grad_norm: before clipping.
      alpha: entropy coefficients of this loss; None without adaptive entropy.
    """

    loss: jax.Array
    stats: LossStats
    entropy: PerModality
    logp_diff: PerModality
    grad_norm: jax.Array
    alpha: PerModality | None = None


def make_policy_step(
    graphdef: Any,
    optimizer: optax.GradientTransformation,
    specials: SpecialIds,
    settings: LogpConfig,
    loss_config: PolicyLossConfig,
    micro_batch: int,
    entropy_config: EntropyConfig | None = None,
    own_loss: OwnLoss | None = None,
    length_buckets: int = 1,
) -> Callable[[TrainState, Any, PolicyBatch], tuple[TrainState, PolicyMetrics]]:
    """step(state, frozen, batch): one optimizer step of the policy loss.

    With `entropy_config` the loss has the adaptive entropy term. Its coefficients then take a step
    on the mini-batch's entropies, unless the update was skipped. `own_loss`: of such a kind.
    `length_buckets`: lengths that samples are padded to, see `trainer.length_buckets`.
    """

    def step(
        state: TrainState, frozen: Any, batch: PolicyBatch
    ) -> tuple[TrainState, PolicyMetrics]:
        if batch.rollout.settings != settings:
            raise ValueError(f"a rollout of {batch.rollout.settings} is replayed with {settings}")
        rows = batch.rollout.rows
        parts = batch.row_mask_B.shape[0] // micro_batch
        normalisers = count_normalisers(rows.sampled_mask_BN, rows.is_image_BN, batch.row_mask_B)
        alpha = None if state.entropy is None else coefficients(state.entropy)
        lengths = context_lengths(rows.context_size, length_buckets)
        if len(lengths) > 1:
            batch = reorder(batch, length_order(rows, parts))

        def gradient(part: PolicyBatch) -> tuple[Any, Any]:
            return at_length(gradient_at, part.rollout.rows, lengths, part)

        def gradient_at(length: int, part: PolicyBatch) -> tuple[Any, Any]:
            def loss_of(params: Any) -> tuple[jax.Array, Any]:
                policy = nnx.merge(graphdef, params, frozen)
                new = token_logps_at(length, policy, part.rollout.rows, specials, settings)
                return _loss_of_logps(part, new, loss_config, normalisers, own_loss, alpha)

            (loss, (stats, means)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
            return grads, (stats, (loss, *means))

        batches = split_micro_batches(batch, parts)
        grads, (stats, (loss, entropy, logp_diff)) = accumulate_gradients(
            gradient, state.params, batches, _add
        )
        updates = state.updates
        state, norm = apply_gradients(state, grads, loss, optimizer)
        if state.entropy is not None and entropy_config is not None:
            good = state.updates > updates
            moved = _moved_coefficients(state.entropy, entropy, entropy_config, good)
            state = replace(state, entropy=moved)
        return state, PolicyMetrics(loss, stats, entropy, logp_diff, norm, alpha)

    return jax.jit(step, donate_argnums=0)


def _loss_of_logps(
    part: PolicyBatch, new: TokenLogps, config: PolicyLossConfig, normalisers: Any,
    own_loss: OwnLoss | None, alpha: PerModality | None,
) -> tuple[jax.Array, Any]:  # fmt: skip
    """The loss of a micro-batch; its statistics, and means of entropy and `logp_diff`."""
    tokens = part.rollout.rows
    mask_BN = tokens.sampled_mask_BN & part.row_mask_B[:, None]
    loss, stats = policy_loss(_loss_batch(part, new), config, normalisers, own_loss)
    difference_BN = jnp.abs(new.logp_BN - part.rollout.logp_BN)
    entropy, logp_diff = (
        modality_means(values_BN, mask_BN, tokens.is_image_BN, normalisers)
        for values_BN in (new.entropy_BN, difference_BN)
    )
    if alpha is not None:
        loss = loss + entropy_loss(alpha, entropy)
    return loss, (stats, jax.lax.stop_gradient((entropy, logp_diff)))


def _moved_coefficients(
    state: EntropyState, entropy: PerModality, config: EntropyConfig, good: jax.Array
) -> EntropyState:
    """The coefficients after a step on the entropies, which is taken where `good`."""
    moved = update_coefficients(state, entropy, config)
    return jax.tree.map(lambda new, old: jnp.where(good, new, old), moved, state)


def _add(a: tuple[LossStats, Any], b: tuple[LossStats, Any]) -> tuple[LossStats, Any]:
    return add_stats(a[0], b[0]), jax.tree.map(jnp.add, a[1], b[1])


def _loss_batch(part: PolicyBatch, new: TokenLogps) -> LossBatch:
    rows, old_logp_BN = part.rollout.rows, jax.lax.stop_gradient(new.logp_BN)
    if part.is_first_B is not None and part.old_logp_BN is not None:
        old_logp_BN = jnp.where(part.is_first_B[:, None], old_logp_BN, part.old_logp_BN)
    elif part.old_logp_BN is not None:
        old_logp_BN = part.old_logp_BN
    return LossBatch(
        logp_BN=new.logp_BN,
        old_logp_BN=old_logp_BN,
        mask_BN=rows.sampled_mask_BN,
        is_image_BN=rows.is_image_BN,
        advantages=part.advantages,
        row_mask_B=part.row_mask_B,
        ref_logp_BN=part.ref_logp_BN,
        sampler_logp_BN=part.rollout.logp_BN,
        entropy_BN=new.entropy_BN,
        selected_BN=part.selected_BN,
    )


@partial(jax.jit, static_argnames="config")
def _select_tokens(
    entropy_BN: jax.Array, rows: TokenBatch, row_mask_B: jax.Array, config: TokenChoiceConfig
) -> jax.Array:
    valid_BN = rows.sampled_mask_BN & row_mask_B[:, None]
    return select_tokens(entropy_BN, valid_BN, rows.is_image_BN, config)


@dataclass(frozen=True)
class Learner:
    """The compiled device side of an update.

    Attributes:
      token_logps: (params, frozen, rows) -> teacher-forced log-probs, see `make_token_logps`.
      update: (state, frozen, batch) -> (state, metrics), see `make_policy_step`.
      reference: trained part of the reference policy; None without KL.
      tokens: which tokens are learnt, by their entropy; None: all.
    """

    token_logps: Any
    update: Any
    reference: Any
    tokens: TokenChoiceConfig | None = None


@dataclass(frozen=True)
class RolloutLogps:
    """What is computed of a rollout before its updates, and needs no rewards.

    Attributes:
      rollout: all of it, as it was sampled. shares: its mini-batches, one for each optimizer step,
        on the mesh that trains.
      old, reference: of each share, under the policy before the updates and under the reference;
        None where they are not needed.
    """

    rollout: Rollout
    shares: Sequence[Rollout]
    old: Sequence[TokenLogps | None]
    reference: Sequence[TokenLogps | None]


def rollout_logps(
    rollout: Rollout, state: TrainState, frozen: Any, learner: Learner, updates: int, mesh: Mesh
) -> RolloutLogps:
    """The log-probs of a rollout that its `updates` optimizer steps need, dispatched.

    mesh: that trains; the rollout may come from another one.
    """
    whole = move_rows(rollout, mesh)
    parts = np.split(np.arange(rollout.rows.plan_len_B.shape[0]), updates)
    shares, old, reference = [], [], []
    for i, part in enumerate(parts):
        share = whole if len(parts) == 1 else take_on_mesh(whole, part)
        shares.append(share)
        # Later updates move away from that policy; the first starts at it.
        needs_old = i > 0 or learner.tokens is not None
        old.append(learner.token_logps(state.params, frozen, share.rows) if needs_old else None)
        ref = learner.reference
        reference.append(None if ref is None else learner.token_logps(ref, frozen, share.rows))
    return RolloutLogps(rollout, shares, old, reference)


def policy_batches(
    groups: SampledGroups,
    state: TrainState,
    frozen: Any,
    learner: Learner,
    updates: int,
    mesh: Mesh,
    known: RolloutLogps | None = None,
) -> list[PolicyBatch]:
    """One batch for each of the `updates` optimizer steps of a rollout, with its log-probs.

    All batches have the log-probs of the policy before the first of them, `state`. So are the
    entropies that select tokens: their thresholds are those of a batch, the mini-batch.

    known: `rollout_logps` that were computed already; used if they are of this very rollout.
    """
    scored = groups.scored
    if known is None or known.rollout is not scored.rollout:
        known = rollout_logps(scored.rollout, state, frozen, learner, updates, mesh)
    batches = []
    for i, part in enumerate(np.split(np.arange(len(scored)), updates)):
        old, reference = known.old[i], known.reference[i]
        row_mask_B = put_rows(groups.row_mask_B[part], mesh)
        batch = PolicyBatch(
            rollout=known.shares[i],
            old_logp_BN=None,
            ref_logp_BN=None if reference is None else reference.logp_BN,
            advantages=put_rows(groups.advantages.take(part), mesh),
            row_mask_B=row_mask_B,
        )
        if updates > 1:
            old_logp_BN = batch.rollout.logp_BN if old is None else old.logp_BN
            batch = replace(
                batch,
                old_logp_BN=jax.device_put(old_logp_BN, row_sharding(mesh)),
                is_first_B=put_rows(np.full(len(part), i == 0), mesh),
            )
        if old is not None and learner.tokens is not None:
            rows = batch.rollout.rows
            selected_BN = _select_tokens(old.entropy_BN, rows, row_mask_B, config=learner.tokens)
            batch = replace(batch, selected_BN=selected_BN)
        batches.append(batch)
    return batches
