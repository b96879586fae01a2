"""Plans padded to the length of their micro-batch: the same update, in less space."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from tiny import SPECIALS, STEP_MODEL, random_rows

from gotr1_jax.models.janus import JanusPolicy
from gotr1_jax.parallel.mesh import make_mesh
from gotr1_jax.parallel.placement import put_rows, train_state_shardings
from gotr1_jax.sft.losses import SftWeights
from gotr1_jax.sft.update import cut_plans, group_by_length, make_sft_step, plan_widths
from gotr1_jax.trainer.config import OptimizerConfig
from gotr1_jax.trainer.optimizer import make_optimizer
from gotr1_jax.trainer.state import new_state, split_micro_batches

OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=0.01, schedule="constant"), 4)


def test_widths_by_hand() -> None:
    assert plan_widths(80, 4) == (20, 40, 60, 80)
    assert plan_widths(5, 2) == (3, 5)
    assert plan_widths(80, 1) == (80,)
    # More buckets than lengths: each length once.
    assert plan_widths(3, 8) == (1, 2, 3)


def test_micro_batches_hold_plans_of_like_length() -> None:
    rows = random_rows(8)
    parts = split_micro_batches(group_by_length(rows, 4), 4)
    lengths = np.asarray(parts.plan_len_B)
    np.testing.assert_array_equal(lengths.reshape(-1), np.sort(rows.plan_len_B))
    # Rows stay whole: BOI ends each plan, and nothing is lost by cutting at the longest.
    for i, length in enumerate(lengths):
        part = cut_plans(jax.tree.map(lambda x, i=i: x[i], parts), int(length.max()))
        ends = np.take_along_axis(part.plan_ids_BT, length[:, None] - 1, axis=1)
        assert (ends == SPECIALS.boi).all()


def test_an_update_is_the_same_but_for_rounding() -> None:
    """On a mesh of eight, with dropped captions, against one device and full length."""
    graphdef = nnx.split(nnx.eval_shape(lambda: JanusPolicy(STEP_MODEL, rngs=nnx.Rngs(0))))[0]

    @jax.jit
    def start() -> Any:
        return new_state(nnx.split(JanusPolicy(STEP_MODEL, rngs=nnx.Rngs(0)))[1], OPTIMIZER)

    make = partial(make_sft_step, graphdef, OPTIMIZER, SPECIALS, SftWeights(2.0, 1.0, 0.5), 0.3)
    key, rows = jax.random.key(0), random_rows(16)
    expected, metrics = make(8)(start(), rows, key)
    mesh, state = make_mesh(2, 2, 2), start()
    state = jax.device_put(state, train_state_shardings(state, state.params, mesh))
    step = make(8, plan_buckets=2)
    assert "stablehlo.case" in step.lower(state, put_rows(rows, mesh), key).as_text()
    state, values = step(state, put_rows(rows, mesh), key)
    near = partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6)
    jax.tree.map(near, values, metrics)
    # AdamW's first step is the sign of the gradient: compare the first moments instead.
    jax.tree.map(near, state.opt_state[1][0].mu, expected.opt_state[1][0].mu)
