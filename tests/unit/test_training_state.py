"""Schedules and guarded updates by hand; policy steps alone, in micro_batches, on a mesh."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny import SPECIALS, STEP_MODEL, assert_equal_trees, host, random_rows

from gotr1_jax.decoding.config import LogpConfig
from gotr1_jax.grpo.losses import PolicyLossConfig
from gotr1_jax.grpo.per_modality import PerModality
from gotr1_jax.grpo.update import PolicyBatch, make_policy_step, make_token_logps
from gotr1_jax.models.config import LoraConfig
from gotr1_jax.models.janus import JanusPolicy, abstract_policy
from gotr1_jax.models.lora import merge_lora, split_lora
from gotr1_jax.parallel.mesh import make_mesh
from gotr1_jax.parallel.placement import put_rows, train_state_shardings
from gotr1_jax.parallel.sharding import state_shardings
from gotr1_jax.sampler.sampler import Rollout
from gotr1_jax.trainer.config import OptimizerConfig
from gotr1_jax.trainer.logprobs import token_logps
from gotr1_jax.trainer.optimizer import make_optimizer, make_schedule
from gotr1_jax.trainer.state import (
    TrainState,
    accumulate_gradients,
    apply_gradients,
    new_state,
    split_micro_batches,
)

B = 8
SETTINGS = LogpConfig("guided", 2.0, 0.9, 1.1)
LOSS = PolicyLossConfig(kind="dapo", text_weight=0.5)
LORA = LoraConfig(rank=2, alpha=4.0, targets=("q", "v", "down"))
# Differences of parameters are then differences of gradients: Adam would blow up their rounding.
SGD = optax.sgd(1e-3, momentum=0.9)


@cache
def graphdef_of(lora: LoraConfig | None = None) -> Any:
    return nnx.split(abstract_policy(STEP_MODEL, lora=lora))[0]


@cache
def parameters() -> Any:
    """Host copy of the parameters of a policy without adapters."""
    draw = jax.jit(lambda key: nnx.split(JanusPolicy(STEP_MODEL, rngs=nnx.Rngs(params=key)))[1])
    return host(draw(jax.random.key(0)))


def fresh(optimizer: Any = SGD) -> TrainState:
    return jax.jit(partial(new_state, optimizer=optimizer))(parameters())


@cache
def step_of(micro: int) -> Any:
    return make_policy_step(graphdef_of(), SGD, SPECIALS, SETTINGS, LOSS, micro)


@cache
def scorer(micro: int) -> Any:
    return make_token_logps(graphdef_of(), SPECIALS, SETTINGS, micro)


@cache
def logps_of(micro: int) -> Any:
    return host(scorer(micro)(parameters(), nnx.State({}), random_rows(B)))


def batch_of(advantages: Any = None) -> PolicyBatch:
    if advantages is None:
        advantages = np.random.default_rng(0).standard_normal(B)
    rows = random_rows(B)
    T = rows.plan_ids_BT.shape[1]
    logp_BN = logps_of(4).logp_BN
    return PolicyBatch(
        rollout=Rollout(rows, logp_BN[:, :T], logp_BN[:, T:], SETTINGS),
        old_logp_BN=None,
        ref_logp_BN=None,
        advantages=PerModality(*[np.asarray(advantages, np.float32)] * 2),
        row_mask_B=np.arange(B) < B - 1,
    )


def near(one: Any, two: Any, atol: float = 1e-5) -> None:
    jax.tree.map(partial(np.testing.assert_allclose, atol=atol, rtol=1e-5), host(one), host(two))


# Schedules.


def test_warm_up_and_cosine():
    config = OptimizerConfig(learning_rate=0.8, warmup_steps=4, final_fraction=0.25)
    rate = make_schedule(config, 12)
    # 1/4, 2/4, 3/4, 4/4 of the rate, then eight steps from it down to a quarter of it.
    np.testing.assert_allclose([rate(i) for i in range(4)], [0.2, 0.4, 0.6, 0.8], atol=1e-6)
    assert float(rate(4)) == pytest.approx(0.8)
    assert float(rate(8)) == pytest.approx(0.8 * (0.25 + 0.75 / 2))
    assert float(rate(6)) == pytest.approx(0.8 * (0.25 + 0.75 * (1 + math.cos(math.pi / 4)) / 2))
    assert float(rate(12)) == pytest.approx(0.2)
    assert float(rate(50)) == pytest.approx(0.2)


def test_constant_and_one_step_of_warm_up():
    flat = make_schedule(OptimizerConfig(learning_rate=0.5, schedule="constant"), 10)
    assert [float(flat(i)) for i in (0, 5, 99)] == [0.5] * 3
    risen = make_schedule(
        OptimizerConfig(learning_rate=0.5, schedule="constant", warmup_steps=2), 10
    )
    assert [float(risen(i)) for i in (0, 1, 2, 9)] == [0.25, 0.5, 0.5, 0.5]
    first = make_schedule(OptimizerConfig(learning_rate=0.5, warmup_steps=1), 2)
    assert float(first(0)) == pytest.approx(0.5)


def test_gradients_are_clipped_to_the_norm():
    # Adam's first step does not depend on the scale, but its moment does: (1 - b1) * clipped.
    config = OptimizerConfig(learning_rate=0.1, schedule="constant", clip_norm=0.5)
    optimizer = make_optimizer(config, 1)
    state = new_state({"w": jnp.zeros(2)}, optimizer)
    grads = {"w": jnp.asarray([3.0, 4.0])}
    state, norm = apply_gradients(state, grads, jnp.zeros(()), optimizer)
    assert float(norm) == pytest.approx(5.0)
    moment = [x for x in jax.tree.leaves(state.opt_state) if x.shape == (2,)][0]
    np.testing.assert_allclose(moment, [0.1 * 0.3, 0.1 * 0.4], atol=1e-7)
    np.testing.assert_allclose(state.params["w"], [-0.1, -0.1], atol=1e-5)


# Guarded updates.


@pytest.mark.parametrize(
    "gradient, loss", [(math.nan, 0.0), (math.inf, 0.0), (1.0, math.nan), (1.0, math.inf)]
)
def test_updates_that_are_not_finite_change_nothing(gradient: float, loss: float):
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1), 10)
    params = {"a": jnp.asarray([1.0, -2.0]), "b": jnp.asarray(0.5, jnp.bfloat16)}
    update = jax.jit(partial(apply_gradients, optimizer=optimizer))
    good = {"a": jnp.asarray([0.1, 0.2]), "b": jnp.asarray(-1.0, jnp.bfloat16)}
    state, _ = update(new_state(params, optimizer), good, jnp.asarray(1.0))
    bad = {"a": jnp.asarray([0.1, gradient]), "b": good["b"]}
    after = state
    for count in (1, 2):
        after, _ = update(after, bad, jnp.asarray(loss))
        assert_equal_trees(after.params, state.params)
        assert_equal_trees(after.opt_state, state.opt_state)
        counts = (int(after.updates), int(after.skipped), int(after.skipped_in_a_row))
        assert counts == (1, count, count)
    after, _ = update(after, good, jnp.asarray(1.0))
    assert (int(after.updates), int(after.skipped), int(after.skipped_in_a_row)) == (2, 2, 0)
    # As if the bad ones had never been.
    straight, _ = update(state, good, jnp.asarray(1.0))
    assert_equal_trees(after.params, straight.params)


def test_a_broken_row_is_skipped_by_the_whole_step():
    advantages = np.ones(B)
    advantages[2] = np.nan
    state = fresh()
    before = host(state)
    state, result = step_of(4)(state, nnx.State({}), batch_of(advantages))
    assert not np.isfinite(float(result.grad_norm))
    assert_equal_trees(host(state.params), before.params)
    assert_equal_trees(host(state.opt_state), before.opt_state)
    assert (int(state.updates), int(state.skipped)) == (0, 1)


# Micro-batches.


def test_micro_batches_are_strided():
    batches = split_micro_batches({"x": jnp.arange(6), "y": jnp.arange(12).reshape(6, 2)}, 3)
    np.testing.assert_array_equal(batches["x"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(batches["y"][1], [[2, 3], [8, 9]])


def test_accumulates_over_micro_batches():
    def gradient(batch: Any) -> tuple[Any, Any]:
        return {"g": batch.sum()}, batch.max()

    like = {"g": jnp.zeros(())}
    for count in (3, 1):
        batches = split_micro_batches(jnp.arange(6.0), count)
        grads, largest = accumulate_gradients(gradient, like, batches, jnp.maximum)
        assert (float(grads["g"]), float(largest)) == (15.0, 5.0)


# Policy steps.


@cache
def stepped() -> tuple[TrainState, Any]:
    """State and metrics after one step in two micro_batches on one device."""
    state, metrics = step_of(4)(fresh(), nnx.State({}), batch_of())
    return host(state), host(metrics)


def test_before_an_update_the_ratio_is_one():
    _, metrics = stepped()
    assert np.isfinite(metrics.loss) and metrics.grad_norm > 0
    ratio, clipped = metrics.stats.ratio_max, metrics.stats.clip_frac
    assert ratio.text == ratio.image == 1.0 and clipped.text == clipped.image == 0.0
    # Teacher forcing in a program of its own gives the same values.
    assert metrics.logp_diff.text < 1e-5 and metrics.logp_diff.image < 1e-5
    # With all ratios 1 the token mean is that of the advantages, by the tokens' weights.
    batch = batch_of()
    keep = np.asarray(batch.row_mask_B)
    tokens = 0.5 * np.asarray(batch.rollout.rows.plan_mask_BT).sum(1) + 9
    advantages = np.asarray(batch.advantages.text)
    wanted = -(tokens * advantages)[keep].sum() / tokens[keep].sum()
    assert metrics.loss == pytest.approx(wanted, abs=1e-5)


def test_micro_batches_add_up():
    state, metrics = step_of(2)(fresh(), nnx.State({}), batch_of())
    near(metrics, stepped()[1])
    near(state.params, stepped()[0].params)
    near(state.opt_state, stepped()[0].opt_state, atol=1e-4)


def test_rows_at_their_own_length_make_the_same_update():
    score = make_token_logps(graphdef_of(), SPECIALS, SETTINGS, 4, length_buckets=2)
    found = host(score(parameters(), nnx.State({}), random_rows(B)))
    near(found, logps_of(4))  # in the order of the rows
    step = make_policy_step(
        graphdef_of(), SGD, SPECIALS, SETTINGS, LOSS, 4, length_buckets=2
    )  # fmt: skip
    batch = replace(batch_of(), old_logp_BN=found.logp_BN)
    assert len(np.unique(batch.rollout.rows.context_len_B > 7)) == 2  # of two lengths
    assert "stablehlo.case" in step.lower(fresh(), nnx.State({}), batch).as_text()
    state, metrics = step(fresh(), nnx.State({}), batch)
    assert metrics.stats.ratio_max.text == metrics.stats.ratio_max.image == 1.0
    near(metrics, stepped()[1])
    near(state.params, stepped()[0].params)
    near(state.opt_state, stepped()[0].opt_state, atol=1e-4)


def test_on_a_mesh_as_on_one_device():
    mesh = make_mesh(2, 2, 2)
    params = parameters()
    init = partial(new_state, optimizer=SGD)
    shardings = train_state_shardings(jax.eval_shape(init, params), params, mesh)
    state = jax.jit(init, out_shardings=shardings)(
        jax.device_put(params, state_shardings(params, mesh))
    )
    state, metrics = step_of(4)(state, nnx.State({}), put_rows(batch_of(), mesh))
    near(metrics, stepped()[1])
    near(state.params, stepped()[0].params)
    # The momentum of a first step is its gradient, here of size 10.
    near(state.opt_state, stepped()[0].opt_state, atol=1e-4)
    # What went in sharded comes out in the same shards: the next step needs no other program.
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim), sharding


def test_one_update_makes_a_good_row_more_likely():
    batch = batch_of(np.arange(B) == 3)
    state, _ = step_of(4)(fresh(), nnx.State({}), batch)
    rollout = batch.rollout
    new = host(scorer(4)(state.params, nnx.State({}), rollout.rows)).logp_BN[3]
    T = rollout.rows.plan_ids_BT.shape[1]
    assert new[:T].sum() > rollout.plan_logp_BT[3].sum() + 1e-3
    assert new[T:].sum() > rollout.image_logp_BU[3].sum() + 1e-3


def test_logps_in_micro_batches_keep_the_order_of_rows():
    near(logps_of(2), logps_of(4))
    assert len(set(logps_of(4).logp_BN[:, -1].tolist())) == B


# Adapters.


def test_fresh_adapters_change_nothing_and_folding_equals_applying():
    draw = jax.jit(lambda: split_lora(JanusPolicy(STEP_MODEL, rngs=nnx.Rngs(0), lora=LORA))[1:])
    adapters, rest = draw()
    assert jax.tree.structure(rest) == jax.tree.structure(parameters())
    rows = random_rows(2)

    @partial(jax.jit, static_argnums=0)
    def score(lora: LoraConfig | None, *states: Any) -> Any:
        policy = nnx.merge(graphdef_of(lora), *states)
        return token_logps(policy, rows, SPECIALS, SETTINGS)

    @jax.jit
    def fold(adapters: Any, rest: Any) -> Any:
        return nnx.split(merge_lora(nnx.merge(graphdef_of(LORA), adapters, rest)))[1]

    plain = host(score(None, rest))
    assert_equal_trees(host(score(LORA, adapters, rest)), plain)
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), host(adapters))
    applied = host(score(LORA, drawn, rest))
    assert np.abs(applied.logp_BN - plain.logp_BN)[:, -9:].max() > 1e-2
    near(score(None, fold(drawn, rest)), applied, atol=1e-4)
    # Switched off: what a KL to the policy before training is taken against.
    off = jax.tree.map(np.zeros_like, drawn)
    assert_equal_trees(host(score(LORA, off, rest)), plain)
