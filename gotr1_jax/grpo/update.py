"""The compiled steps of the jobs: supervised update, old log-probabilities, policy update.

Each `make_*` closes over what is static and returns a jitted function of pure trees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.decoding.guidance import LogpSettings
from gotr1_jax.grpo.config import EntropyConfig
from gotr1_jax.grpo.dynamic_sampling import SampledGroups
from gotr1_jax.grpo.entropy import PerModality, coefficients, entropy_loss, update_coefficients
from gotr1_jax.grpo.losses import (
    LossBatch,
    LossStats,
    Normalisers,
    PolicyLossConfig,
    add_stats,
    count_normalisers,
    policy_loss,
)
from gotr1_jax.parallel.placement import put_rows, take_on_mesh
from gotr1_jax.sampler.token_batch import TokenBatch
from gotr1_jax.tokenizers.janus import SpecialIds
from gotr1_jax.trainer.logprobs import TokenLogps, token_logps
from gotr1_jax.trainer.state import TrainState, apply_gradients, split_rows, sum_over_pieces


def make_token_logps(
    graphdef: Any, specials: SpecialIds, settings: LogpSettings, micro_batch: int
) -> Callable[[Any, Any, TokenBatch], TokenLogps]:
    """replay(params, frozen, rows): log-probabilities at the training shapes.

    Rows are taken in the same pieces as the update takes them, so that with nothing updated the
    ratio is 1 to the bit.
    """

    def replay(params: Any, frozen: Any, rows: TokenBatch) -> TokenLogps:
        B = rows.plan_len_B.shape[0]
        pieces = split_rows(rows, B // micro_batch)

        def one(part: TokenBatch) -> TokenLogps:
            policy = nnx.merge(graphdef, params, frozen)
            return token_logps(policy, part, specials, settings)

        scores = jax.lax.map(one, pieces)
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(B, *x.shape[2:]), scores)

    return jax.jit(replay)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PolicyBatch:
    """What an update learns from: rows, where it starts, and what they earned.

    Attributes:
      rows: B rows.
      sampled_text_BT, sampled_image_BU: the sampler's own log-probabilities, for the metric only.
      old: log-probabilities that the ratio is taken against; None in the first update after a
        rollout, where they are those of the update's own forward: the ratio is exactly 1.
      ref: the reference's, or None without KL.
      advantages_B: float32; row_mask_B: False on rows that no judge could tell.
    """

    rows: TokenBatch
    sampled_text_BT: jax.Array
    sampled_image_BU: jax.Array
    old: TokenLogps | None
    ref: TokenLogps | None
    advantages_B: jax.Array
    row_mask_B: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PolicyMetrics:
    """Scalars of one policy update.

    entropy: nats a token; alpha: the entropy coefficients that the loss had (None without);
    logp_diff: mean |update's forward - sampler|, nats a token: what cached
    decoding and other shapes make of the same weights (meaningful in a first update only).
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
    settings: LogpSettings,
    loss_config: PolicyLossConfig,
    micro_batch: int,
    entropy_config: EntropyConfig | None = None,
) -> Callable[[TrainState, Any, PolicyBatch], tuple[TrainState, PolicyMetrics]]:
    """step(state, frozen, batch): one optimizer step of the clipped policy loss.

    With `entropy_config` the loss has the adaptive entropy term, whose coefficients take one step
    on the mini-batch's entropies when the update was good.
    """

    def step(
        state: TrainState, frozen: Any, batch: PolicyBatch
    ) -> tuple[TrainState, PolicyMetrics]:
        B = batch.row_mask_B.shape[0]
        image_mask_BU = jnp.ones(batch.rows.image_ids_BU.shape, bool)
        norms = count_normalisers(batch.rows.plan_mask_BT, image_mask_BU, batch.row_mask_B)
        alpha = None if state.entropy is None else coefficients(state.entropy)

        def gradient(part: PolicyBatch) -> tuple[Any, Any]:
            def loss_of(params: Any) -> tuple[jax.Array, Any]:
                policy = nnx.merge(graphdef, params, frozen)
                new = token_logps(policy, part.rows, specials, settings)
                loss, stats = policy_loss(_loss_batch(part, new), loss_config, norms)
                means = _means(part, new, norms)
                if alpha is not None:
                    loss = loss + entropy_loss(alpha, means[0])
                return loss, (stats, *jax.lax.stop_gradient(means))

            (loss, extra), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
            return grads, (loss, *extra)

        pieces = split_rows(batch, B // micro_batch)
        grads, (loss, stats, entropy, difference) = sum_over_pieces(gradient, pieces, _add)
        updates = state.updates
        state, norm = apply_gradients(state, grads, loss, optimizer)
        if state.entropy is not None and entropy_config is not None:
            moved = update_coefficients(state.entropy, entropy, entropy_config)
            good = state.updates > updates
            kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), moved, state.entropy)
            state = replace(state, entropy=kept)
        return state, PolicyMetrics(loss, stats, entropy, difference, norm, alpha)

    return jax.jit(step, donate_argnums=0)


def _means(
    part: PolicyBatch, new: TokenLogps, norms: Normalisers
) -> tuple[PerModality, PerModality]:
    """Entropy and |new - sampled| as this piece's shares of the means over the mini-batch."""
    keep_B1 = part.row_mask_B[:, None]
    keep_BT = part.rows.plan_mask_BT & keep_B1
    text_tokens = jnp.maximum(norms.text_tokens, 1.0)
    image_tokens = jnp.maximum(norms.image_tokens, 1.0)

    def mean(text_BT: jax.Array, image_BU: jax.Array) -> PerModality:
        text = jnp.sum(jnp.where(keep_BT, text_BT, 0.0)) / text_tokens
        image = jnp.sum(jnp.where(keep_B1, image_BU, 0.0)) / image_tokens
        return PerModality(text, image)

    return mean(new.plan_entropy_BT, new.image_entropy_BU), mean(
        jnp.abs(new.plan_logp_BT - part.sampled_text_BT),
        jnp.abs(new.image_logp_BU - part.sampled_image_BU),
    )


def _add(a: Any, b: Any) -> Any:
    add = partial(jax.tree.map, jnp.add)
    return a[0] + b[0], add_stats(a[1], b[1]), add(a[2], b[2]), add(a[3], b[3])


def _loss_batch(part: PolicyBatch, new: TokenLogps) -> LossBatch:
    old = jax.lax.stop_gradient(new) if part.old is None else part.old
    return LossBatch(
        logp_text_BT=new.plan_logp_BT,
        old_text_BT=old.plan_logp_BT,
        mask_text_BT=part.rows.plan_mask_BT,
        logp_image_BU=new.image_logp_BU,
        old_image_BU=old.image_logp_BU,
        mask_image_BU=jnp.ones(new.image_logp_BU.shape, bool),
        advantages_B=part.advantages_B,
        row_mask_B=part.row_mask_B,
        ref_text_BT=None if part.ref is None else part.ref.plan_logp_BT,
        ref_image_BU=None if part.ref is None else part.ref.image_logp_BU,
    )


@dataclass(frozen=True)
class Learner:
    """The compiled device side of an update.

    Attributes:
      token_logps: (params, frozen, rows) -> teacher-forced log-probs, see `make_token_logps`.
      update: (state, frozen, batch) -> (state, metrics), see `make_policy_step`.
      reference: trained part of the reference policy; None without KL.
    """

    token_logps: Any
    update: Any
    reference: Any


def policy_batches(
    groups: SampledGroups,
    state: TrainState,
    frozen: Any,
    learner: Learner,
    updates: int,
    mesh: Mesh,
) -> list[PolicyBatch]:
    """One batch for each of the `updates` optimizer steps of a rollout, with its log-probs.

    All batches have the log-probs of the policy that sampled: `state` is that before the first.
    """
    scored = groups.scored
    shares = np.split(np.arange(len(scored)), updates)
    batches = []
    for i, share in enumerate(shares):
        rollout = scored.rollout if len(shares) == 1 else take_on_mesh(scored.rollout, share)
        rows, reference = rollout.rows, learner.reference
        batches.append(
            PolicyBatch(
                rows=rows,
                sampled_text_BT=rollout.plan_logp_BT,
                sampled_image_BU=rollout.image_logp_BU,
                # Later updates move away from the policy that sampled; the first starts at it.
                old=learner.token_logps(state.params, frozen, rows) if i else None,
                ref=None if reference is None else learner.token_logps(reference, frozen, rows),
                advantages_B=put_rows(groups.advantages_B[share], mesh),
                row_mask_B=put_rows(groups.row_mask_B[share], mesh),
            )
        )
    return batches
