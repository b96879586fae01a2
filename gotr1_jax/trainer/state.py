"""Train state, optimizer step, gradient accumulation; pure functions of pytrees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from gotr1_jax.errors import RunError
from gotr1_jax.parallel.placement import train_state_shardings


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The trained part of a model and its optimizer.

    Attributes:
      params: trained parameters (adapters, or all of a policy).
      opt_state: optax state over `params`.
      updates: int32, optimizer steps that were applied.
      skipped: int32, non-finite updates, which changed nothing.
      skipped_in_a_row: int32, skipped updates since the last good one.
      entropy: state of the adaptive entropy coefficients, or None.
      sampler_params: the parameters that samples are drawn with, where those lag behind `params`;
        else None.
    """

    params: Any
    opt_state: Any
    updates: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    entropy: Any = None
    sampler_params: Any = None


def new_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    entropy: Any = None,
    sampler_params: Any = None,
) -> TrainState:
    """The state before the first update; jit it with out_shardings to create it sharded."""
    zero = jnp.zeros((), jnp.int32)
    return TrainState(params, optimizer.init(params), zero, zero, zero, entropy, sampler_params)


def create_state(
    make_params: Callable[[Any], Any],
    given: Any,
    abstract: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> TrainState:
    """`new_state` of `make_params(given)` on the mesh; each device makes only its own shards.

    Args:
      make_params: traced; the parameters of loaded ones, or of a random key.
      given: its argument.
      abstract: shapes of the parameters, with their logical axes.
      optimizer: of the parameters.
      mesh: where the state goes.
    """
    shapes = jax.eval_shape(partial(new_state, optimizer=optimizer), abstract)

    def create(given: Any) -> TrainState:
        return new_state(make_params(given), optimizer)

    return jax.jit(create, out_shardings=train_state_shardings(shapes, abstract, mesh))(given)


def apply_gradients(
    state: TrainState, grads: Any, loss: jax.Array, optimizer: optax.GradientTransformation
) -> tuple[TrainState, jax.Array]:
    """One optimizer step; returns the state and the global norm of `grads` before clipping.

    If the loss or the norm is not finite, parameters and optimizer state do not change and the
    update counts as skipped.
    """
    norm = optax.tree.norm(optax.tree.cast(grads, jnp.float32))
    good = jnp.isfinite(norm) & jnp.isfinite(loss)
    steps, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, steps)

    def keep(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(good, new, old)

    one = good.astype(jnp.int32)
    return replace(
        state,
        params=jax.tree.map(keep, params, state.params),
        opt_state=jax.tree.map(keep, opt_state, state.opt_state),
        updates=state.updates + one,
        skipped=state.skipped + 1 - one,
        skipped_in_a_row=(state.skipped_in_a_row + 1) * (1 - one),
    ), norm


def stop_if_skipped(in_a_row: Any, limit: int, step: int) -> None:
    """Raise RunError if at least `limit` consecutive updates, the last at `step`, were skipped."""
    bad = int(in_a_row)
    if bad >= limit:
        raise RunError(
            f"the last {bad} updates up to step {step} were not finite and were skipped; "
            "lower optimizer.learning_rate or check the training data"
        )


def split_micro_batches(tree: Any, count: int) -> Any:
    """Every array (B, ...) as micro-batches (count, B / count, ...).

    Micro-batch i holds rows i, i + count, …: with this stride every row stays on its device;
    contiguous blocks would be moved between devices.
    """

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, tree)


def accumulate_gradients(
    gradient: Callable[[Any], tuple[Any, Any]],
    params: Any,
    batches: Any,
    combine: Callable[[Any, Any], Any],
) -> tuple[Any, Any]:
    """Sum gradients, in float32, and combine statistics over sequential micro-batches.

    `gradient` is traced once, so that the program holds one forward and backward pass.

    Args:
      gradient: f(micro_batch) -> (gradients, a tree like `params`; statistics).
      params: what is differentiated.
      batches: micro-batches on the leading axis.
      combine: statistics of two micro-batches together.
    """

    def add(total: Any, batch: Any) -> tuple[Any, Any]:
        grads, stats = gradient(batch)
        return jax.tree.map(lambda x, y: x + y.astype(jnp.float32), total, grads), stats

    if jax.tree.leaves(batches)[0].shape[0] == 1:
        grads, stats = gradient(jax.tree.map(lambda x: x[0], batches))
        return optax.tree.cast(grads, jnp.float32), stats
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
    total, stacked = jax.lax.scan(add, zeros, batches)
    first, rest = (jax.tree.map(lambda x, i=i: x[i], stacked) for i in (0, slice(1, None)))
    stats, _ = jax.lax.scan(lambda sofar, new: (combine(sofar, new), None), first, rest)
    return total, stats
