"""AdamW with warm-up, schedule and clipping, from its configuration.

Both moments, and what they are added to, are float32 for parameters of any dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from gotr1_jax.trainer.config import OptimizerConfig

# Logical axes that count entries: an array with one of them first is a table looked up by id.
_TABLE_AXES = ("vocab", "image_vocab")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MasterState:
    """Optimizer state of parameters of which some are not float32.

    Attributes:
      master: the parameters in float32; the parameters themselves are its rounding.
      inner: state of the optimizer, which sees float32 only.
    """

    master: Any
    inner: optax.OptState


def make_schedule(config: OptimizerConfig, steps: int) -> Callable[[Any], Any]:
    """Learning rate of update 0 .. steps - 1: linear warm-up, then cosine or constant."""
    warmup = config.warmup_steps
    if config.schedule == "constant":
        after = optax.constant_schedule(config.learning_rate)
    else:
        span = max(steps - warmup, 1)
        after = optax.cosine_decay_schedule(config.learning_rate, span, config.final_fraction)
    if not warmup:
        return after
    # The rate of the first update is learning_rate / warmup, not 0.
    rise = optax.linear_schedule(config.learning_rate / warmup, config.learning_rate, warmup - 1)
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW, in float32; see `decayed` for the weight decay."""
    return _in_float32(
        optax.chain(
            optax.clip_by_global_norm(config.clip_norm),
            optax.adamw(
                make_schedule(config, steps),
                b1=config.beta1,
                b2=config.beta2,
                weight_decay=config.weight_decay,
                mask=decayed,
            ),
        )
    )


def decayed(params: Any) -> Any:
    """Which parameters weight decay reaches: a tree like `params` of bools.

    True for the matrices of linear layers, convolutions and adapters. False for biases and the
    scales of norms, which have one axis in a layer, and for tables of embeddings and codes.
    Parameters without named axes count as matrices if they have two axes or more.
    """

    def of_array(leaf: Any) -> bool:
        return bool(leaf.ndim > 1)

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, nnx.Variable):
            return of_array(leaf)
        axes = leaf.get_metadata().get("axes")
        if axes is None:
            return leaf.replace(of_array(leaf.get_value()))
        return leaf.replace(len(axes) > 1 and axes[0] not in _TABLE_AXES)

    return jax.tree.map(one, params, is_leaf=lambda x: isinstance(x, nnx.Variable))


def float32_params(params: Any, opt_state: Any) -> Any:
    """The parameters before they were rounded to their dtype: `params` itself if float32."""
    return opt_state.master if isinstance(opt_state, MasterState) else params


def _in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` over float32 gradients and parameters, with master weights where these are not.

    Without them an update below half the spacing of bfloat16 (up to 1/256 of a weight) would be
    lost. If every parameter is float32 the state is that of `inner`.
    """

    def init(params: Any) -> Any:
        if all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params)):
            return inner.init(params)
        # Copies: a donated state must not hold a buffer twice.
        master = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params)
        return MasterState(master, inner.init(master))

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        grads = optax.tree.cast(grads, jnp.float32)
        if not isinstance(state, MasterState):
            return inner.update(grads, state, params)
        steps, inner_state = inner.update(grads, state.inner, state.master)
        master = optax.apply_updates(state.master, steps)
        # Added to the parameters in float32 and rounded, this gives the rounding of the master.
        steps = jax.tree.map(lambda new, old: new - old.astype(jnp.float32), master, params)
        return steps, MasterState(master, inner_state)

    return optax.GradientTransformation(init, update)
