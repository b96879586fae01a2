"""The policy of a finished run as it was trained: its base, with the adapters beside the weights.

RUN/model holds their sum, rounded to the dtype of its files; sampling it in bfloat16 rounds it
again. Where the run's last checkpoint is still there, its adapters are used unmerged instead.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.config import load_config
from gotr1_jax.convert.checkpoint import Checkpoint, load_checkpoint
from gotr1_jax.convert.find import run_of_model
from gotr1_jax.convert.tree import dotted
from gotr1_jax.errors import InputError, RunError
from gotr1_jax.grpo.config import GrpoConfig, PolicyConfig
from gotr1_jax.grpo.policy import SplitPolicy, load_policy
from gotr1_jax.grpo.run_weights import RunWeights, read_weights_of_model
from gotr1_jax.models.janus import abstract_policy
from gotr1_jax.models.lora import split_lora
from gotr1_jax.trainer.run_dir import RunDir


@dataclass(frozen=True)
class TrainedAdapters:
    """The adapters of a finished run, and the weights that they were trained beside.

    Attributes:
      weights: arrays, settings, and the directory of the base.
      config: of the run's policy.
    """

    weights: RunWeights
    config: PolicyConfig

    def fill(self, adapters: Any) -> Any:
        """The arrays in place of a state of adapters (arrays, or shapes with shardings)."""

        def one(path: Any, x: Any) -> Any:
            return jax.device_put(self.weights.arrays[dotted("policy", path)], x.sharding)

        return jax.tree_util.tree_map_with_path(one, adapters)


def find_adapters(source: Path) -> TrainedAdapters | None:
    """The adapters behind the model of a finished run, or None.

    Args:
      source: checkpoint directory; RUN/model is that of a run.

    Prints a line where a run with adapters has lost its checkpoint or its base.
    """
    folder = run_of_model(source)
    if folder is None:
        return None
    run = RunDir(folder)
    try:
        policy = load_config(GrpoConfig, run.config).policy
    except InputError:  # a run of another job
        return None
    if policy.lora is None:
        return None
    try:
        weights = read_weights_of_model(run.root)
    except (InputError, RunError) as error:
        print(f"{source} is used with its adapters merged: {error}", file=sys.stderr)
        return None
    return TrainedAdapters(weights, policy)


def policy_with_adapters(found: TrainedAdapters, dtype: str) -> tuple[nnx.GraphDef, nnx.State]:
    """The policy on one device, split, its adapters unmerged; activations are in `dtype`."""
    config, param_dtype = found.config, jnp.dtype(found.config.param_dtype)
    loaded = load_checkpoint(found.weights.base, parts=("policy",), dtype=param_dtype)
    policy = abstract_policy(
        loaded.config, lora=config.lora, dtype=jnp.dtype(dtype), param_dtype=param_dtype
    )
    adapters = split_lora(policy)[1]
    return nnx.split(policy)[0], nnx.merge_state(found.fill(adapters), loaded.policy)


def load_trained_policy(
    config: PolicyConfig, source: Path, mesh: Mesh
) -> tuple[SplitPolicy, Checkpoint]:
    """`load_policy` of a checkpoint directory, with the adapters of its run (`find_adapters`).

    config: dtypes; that of the weights is the run's where it has adapters.
    """
    found = find_adapters(source)
    if found is None:
        return load_policy(replace(config, init=str(source), lora=None), 0, mesh)
    policy, checkpoint = load_policy(replace(found.config, dtype=config.dtype), 0, mesh)
    return replace(policy, trained=found.fill(policy.trained)), checkpoint
