"""The compiled update of a judge."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from gotr1_jax.judge_sft.batch import JudgeBatch
from gotr1_jax.judge_sft.losses import AnswerSums, answer_loss, target_mask, target_weights
from gotr1_jax.models.qwen_vl import QwenVL
from gotr1_jax.trainer.state import (
    TrainState,
    accumulate_gradients,
    apply_gradients,
    split_micro_batches,
)

JudgeStep = Callable[[TrainState, Any, JudgeBatch], tuple[TrainState, dict[str, jax.Array]]]
"""step(state, frozen, batch): the next state, and float32 scalars by the names of metrics."""


def answer_logits(
    model: QwenVL, batch: JudgeBatch, width: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits (B, A, V) that predict the first `width` tokens of each answer, these tokens (B, A),
    and the answers' lengths (B,); B = E·Q turns."""
    E, K, S = batch.ids_EKS.shape
    ids_BS, sequences_BS = (
        jnp.asarray(x).reshape(E * K, S) for x in (batch.ids_EKS, batch.sequences_EKS)
    )
    units = places_BS = None
    if batch.patches is not None:
        units = model.embed_images(batch.patches)
        first_E = jnp.arange(E, dtype=jnp.int32)[:, None, None] * units.shape[1]
        places_EKS = jnp.where(batch.places_EKS >= 0, batch.places_EKS + first_E, -1)
        places_BS = places_EKS.reshape(E * K, S)
    x = model.embed(ids_BS, places_BS, units)
    positions_3BS = jnp.moveaxis(batch.positions_EK3S.reshape(E * K, 3, S), 1, 0)
    hidden = model.hidden(x, positions_3BS, sequences_BS).reshape(E, K * S, -1)
    # The token at s is predicted at s - 1. Only these positions go through the head.
    at_EQA = jnp.minimum(batch.starts_EQ[..., None] + jnp.arange(width), K * S - 1)
    targets_EL = jnp.take_along_axis(ids_BS.reshape(E, K * S), at_EQA.reshape(E, -1), axis=1)
    used_ELD = jnp.take_along_axis(hidden, at_EQA.reshape(E, -1, 1) - 1, axis=1)
    lengths_B = jnp.asarray(batch.lengths_EQ).reshape(-1)
    shape = (len(lengths_B), width)
    return model.logits(used_ELD.reshape(*shape, -1)), targets_EL.reshape(shape), lengths_B


def update_by(
    loss_of: Callable[[Any, JudgeBatch], tuple[jax.Array, Any]],
    state: TrainState,
    batch: JudgeBatch,
    optimizer: optax.GradientTransformation,
    micro_batch: int,
) -> tuple[TrainState, jax.Array, Any, jax.Array]:
    """One optimizer step on the sum of a loss over micro-batches.

    Args:
      loss_of: f(parameters, micro-batch) -> its part of the loss, and sums; both add up.
      micro_batch: examples of a forward and backward pass.

    Returns the state, the loss, the sums, and the norm of the gradient before clipping.
    """

    def gradient(part: JudgeBatch) -> tuple[Any, Any]:
        found, grads = jax.value_and_grad(loss_of, has_aux=True)(state.params, part)
        return grads, found

    parts = split_micro_batches(batch, batch.ids_EKS.shape[0] // micro_batch)
    add = partial(jax.tree.map, jnp.add)
    grads, (loss, sums) = accumulate_gradients(gradient, state.params, parts, add)
    state, norm = apply_gradients(state, grads, loss, optimizer)
    return state, loss, sums, norm


def make_judge_step(
    graphdef: Any,
    optimizer: optax.GradientTransformation,
    width: int,
    mean_over: str,
    micro_batch: int,
) -> JudgeStep:
    """One supervised update. Its metrics: the loss, mean `nats/answer` of a token of an answer, the
    shares `right/tokens` that the model thinks most likely, given those before, and
    `right/answers` of which that is true throughout, and the norm of the gradient before clipping.

    Args:
      graphdef: of a `QwenVL`; merged with the state's parameters and `frozen`.
      optimizer: of the trained parameters.
      width: tokens of the longest answer.
      mean_over: "tokens" or "answers".
      micro_batch: examples of a forward and backward pass.
    """

    def step(
        state: TrainState, frozen: Any, batch: JudgeBatch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        lengths_B = jnp.asarray(batch.lengths_EQ).reshape(-1)
        total = target_weights(lengths_B, width, mean_over).sum()

        def loss_of(params: Any, part: JudgeBatch) -> tuple[jax.Array, AnswerSums]:
            model = nnx.merge(graphdef, params, frozen)
            logits, targets, lengths = answer_logits(model, part, width)
            weights = target_weights(lengths, width, mean_over)
            return answer_loss(logits, targets, weights, total)

        state, loss, sums, norm = update_by(loss_of, state, batch, optimizer, micro_batch)
        tokens = jnp.maximum(target_mask(lengths_B, width).sum(), 1)
        answers = jnp.maximum((lengths_B > 0).sum(), 1)
        return state, {
            "loss": loss,
            "nats/answer": sums.nats / tokens,
            "right/tokens": sums.right_tokens / tokens,
            "right/answers": sums.right_answers / answers,
            "grad_norm": norm,
        }

    return jax.jit(step, donate_argnums=0)
