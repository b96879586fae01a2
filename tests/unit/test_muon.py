"""Muon: its steps against numpy, on a mesh, after a restart, and where it has nothing to train."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import STEP_MODEL, assert_equal_trees, host
from tiny_qwen import TINY_QWEN

from gotr1_jax.errors import ConfigError, InputError
from gotr1_jax.grpo.config import GrpoConfig, PolicyConfig
from gotr1_jax.judge_sft.config import JudgeSftConfig
from gotr1_jax.models.config import LoraConfig
from gotr1_jax.models.janus import JanusPolicy, abstract_policy
from gotr1_jax.models.lora import split_lora
from gotr1_jax.models.qwen_vl import abstract_qwen
from gotr1_jax.models.vq import abstract_vq
from gotr1_jax.parallel.mesh import make_mesh
from gotr1_jax.parallel.placement import train_state_shardings
from gotr1_jax.trainer.checkpoint import Checkpoints
from gotr1_jax.trainer.config import OptimizerConfig
from gotr1_jax.trainer.optimizer import hidden_matrices, make_optimizer
from gotr1_jax.trainer.state import TrainState, apply_gradients, new_state
from gotr1_jax.vq.config import VqTrainConfig

CONFIG = OptimizerConfig(
    kind="muon", learning_rate=0.01, muon_learning_rate=0.03, schedule="constant",
    weight_decay=0.1, clip_norm=1e9,
)  # fmt: skip
OPTIMIZER = make_optimizer(CONFIG, 9)
ABSTRACT = nnx.split(abstract_policy(STEP_MODEL))[1]


UPDATE = partial(apply_gradients, optimizer=OPTIMIZER)
JITTED = jax.jit(UPDATE)


@cache
def start(dtype: Any = jnp.float32) -> TrainState:
    @jax.jit
    def make() -> TrainState:
        policy = JanusPolicy(STEP_MODEL, rngs=nnx.Rngs(0), param_dtype=dtype)
        return new_state(nnx.split(policy)[1], OPTIMIZER)

    return make()


def gradients(step: int) -> Any:
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), ABSTRACT)


def after(state: TrainState, *steps: int, update: Any = JITTED) -> TrainState:
    for step in steps:
        state, _ = update(state, gradients(step), np.zeros((), np.float32))
    return state


def by_path(tree: Any) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"): np.asarray(x)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def orthogonalized(matrix: np.ndarray) -> np.ndarray:
    """Five quintic Newton-Schulz iterations, as the author of Muon gives them, in float64."""
    x = matrix.astype(np.float64)
    x = x / np.linalg.norm(x)
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    return x


def test_which_parameters_are_hidden_matrices() -> None:
    wanted = {path for path, is_hidden in by_path(hidden_matrices(ABSTRACT)).items() if is_hidden}
    layers = {
        f"decoder/layers/{name}/kernel" for name in ["q", "k", "v", "o", "gate", "up", "down"]
    }
    assert wanted == layers | {"gen_aligner/second/kernel", "gen_head/first/kernel"}


def test_the_vision_tower_of_a_judge_has_them_too() -> None:
    hidden = by_path(hidden_matrices(nnx.split(abstract_qwen(TINY_QWEN))[1]))
    others = {
        path.split("/")[-2] for path, wanted in hidden.items() if not wanted and "kernel" in path
    }
    assert any("vision" in path and is_hidden for path, is_hidden in hidden.items())
    assert others == {"lm_head", "patch"}


def test_two_steps_are_those_of_numpy() -> None:
    """Nesterov momentum without bias, one orthogonalisation a layer, decay at the own rate."""
    first, end = by_path(start().params), by_path(after(start(), 1, 2).params)
    g1, g2 = by_path(gradients(1)), by_path(gradients(2))
    hidden = by_path(hidden_matrices(ABSTRACT))
    for path in (path for path in first if hidden[path]):
        w = first[path].astype(np.float64)
        momentum = 0.95 * 0.05 * g1[path] + 0.05 * g2[path]
        second = 0.95 * momentum / (1 - 0.95**3) + 0.05 * g2[path] / (1 - 0.95**2)
        # On the first step the momentum is a multiple of the gradient.
        for direction in (g1[path], second):
            matrices = direction.reshape(-1, *direction.shape[-2:])
            step = np.stack([orthogonalized(m) for m in matrices]).reshape(direction.shape)
            step *= 0.2 * np.sqrt(max(direction.shape[-2:]))
            w = w - 0.03 * (step + 0.1 * w)
        np.testing.assert_allclose(end[path], w, atol=2e-6, err_msg=path)


def test_the_rest_takes_the_steps_of_adamw() -> None:
    """The first one is the rate times the sign of the gradient, and decay of output heads."""
    first, end, g = (
        by_path(start().params),
        by_path(after(start(), 1).params),
        by_path(gradients(1)),
    )
    for path, is_hidden in by_path(hidden_matrices(ABSTRACT)).items():
        decay = 0.1 if path.endswith("kernel") else 0.0
        expected = first[path] - 0.01 * (np.sign(g[path]) + decay * first[path])
        assert np.allclose(end[path], expected, atol=1e-6) != is_hidden, path


def test_a_mesh_of_eight_gives_the_same_and_keeps_its_shardings() -> None:
    mesh, state = make_mesh(2, 2, 2), start(jnp.bfloat16)
    places = train_state_shardings(state, state.params, mesh)
    update = jax.jit(UPDATE, out_shardings=(places, None))
    expected, state = after(state, 1), after(jax.device_put(state, places), 1, update=update)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), atol=5e-6, rtol=5e-6
        )
    # Momentum, both moments and masters are sharded as their parameters.
    held = [x for x in jax.tree.leaves(state.opt_state) if x.ndim >= 2]
    assert held and not any(x.sharding.is_fully_replicated for x in held)


def test_goes_on_from_a_checkpoint_to_the_bit(tmp_path: Path) -> None:
    state = after(start(), 1)
    with Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(1, state, {})
    with Checkpoints(tmp_path, 1) as checkpoints:
        restored = checkpoints.restore(jax.tree.map(np.zeros_like, state))
    assert_equal_trees(host(after(restored.tree, 2)), host(after(state, 2)))


def test_is_refused_where_it_has_nothing_to_train() -> None:
    lora = LoraConfig(rank=2, alpha=4.0, targets=("q",))
    _, adapters, _ = split_lora(abstract_policy(STEP_MODEL, lora=lora))
    for params in (adapters, nnx.split(abstract_vq(STEP_MODEL.vq))[1], {"w": jnp.ones((2, 2))}):
        with pytest.raises(InputError, match="no matrix of a layer is trained.*kind: adamw"):
            jax.eval_shape(OPTIMIZER.init, params)
    with pytest.raises(ConfigError, match=r"^optimizer.kind is muon.*adapters \(policy.lora\)"):
        GrpoConfig(run_dir="x", optimizer=CONFIG, policy=PolicyConfig(init="x", lora=lora))
    with pytest.raises(ConfigError, match=r"^optimizer.kind is muon.*adapters \(lora\)"):
        JudgeSftConfig(run_dir="x", optimizer=CONFIG, init="x", lora=lora)
    with pytest.raises(ConfigError, match="^optimizer.kind is muon.*convolutions"):
        VqTrainConfig(run_dir="x", model=STEP_MODEL.vq, optimizer=CONFIG)
