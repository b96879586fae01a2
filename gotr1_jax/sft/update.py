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

from gotr1_jax.decoding.config import LogpConfig
from gotr1_jax.sampler.token_batch import TokenBatch, drop_context
from gotr1_jax.sft.losses import SftWeights, TargetKinds, count_targets, sft_loss
from gotr1_jax.tokenizers.janus import SpecialIds
from gotr1_jax.trainer.length_buckets import (
    at_length,
    context_lengths,
    length_order,
    reorder,
    token_logps_at,
)
from gotr1_jax.trainer.state import (
    TrainState,
    accumulate_gradients,
    apply_gradients,
    split_micro_batches,
)

# Cross entropy of the conditional distribution: no guidance, temperature 1.
PLAIN = LogpConfig("conditional", 1.0, 1.0, 1.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SftMetrics:
    """Float32 scalars of one update; `nats` are mean cross entropies of the kinds of targets."""

    loss: jax.Array
    nats: TargetKinds
    grad_norm: jax.Array


def target_kinds(rows: TokenBatch) -> TargetKinds:
    """Which tokens are targets, bool (B, N): plan tokens but BOI, image tokens, BOI."""
    T = rows.plan_ids_BT.shape[1]
    N = T + rows.image_ids_BU.shape[1]
    is_boi_BN = jnp.arange(N)[None, :] == rows.plan_len_B[:, None] - 1
    text_BN = rows.sampled_mask_BN & ~rows.is_image_BN
    return TargetKinds(text_BN & ~is_boi_BN, rows.is_image_BN, text_BN & is_boi_BN)


def make_sft_step(
    graphdef: Any,
    optimizer: optax.GradientTransformation,
    specials: SpecialIds,
    weights: SftWeights,
    dropout: float,
    micro_batch: int,
    length_buckets: int = 1,
) -> Callable[[TrainState, TokenBatch, jax.Array], tuple[TrainState, SftMetrics]]:
    """step(state, rows, key): one supervised update; the key draws which captions are dropped.

    length_buckets: lengths that prompts with plans are padded to, see `trainer.length_buckets`;
      the program has a forward and backward pass for each.
    """

    def step(state: TrainState, rows: TokenBatch, key: jax.Array) -> tuple[TrainState, SftMetrics]:
        B = rows.plan_len_B.shape[0]
        rows = drop_context(rows, jax.random.bernoulli(key, dropout, (B,)), specials)
        counts = count_targets(target_kinds(rows))
        lengths = context_lengths(rows.context_size, length_buckets)
        if len(lengths) > 1:
            rows = reorder(rows, length_order(rows, B // micro_batch))

        def gradient(part: TokenBatch) -> tuple[Any, Any]:
            return at_length(gradient_at, part, lengths, part)

        def gradient_at(length: int, part: TokenBatch) -> tuple[Any, Any]:
            def loss_of(params: Any) -> tuple[jax.Array, TargetKinds]:
                policy = nnx.merge(graphdef, params)
                logp_BN = token_logps_at(length, policy, part, specials, PLAIN).logp_BN
                return sft_loss(logp_BN, target_kinds(part), weights, counts)

            (loss, nats), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
            return grads, (loss, nats)

        batches, add = split_micro_batches(rows, B // micro_batch), partial(jax.tree.map, jnp.add)
        grads, (loss, nats) = accumulate_gradients(gradient, state.params, batches, add)
        state, norm = apply_gradients(state, grads, loss, optimizer)
        return state, SftMetrics(loss, nats, norm)

    return jax.jit(step, donate_argnums=0)
