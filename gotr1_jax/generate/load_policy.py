"""Loading the policy of a checkpoint or of a finished run, for sampling."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from gotr1_jax.convert.checkpoint import load_checkpoint
from gotr1_jax.convert.find import run_of_model


def load_policy_to_sample(source: Path, dtype: str) -> tuple[nnx.GraphDef, nnx.State]:
    """The policy of a checkpoint directory, split, with activations in `dtype`.

    Its weights are in `dtype` too, except those of a run with adapters
    (`grpo.trained_policy.find_adapters`), which are as in its training. Raises InputError.
    """
    if run_of_model(source) is not None:
        # Imported late: a checkpoint is loaded without the libraries of training.
        from gotr1_jax.grpo.trained_policy import find_adapters, policy_with_adapters

        adapters = find_adapters(source)
        if adapters is not None:
            return policy_with_adapters(adapters, dtype)
    loaded = load_checkpoint(source, parts=("policy",), dtype=jnp.dtype(dtype))
    return nnx.split(loaded.policy_module(loaded.dtype))[0], loaded.policy
