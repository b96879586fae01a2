"""The policy of a job: loaded from a checkpoint, split into what is trained and what is not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.convert.checkpoint import Checkpoint, load_checkpoint
from gotr1_jax.convert.config_json import parse_config
from gotr1_jax.convert.hub import CONFIG_FILE, EMBEDDED, find_checkpoint
from gotr1_jax.convert.opened import read_config
from gotr1_jax.models.janus import JanusPolicy, abstract_policy
from gotr1_jax.models.lora import fold_lora, split_lora
from gotr1_jax.parallel.sharding import state_shardings
from gotr1_jax.schema import PolicyConfig


@dataclass(frozen=True)
class SplitPolicy:
    """A policy as pure trees: `nnx.merge(graphdef, trained, frozen)` is the module.

    With adapters `trained` holds them alone and `frozen` the rest; without, `trained` is all and
    `frozen` is empty.
    """

    graphdef: Any
    trained: Any
    frozen: Any
    has_adapters: bool

    def whole(self, trained: Any) -> nnx.State:
        """One state of everything, with `trained` in its place."""
        return nnx.merge_state(trained, self.frozen)

    def reference(self) -> Any:
        """What stands for `trained` in the reference policy: adapters off, or a copy."""
        if not self.has_adapters:
            return jax.tree.map(jnp.copy, self.trained)
        return jax.tree.map(jnp.zeros_like, self.trained)


def checkpoint_path(init: str) -> Path:
    """The folder that `policy.init` names: "embedded", a directory, a run or a hub id."""
    return EMBEDDED if init == "embedded" else find_checkpoint(init)


def load_policy(config: PolicyConfig, seed: int, mesh: Mesh) -> tuple[SplitPolicy, Checkpoint]:
    """Load `config.init` onto the mesh; adapters are new, drawn from `seed`.

    Each device gets its own slices only, read from the files by its own process.

    Returns the split policy and the checkpoint with its VQ tokenizer alone. Raises InputError.
    """
    path = checkpoint_path(config.init)
    sizes = parse_config(read_config(path), str(path / CONFIG_FILE))[0]
    settings: dict[str, Any] = {
        "lora": config.lora,
        "dtype": jnp.dtype(config.dtype),
        "param_dtype": jnp.dtype(config.param_dtype),
        "remat": config.remat,
    }
    abstract = abstract_policy(sizes, **settings)
    graphdef, adapters, rest = split_lora(abstract)
    checkpoint = load_checkpoint(
        path, parts=("policy", "vq"), dtype=jnp.dtype(config.param_dtype),
        shardings={"policy": state_shardings(rest, mesh)},
    )  # fmt: skip
    loaded = checkpoint.policy
    checkpoint = replace(checkpoint, policy=None)
    if config.lora is None:
        return SplitPolicy(nnx.split(abstract)[0], loaded, nnx.State({}), False), checkpoint

    def draw(key: jax.Array) -> nnx.State:
        # Only the adapters are returned, so the compiler drops the rest of the model.
        return split_lora(JanusPolicy(sizes, rngs=nnx.Rngs(params=key), **settings))[1]

    place = state_shardings(adapters, mesh)
    trained = jax.jit(draw, out_shardings=place)(jax.random.key(seed))
    return SplitPolicy(graphdef, trained, loaded, True), checkpoint


def folded(policy: SplitPolicy, trained: Any) -> nnx.State:
    """The policy's parameters with its adapters added in: what a released checkpoint holds."""

    def fold(trained: Any, frozen: Any) -> nnx.State:
        return nnx.split(fold_lora(nnx.merge(policy.graphdef, trained, frozen)))[1]

    return jax.jit(fold)(trained, policy.frozen)
