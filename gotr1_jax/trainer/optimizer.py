"""AdamW or Muon with warm-up, schedule and clipping, from their configuration.

Moments, and what they are added to, are float32 for parameters of any dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from optax import contrib

from gotr1_jax.errors import InputError
from gotr1_jax.trainer.config import OptimizerConfig

# Logical axes that count entries: an array with one of them first is a table looked up by id.
_TABLE_AXES = ("vocab", "image_vocab")
# Logical axes of widths inside of the network. A matrix between two of them transforms hidden
# states; the others read or write tokens, codes and patches, or belong to adapters.
_HIDDEN_AXES = {"embed", "heads", "kv_heads", "mlp", "vision_mlp", "head_mlp"}
# Root mean square of an AdamW step over its rate, as measured by arXiv 2502.16982 (section 2.2).
_ADAMW_RMS = 0.2


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
    """Global-norm clipping, then AdamW or Muon, in float32; see `decayed` for the weight decay.

    With `kind: muon` its `init` raises InputError if no parameter is one of `hidden_matrices`.
    """
    make = _muon if config.kind == "muon" else _adamw
    clip = optax.clip_by_global_norm(config.clip_norm)
    return _in_float32(optax.chain(clip, make(config, make_schedule(config, steps))))


def _adamw(config: OptimizerConfig, rate: Callable[[Any], Any]) -> optax.GradientTransformation:
    return optax.adamw(
        rate, b1=config.beta1, b2=config.beta2, weight_decay=config.weight_decay, mask=decayed
    )


def _muon(config: OptimizerConfig, rate: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Muon for `hidden_matrices`, AdamW for the rest; both decay at their own rate.

    An orthogonalised step O of a matrix (in, out) is scaled to 0.2 * sqrt(max(in, out)) * O: a
    root mean square of 0.2, that of AdamW (arXiv 2502.16982, equation 4).
    """
    ratio = (config.muon_learning_rate or config.learning_rate) / config.learning_rate

    def label(params: Any) -> Any:
        wanted = hidden_matrices(params)
        return jax.tree.map(lambda is_hidden: "muon" if is_hidden else "adamw", wanted)

    # The last two axes are the matrix; those before, of stacked layers, count matrices.
    def dimensions(updates: Any) -> Any:
        return jax.tree.map(lambda _: contrib.MuonDimensionNumbers(-2, -1), updates)

    def to_adamw_size(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda x: x * (_ADAMW_RMS * max(x.shape[-2:]) ** 0.5), updates)

    def to_own_rate(updates: Any, _: Any) -> Any:
        wanted = hidden_matrices(updates)
        return jax.tree.map(lambda x, is_hidden: x * ratio if is_hidden else x, updates, wanted)

    direction = optax.chain(
        contrib.scale_by_muon(beta=config.muon_momentum, weight_dimension_numbers=dimensions),
        optax.stateless(to_adamw_size),
    )
    adam = optax.scale_by_adam(config.beta1, config.beta2)
    chain = optax.chain(
        optax.partition({"muon": direction, "adamw": adam}, label),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.stateless(to_own_rate),
        optax.scale_by_learning_rate(rate),
    )

    def init(params: Any) -> Any:
        if not any(jax.tree.leaves(hidden_matrices(params))):
            raise InputError(
                "optimizer.kind is muon, but no matrix of a layer is trained here (adapters and "
                "convolutions are not such matrices); set optimizer.kind: adamw"
            )
        return chain.init(params)

    return optax.GradientTransformation(init, chain.update)


def hidden_matrices(params: Any) -> Any:
    """Which parameters are matrices from hidden states to hidden states: a tree like `params` of
    bools. Their last two axes are (in, out); a leading one stacks layers.

    False for embeddings, output heads, adapters, convolutions and parameters without named axes.
    """

    def one(leaf: Any) -> Any:
        axes = leaf.get_metadata().get("axes") if isinstance(leaf, nnx.Variable) else None
        wanted = axes is not None and len(axes) == 2 and _HIDDEN_AXES.issuperset(axes)
        return leaf.replace(wanted) if isinstance(leaf, nnx.Variable) else wanted

    return jax.tree.map(one, params, is_leaf=lambda x: isinstance(x, nnx.Variable))


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
