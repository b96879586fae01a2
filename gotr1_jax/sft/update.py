"""The compiled update of supervised training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from gotr1_jax.decoding.guidance import LogpSettings
from gotr1_jax.sampler.token_batch import TokenBatch, drop_context
from gotr1_jax.sft.losses import SftStats, SftWeights, count_tokens, sft_loss
from gotr1_jax.tokenizers.janus import SpecialIds
from gotr1_jax.trainer.logprobs import token_logps
from gotr1_jax.trainer.state import TrainState, apply_gradients, split_rows, sum_over_pieces

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
) -> Callable[[TrainState, TokenBatch, jax.Array], tuple[TrainState, SftMetrics]]:
    """step(state, rows, key): one supervised update; the key draws which captions are dropped."""

    def step(state: TrainState, rows: TokenBatch, key: jax.Array) -> tuple[TrainState, SftMetrics]:
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
                scores = token_logps(policy, part, specials, PLAIN)
                plan, image_logp = scores.plan_logp_BT, scores.image_logp_BU
                return sft_loss(plan, part.plan_mask_BT, boi, image_logp, image, weights, counts)

            (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
            return grads, (loss, stats)

        pieces = split_rows((rows, boi_BT, image_BU), B // micro_batch)
        add = partial(jax.tree.map, jnp.add)
        grads, (loss, stats) = sum_over_pieces(gradient, pieces, add)
        state, norm = apply_gradients(state, grads, loss, optimizer)
        return state, SftMetrics(loss, stats, norm)

    return jax.jit(step, donate_argnums=0)
