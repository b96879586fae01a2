"""The compiled steps of the jobs: supervised update, old log-probabilities, policy update.

Each `make_*` closes over what is static and returns a jitted function of pure trees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from gotr1_jax.rl.losses import (
    LossBatch,
    LossStats,
    PolicyLossConfig,
    add_stats,
    count_normalisers,
    policy_loss,
)
from gotr1_jax.sampling.replay import LogpSettings, RowLogps, replay_logps
from gotr1_jax.sampling.rows import Rows, drop_context
from gotr1_jax.sft.losses import SftStats, SftWeights, count_tokens, sft_loss
from gotr1_jax.text import SpecialIds
from gotr1_jax.training.state import TrainState, apply_gradients, split_rows, sum_over_pieces

# Scores of taught tokens are plain: no guidance, temperature 1.
PLAIN = LogpSettings("conditional", 1.0, 1.0, 1.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SftMetrics:
    """Float32 scalars of one update; cross entropies in nats a token."""

    loss: jax.Array
    stats: SftStats
    grad_norm: jax.Array


def make_sft_step(
    graphdef: Any,
    optimizer: optax.GradientTransformation,
    specials: SpecialIds,
    weights: SftWeights,
    dropout: float,
    micro_batch: int,
) -> Callable[[TrainState, Rows, jax.Array], tuple[TrainState, SftMetrics]]:
    """step(state, rows, key): one supervised update; the key draws which captions are dropped."""

    def step(state: TrainState, rows: Rows, key: jax.Array) -> tuple[TrainState, SftMetrics]:
        B, T = rows.plan_ids_BT.shape
        rows = drop_context(rows, jax.random.bernoulli(key, dropout, (B,)), specials)
        last_BT = jnp.arange(T)[None, :] == rows.plan_len_B[:, None] - 1
        boi_BT = last_BT & rows.plan_mask_BT
        image_BU = jnp.ones(rows.image_ids_BU.shape, bool)
        counts = count_tokens(rows.plan_mask_BT, boi_BT, image_BU)

        def gradient(piece: Any) -> tuple[Any, Any]:
            part, boi, image = piece

            def loss_of(params: Any) -> tuple[jax.Array, SftStats]:
                policy = nnx.merge(graphdef, params)
                scores = replay_logps(policy, part, specials, PLAIN)
                plan, picture = scores.plan_logp_BT, scores.image_logp_BU
                return sft_loss(plan, part.plan_mask_BT, boi, picture, image, weights, counts)

            (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
            return grads, (loss, stats)

        pieces = split_rows((rows, boi_BT, image_BU), B // micro_batch)
        add = partial(jax.tree.map, jnp.add)
        grads, (loss, stats) = sum_over_pieces(gradient, pieces, add)
        state, norm = apply_gradients(state, grads, loss, optimizer)
        return state, SftMetrics(loss, stats, norm)

    return jax.jit(step, donate_argnums=0)


def make_replay(
    graphdef: Any, specials: SpecialIds, settings: LogpSettings, micro_batch: int
) -> Callable[[Any, Any, Rows], RowLogps]:
    """replay(params, frozen, rows): log-probabilities at the training shapes.

    Rows are taken in the same pieces as the update takes them, so that with nothing updated the
    ratio is 1 to the bit.
    """

    def replay(params: Any, frozen: Any, rows: Rows) -> RowLogps:
        B = rows.plan_len_B.shape[0]
        pieces = split_rows(rows, B // micro_batch)

        def one(part: Rows) -> RowLogps:
            policy = nnx.merge(graphdef, params, frozen)
            return replay_logps(policy, part, specials, settings)

        scores = jax.lax.map(one, pieces)
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(B, *x.shape[2:]), scores)

    return jax.jit(replay)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PolicyBatch:
    """What an update learns from: rows, where it starts, and what they earned.

    Attributes:
      rows: B rows.
      old: log-probabilities that the ratio is taken against.
      ref: the reference's, or None without KL.
      advantages_B: float32; row_mask_B: False on rows that no judge could tell.
    """

    rows: Rows
    old: RowLogps
    ref: RowLogps | None
    advantages_B: jax.Array
    row_mask_B: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PolicyMetrics:
    """Scalars of one policy update; entropies in nats a token."""

    loss: jax.Array
    stats: LossStats
    entropy_text: jax.Array
    entropy_image: jax.Array
    grad_norm: jax.Array


def make_policy_step(
    graphdef: Any,
    optimizer: optax.GradientTransformation,
    specials: SpecialIds,
    settings: LogpSettings,
    loss_config: PolicyLossConfig,
    micro_batch: int,
) -> Callable[[TrainState, Any, PolicyBatch], tuple[TrainState, PolicyMetrics]]:
    """step(state, frozen, batch): one optimizer step of the clipped policy loss."""

    def step(
        state: TrainState, frozen: Any, batch: PolicyBatch
    ) -> tuple[TrainState, PolicyMetrics]:
        B = batch.row_mask_B.shape[0]
        image_mask_BU = jnp.ones(batch.rows.image_ids_BU.shape, bool)
        norms = count_normalisers(batch.rows.plan_mask_BT, image_mask_BU, batch.row_mask_B)
        tokens = (jnp.maximum(norms.text_tokens, 1.0), jnp.maximum(norms.image_tokens, 1.0))

        def gradient(part: PolicyBatch) -> tuple[Any, Any]:
            def loss_of(params: Any) -> tuple[jax.Array, Any]:
                policy = nnx.merge(graphdef, params, frozen)
                new = replay_logps(policy, part.rows, specials, settings)
                loss, stats = policy_loss(_loss_batch(part, new), loss_config, norms)
                keep = part.row_mask_B[:, None]
                entropies = (
                    jnp.sum(new.plan_entropy_BT * keep) / tokens[0],
                    jnp.sum(new.image_entropy_BU * keep) / tokens[1],
                )
                return loss, (stats, jax.lax.stop_gradient(entropies))

            (loss, (stats, entropies)), grads = jax.value_and_grad(loss_of, has_aux=True)(
                state.params
            )
            return grads, (loss, stats, entropies)

        pieces = split_rows(batch, B // micro_batch)
        grads, (loss, stats, entropies) = sum_over_pieces(gradient, pieces, _add)
        state, norm = apply_gradients(state, grads, loss, optimizer)
        return state, PolicyMetrics(loss, stats, entropies[0], entropies[1], norm)

    return jax.jit(step, donate_argnums=0)


def _add(a: Any, b: Any) -> Any:
    entropies = (a[2][0] + b[2][0], a[2][1] + b[2][1])
    return a[0] + b[0], add_stats(a[1], b[1]), entropies


def _loss_batch(part: PolicyBatch, new: RowLogps) -> LossBatch:
    return LossBatch(
        logp_text_BT=new.plan_logp_BT,
        old_text_BT=part.old.plan_logp_BT,
        mask_text_BT=part.rows.plan_mask_BT,
        logp_image_BU=new.image_logp_BU,
        old_image_BU=part.old.image_logp_BU,
        mask_image_BU=jnp.ones(new.image_logp_BU.shape, bool),
        advantages_B=part.advantages_B,
        row_mask_B=part.row_mask_B,
        ref_text_BT=None if part.ref is None else part.ref.plan_logp_BT,
        ref_image_BU=None if part.ref is None else part.ref.image_logp_BU,
    )
