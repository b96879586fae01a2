"""Compiled programs on a mesh of eight devices: their collectives, read from the HLO text."""

from __future__ import annotations

import math
import re
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from tiny import SHAPES, SPECIALS, STEP_MODEL, random_rows, write_shapes

from gotr1_jax.aot.hlo import collectives
from gotr1_jax.convert.checkpoint import load_checkpoint
from gotr1_jax.decoding.config import LogpConfig
from gotr1_jax.grpo.config import PolicyConfig
from gotr1_jax.grpo.losses import PolicyLossConfig
from gotr1_jax.grpo.per_modality import PerModality
from gotr1_jax.grpo.policy import load_policy
from gotr1_jax.grpo.update import PolicyBatch, make_policy_step
from gotr1_jax.models.config import LoraConfig
from gotr1_jax.models.janus import JanusPolicy
from gotr1_jax.models.lora import split_lora
from gotr1_jax.parallel.mesh import make_mesh
from gotr1_jax.parallel.placement import put_rows, train_state_shardings
from gotr1_jax.parallel.sharding import placed_shapes, state_shardings
from gotr1_jax.sampler.config import SamplerConfig
from gotr1_jax.sampler.sampler import Rollout, Sampler
from gotr1_jax.trainer.config import OptimizerConfig
from gotr1_jax.trainer.optimizer import make_optimizer
from gotr1_jax.trainer.state import TrainState, new_state

B = 8
LORA = LoraConfig(4, 4.0, ("q", "v", "down"))
SETTINGS = LogpConfig("guided", 2.0)
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=0.05, schedule="constant"), 10)


@cache
def mesh_of(data: int, fsdp: int, tensor: int) -> Mesh:
    return make_mesh(data, fsdp, tensor)


def split(lora: bool, dtype: str = "float32", remat: str = "none") -> tuple[Any, Any, Any]:
    """graphdef, trained parameters and the rest of a policy with random parameters."""
    policy = JanusPolicy(
        STEP_MODEL, rngs=nnx.Rngs(0), lora=LORA if lora else None, dtype=jnp.dtype(dtype),
        remat=remat,
    )  # fmt: skip
    if lora:
        return split_lora(policy)
    return (*nnx.split(policy), nnx.State({}))


def state_of(params: Any, mesh: Mesh) -> tuple[TrainState, Any]:
    """A state on the mesh, and its shardings."""
    init = partial(new_state, optimizer=OPTIMIZER)
    places = train_state_shardings(jax.eval_shape(init, params), params, mesh)
    return jax.jit(init, out_shardings=places)(params), places


def batch_on(mesh: Mesh) -> PolicyBatch:
    rows = random_rows(B)
    plan_logp_BT, image_logp_BU = (
        np.zeros(ids.shape, np.float32) for ids in (rows.plan_ids_BT, rows.image_ids_BU)
    )
    advantages_B = np.random.default_rng(0).standard_normal(B, np.float32)
    return PolicyBatch(
        rollout=put_rows(Rollout(rows, plan_logp_BT, image_logp_BU, SETTINGS), mesh),
        old_logp_BN=None,
        ref_logp_BN=None,
        advantages=put_rows(PerModality(advantages_B, advantages_B), mesh),
        row_mask_B=put_rows(np.ones(B, bool), mesh),
    )


def step_of(graphdef: Any, micro: int = 4) -> Any:
    loss = PolicyLossConfig(max_tokens=5)
    return make_policy_step(graphdef, OPTIMIZER, SPECIALS, SETTINGS, loss, micro)


def groups(text: str) -> list[tuple[int, ...]]:
    """Shapes of the results of a program's all-gathers, on one device."""
    found = re.findall(r"= (.*?) all-gather(?:-start)?\(", text)
    shapes = [s for line in found for s in re.findall(r"\[([\d,]+)\]", line)]
    return [tuple(map(int, shape.split(","))) for shape in shapes]


@pytest.mark.parametrize("lora", [False, True])
def test_an_update_gathers_no_stack_and_replicates_no_optimizer(lora: bool) -> None:
    mesh = mesh_of(2, 2, 2)
    graphdef, params, rest = split(lora)
    state, places = state_of(params, mesh)
    frozen = jax.device_put(rest, state_shardings(rest, mesh))
    compiled = step_of(graphdef).lower(state, frozen, batch_on(mesh)).compile()

    stacks = {
        tuple(x.shape)
        for tree in (params, rest)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
        if "layers" in jax.tree_util.keystr(path) and x.ndim == 3
    }
    assert stacks
    shapes = groups(compiled.as_text())
    assert shapes, "parameters over `fsdp` have to be gathered, layer by layer"
    assert not stacks & set(shapes)

    # Moments have the shardings of their parameters, before and after.
    after = compiled.output_shardings[0]
    for found in (places, after):
        leaves = jax.tree.leaves(found.opt_state)
        moments = [
            (x, place)
            for x, place in zip(jax.tree.leaves(state.opt_state), leaves, strict=True)
            if x.ndim >= 2
        ]
        assert len(moments) == 2 * len([x for x in jax.tree.leaves(params) if x.ndim >= 2])
        for x, place in moments:
            assert not place.is_fully_replicated, x.shape
    held = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(state.opt_state))
    whole = sum(x.size for x in jax.tree.leaves(state.opt_state))
    assert held < 0.55 * whole


def test_decode_weights_are_gathered_over_fsdp_only() -> None:
    # Without `fsdp` both tables of rules give layers the same sharding: only the text and image
    # embeddings, which decoding holds whole, are sent, and the inputs of the latter.
    text, layers = prepare_program(mesh_of(4, 1, 2))
    sent = collectives(text)
    D, V, I = STEP_MODEL.decoder.hidden_size, STEP_MODEL.decoder.vocab_size, STEP_MODEL.image_vocab
    assert 0 < sum(traffic.bytes for traffic in sent.values()) <= 4 * D * (V + 2 * I)
    assert layers and not layers & set(groups(text))
    # With it each layer's weights are gathered once.
    text, layers = prepare_program(mesh_of(2, 2, 2))
    assert sum(traffic.bytes for traffic in collectives(text).values()) > 4 * D * (V + 2 * I)


def prepare_program(mesh: Mesh) -> tuple[str, set[tuple[int, ...]]]:
    """The program of `Sampler.prepare`, and the shapes of the layers' weights in its result."""
    graphdef, adapters, rest = split(lora=True)
    whole = nnx.merge_state(adapters, rest)
    merged = nnx.split(nnx.merge(graphdef, adapters, rest))[0]
    sampler = Sampler(merged, STEP_MODEL, SPECIALS, SamplerConfig(max_plan_tokens=4), mesh)
    shapes = placed_shapes(whole, state_shardings(whole, mesh))
    program, made = sampler.prepare_program(shapes)
    layers = {x.shape for x in jax.tree.leaves(made.layers) if x.ndim > 1}
    return program.lower(shapes).compile().as_text(), layers


def test_master_weights_are_float32_under_bfloat16_activations() -> None:
    mesh = mesh_of(1, 4, 2)
    graphdef, params, rest = split(lora=False, dtype="bfloat16", remat="full")
    state, _ = state_of(params, mesh)
    before = jax.tree.map(np.array, state.params)
    step = step_of(graphdef, micro=8)
    lowered = step.lower(state, rest, batch_on(mesh))
    # The layers' products read bfloat16: no weight of one is multiplied as it is stored.
    products = re.findall(r"dot_general .*-> tensor<.*x(\w+)>", lowered.as_text())
    assert products.count("bf16") > len(products) / 2
    state, metrics = lowered.compile()(state, rest, batch_on(mesh))
    assert int(state.updates) == 1 and np.isfinite(float(metrics.loss))
    moved = jax.tree.map(lambda a, b: float(np.abs(a - np.asarray(b)).max()), before, state.params)
    for path, x in jax.tree_util.tree_leaves_with_path(state.params):
        assert x.dtype == jnp.float32, path
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim >= 1]
    assert all(x.dtype == jnp.float32 for x in moments)
    # Adam's step of 0.05 is far finer than bfloat16 holds of weights of about 1.
    assert 0 < max(jax.tree.leaves(moved)) < 0.051


def test_a_policy_is_loaded_into_its_shards(tmp_path: Path) -> None:
    config = PolicyConfig(init=str(write_shapes(tmp_path / "checkpoint")), lora=LORA)
    others = jax.live_arrays()  # of other tests; held, so that no id is given again
    before = {id(x) for x in others}
    policy, checkpoint = load_policy(config, 0, mesh_of(1, 4, 2))
    assert checkpoint.policy is None
    table = (SHAPES.decoder.vocab_size, SHAPES.decoder.hidden_size)
    for x in jax.live_arrays():
        assert id(x) in before or x.shape != table or len(x.devices()) == 8
    held = [math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(policy.frozen)]
    # Image embeddings and the head are split over one of the two axes.
    assert sum(held) < 0.16 * sum(x.size for x in jax.tree.leaves(policy.frozen))
    alone = load_checkpoint(config.init, parts=("policy",)).policy
    jax.tree.map(np.testing.assert_array_equal, policy.frozen, alone)
