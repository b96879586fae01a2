"""Dtypes and weight decay of the optimizer, sums of gradients over micro-batches."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny import SPECIALS, STEP_MODEL, assert_equal_trees, host, random_rows

from gotr1_jax.models.config import LoraConfig
from gotr1_jax.models.janus import JanusPolicy, abstract_policy
from gotr1_jax.models.lora import split_lora
from gotr1_jax.models.vq import abstract_vq
from gotr1_jax.sft.losses import SftWeights
from gotr1_jax.sft.update import PLAIN, make_sft_step
from gotr1_jax.trainer.checkpoint_meta import specs
from gotr1_jax.trainer.config import OptimizerConfig
from gotr1_jax.trainer.logprobs import token_logps
from gotr1_jax.trainer.optimizer import decayed, float32_params, make_optimizer
from gotr1_jax.trainer.state import accumulate_gradients, apply_gradients, new_state

BF16 = jnp.bfloat16


def weights(dtype: Any) -> dict[str, jax.Array]:
    draw = np.random.default_rng(0).standard_normal((4, 6), np.float32)
    # Values of bfloat16, so that runs in both dtypes begin at the same numbers.
    return {"w": jnp.asarray(draw, BF16).astype(dtype)}


def gradients(step: int) -> dict[str, jax.Array]:
    draw = np.random.default_rng(step).standard_normal((4, 6), np.float32)
    return {"w": jnp.asarray(draw, BF16)}


def test_both_moments_of_bfloat16_parameters_are_float32() -> None:
    optimizer = make_optimizer(OptimizerConfig(), 10)
    state = new_state(weights(BF16), optimizer)
    state, _ = apply_gradients(state, gradients(1), jnp.zeros(()), optimizer)
    arrays = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert len(arrays) == 3  # two moments and the master weights
    assert all(leaf.dtype == jnp.float32 for leaf in arrays)
    assert state.params["w"].dtype == BF16


def test_bfloat16_parameters_learn_what_float32_parameters_learn() -> None:
    """At this rate a step is far below half the spacing of bfloat16."""
    config = OptimizerConfig(learning_rate=1e-5, schedule="constant", weight_decay=0.01)
    optimizer = make_optimizer(config, 100)
    update = jax.jit(partial(apply_gradients, optimizer=optimizer))
    wide, narrow = (new_state(weights(dtype), optimizer) for dtype in (jnp.float32, BF16))
    start = host(narrow.params)
    for step in range(100):
        grads = {"w": jnp.abs(gradients(step)["w"])}  # all steps in one direction
        wide, _ = update(wide, grads, jnp.zeros(()))
        narrow, _ = update(narrow, grads, jnp.zeros(()))
    master = float32_params(narrow.params, narrow.opt_state)
    np.testing.assert_allclose(master["w"], wide.params["w"], rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(narrow.params["w"], master["w"].astype(BF16))
    assert (narrow.params["w"] != start["w"]).any()
    assert float32_params(wide.params, wide.opt_state) is wide.params


def test_states_of_float32_runs_have_the_paths_of_older_checkpoints() -> None:
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    older = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(lambda _: 1e-5, mu_dtype=jnp.float32)
    )
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.1), 5)
    assert specs(new_state(params, optimizer)) == specs(new_state(params, older))


def names_where(tree: Any, wanted: bool) -> set[str]:
    """The paths, without "value", of the leaves that are `wanted`."""
    flat = jax.tree_util.tree_leaves_with_path(tree)
    paths = [jax.tree_util.keystr(p, simple=True, separator="/") for p, x in flat if x == wanted]
    return {path.removesuffix("/value") for path in paths}


def last_names(tree: Any, wanted: bool) -> set[str]:
    return {path.split("/")[-1] for path in names_where(tree, wanted)}


def test_weight_decay_reaches_matrices_alone() -> None:
    lora = LoraConfig(rank=2, alpha=4.0, targets=("q", "down"))
    _, adapters, rest = split_lora(abstract_policy(STEP_MODEL, lora=lora))
    assert jax.tree.leaves(decayed(adapters)) == [True] * 4
    kept = names_where(decayed(rest), False)
    assert last_names(decayed(rest), False) == {"bias", "scale", "table"}
    assert last_names(decayed(rest), True) == {"kernel"}
    # Tables of text and image tokens, three norms, biases of aligner and image head.
    assert len(kept) == 2 + 3 + 4
    vq = decayed(nnx.split(abstract_vq(STEP_MODEL.vq))[1])
    assert last_names(vq, True) == {"kernel"}
    assert last_names(vq, False) == {"bias", "scale", "embedding"}


def test_a_step_without_gradient_decays_the_kernels_alone() -> None:
    config = OptimizerConfig(learning_rate=0.5, schedule="constant", weight_decay=0.2)
    params = nnx.split(JanusPolicy(STEP_MODEL, rngs=nnx.Rngs(0)))[1]
    optimizer = make_optimizer(config, 3)
    zeros = jax.tree.map(jnp.zeros_like, params)
    state, _ = apply_gradients(new_state(params, optimizer), zeros, jnp.zeros(()), optimizer)
    factor = jax.tree.map(lambda keep: 0.9 if keep else 1.0, decayed(params))
    assert_equal_trees(
        host(jax.tree.map(lambda x: x.astype(BF16), state.params)),
        host(jax.tree.map(lambda x, f: (x * f).astype(BF16), params, factor)),
    )


# Micro-batches.


def test_gradients_of_micro_batches_are_summed_in_float32() -> None:
    """In bfloat16 256 + 1 is 256."""
    batches = jnp.asarray([[256.0], [1.0], [1.0], [1.0]], BF16)
    params = {"w": jnp.zeros((1,), BF16)}

    def gradient(batch: jax.Array) -> tuple[Any, jax.Array]:
        return {"w": batch}, batch[0].astype(jnp.float32)

    grads, largest = accumulate_gradients(gradient, params, batches, jnp.maximum)
    assert grads["w"].dtype == jnp.float32
    assert (float(grads["w"][0]), float(largest)) == (259.0, 256.0)


@pytest.mark.parametrize("micro_batch", [8, 2])
def test_an_update_holds_one_forward_and_backward_pass(micro_batch: int) -> None:
    """Also with several micro-batches: the gradient is traced and lowered once."""
    graphdef, params = nnx.split(abstract_policy(STEP_MODEL))
    optimizer = make_optimizer(OptimizerConfig(), 2)
    step = make_sft_step(graphdef, optimizer, SPECIALS, SftWeights(1.0, 1.0, 1.0), 0.0, micro_batch)
    state = jax.eval_shape(partial(new_state, optimizer=optimizer), params)
    key = jax.eval_shape(lambda: jax.random.key(0))
    text = step.lower(state, random_rows(8), key).as_text()
    assert text.count("stablehlo.dot_general") == products_of_one_pass(graphdef, params)


def products_of_one_pass(graphdef: Any, params: Any) -> int:
    rows = random_rows(2)

    def loss(params: Any) -> jax.Array:
        return token_logps(nnx.merge(graphdef, params), rows, SPECIALS, PLAIN).logp_BN.sum()

    text = jax.jit(jax.value_and_grad(loss)).lower(params).as_text()
    return text.count("stablehlo.dot_general")
