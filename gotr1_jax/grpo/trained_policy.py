"""The policy of a finished run as it was trained: its base, with the adapters beside the weights.

RUN/model holds their sum, rounded to the dtype of its files; sampling it in bfloat16 rounds it
again. Where the run's last checkpoint is still there, its adapters are used unmerged instead.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.convert.checkpoint import Checkpoint, load_checkpoint
from gotr1_jax.convert.find import run_of_model
from gotr1_jax.convert.tree import dotted
from gotr1_jax.errors import InputError, RunError
from gotr1_jax.grpo.config import PolicyConfig
from gotr1_jax.grpo.policy import SplitPolicy, load_policy
from gotr1_jax.grpo.run_weights import RunWeights, grpo_config, read_weights_of_model
from gotr1_jax.models.janus import abstract_policy
from gotr1_jax.models.lora import split_lora


def find_adapters(source: Path) -> RunWeights | None:
    """The adapters behind the model of a finished run, with their settings and base, or None.

    Args:
      source: checkpoint directory; RUN/model is that of a run.

    Prints a line where a run with adapters has lost its checkpoint or its base.
    """
    folder = run_of_model(source)
    if folder is None:
        return None
    config = grpo_config(folder)
    if config is None or config.policy.lora is None:
        return None
    try:
        return read_weights_of_model(folder)
    except (InputError, RunError) as error:
        print(f"{source} is used with its adapters merged: {error}", file=sys.stderr)
        return None


def fill_adapters(adapters: Any, weights: RunWeights) -> Any:
    """The arrays in place of a state of adapters (arrays, or shapes with shardings)."""

    def one(path: Any, x: Any) -> Any:
        return jax.device_put(weights.arrays[dotted("policy", path)], x.sharding)

    return jax.tree_util.tree_map_with_path(one, adapters)


def policy_with_adapters(found: RunWeights, dtype: str) -> tuple[nnx.GraphDef, nnx.State]:
    """The policy on one device, split, its adapters unmerged; activations are in `dtype`."""
    param_dtype = jnp.dtype(found.dtype)
    loaded = load_checkpoint(found.base, parts=("policy",), dtype=param_dtype)
    policy = abstract_policy(
        loaded.config, lora=found.lora, dtype=jnp.dtype(dtype), param_dtype=param_dtype
    )
    adapters = split_lora(policy)[1]
    return nnx.split(policy)[0], nnx.merge_state(fill_adapters(adapters, found), loaded.policy)


def load_trained_policy(
    config: PolicyConfig, source: Path, mesh: Mesh
) -> tuple[SplitPolicy, Checkpoint]:
    """`load_policy` of a checkpoint directory, with the adapters of its run (`find_adapters`).

    config: dtypes; that of the weights is the run's where it has adapters.
    """
    found = find_adapters(source)
    if found is None:
        return load_policy(replace(config, init=str(source), lora=None), 0, mesh)
    policy, checkpoint = load_policy(replace(found.config.policy, dtype=config.dtype), 0, mesh)
    return replace(policy, trained=fill_adapters(policy.trained, found)), checkpoint
