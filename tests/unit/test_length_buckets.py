"""Rows padded to the length of their micro-batch: the same update, in less space."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from tiny import SPECIALS, STEP_MODEL, host, random_rows

from gotr1_jax.models.janus import JanusPolicy
from gotr1_jax.parallel.mesh import make_mesh
from gotr1_jax.parallel.placement import put_rows, train_state_shardings
from gotr1_jax.sampler.token_batch import TokenBatch, packed_source
from gotr1_jax.sft.losses import SftWeights
from gotr1_jax.sft.update import make_sft_step
from gotr1_jax.trainer.config import OptimizerConfig
from gotr1_jax.trainer.length_buckets import context_lengths, length_order, reorder
from gotr1_jax.trainer.optimizer import make_optimizer
from gotr1_jax.trainer.state import new_state, split_micro_batches

OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=0.01, schedule="constant"), 4)


def test_lengths_by_hand() -> None:
    assert context_lengths(80, 3) == (40, 60, 80)
    assert context_lengths(129, 4) == (57, 81, 105, 129)
    assert context_lengths(80, 1) == (80,)
    # More buckets than lengths: each length once.
    assert context_lengths(3, 8) == (2, 3)


def packed_ids(rows: TokenBatch) -> np.ndarray:
    parts = [rows.prompt_ids_BC, rows.plan_ids_BT, 100 + rows.image_ids_BU[:, :-1]]
    return np.take_along_axis(np.concatenate(parts, axis=1), packed_source(rows), axis=1)


def test_micro_batches_hold_rows_of_like_length() -> None:
    rows = random_rows(8)
    parts = split_micro_batches(reorder(rows, length_order(rows, 4)), 4)
    lengths = np.asarray(parts.context_len_B)
    np.testing.assert_array_equal(lengths.reshape(-1), np.sort(rows.context_len_B))
    # Rows stay whole: nothing but padding is lost by cutting at the longest.
    for i, longest in enumerate(lengths.max(axis=1).tolist()):
        part = host(jax.tree.map(lambda x, i=i: x[i], parts))
        cut = part.cut(longest)
        assert cut.plan_ids_BT.shape[1] == min(longest, 5)
        whole, shorter = packed_ids(part), packed_ids(cut)
        assert shorter.shape[1] == whole.shape[1] - (10 - longest)
        for long, short, length in zip(whole, shorter, lengths[i] + 8):
            np.testing.assert_array_equal(short[:length], long[:length])


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
    step = make(8, length_buckets=2)
    assert "stablehlo.case" in step.lower(state, put_rows(rows, mesh), key).as_text()
    state, values = step(state, put_rows(rows, mesh), key)
    near = partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6)
    jax.tree.map(near, values, metrics)
    # AdamW's first step is the sign of the gradient: compare the first moments instead.
    jax.tree.map(near, state.opt_state[1][0].mu, expected.opt_state[1][0].mu)
