"""The policy of a job: loaded from a checkpoint, split into what is trained and what is not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.convert.checkpoint import Checkpoint, load_checkpoint
from gotr1_jax.convert.find import find_checkpoint
from gotr1_jax.convert.open_checkpoint import read_sizes
from gotr1_jax.grpo.config import PolicyConfig
from gotr1_jax.models.config import JanusConfig
from gotr1_jax.models.janus import JanusPolicy, abstract_policy
from gotr1_jax.models.lora import split_lora
from gotr1_jax.parallel.processes import raise_on_all_processes
from gotr1_jax.parallel.sharding import placed_shapes, shardings_of, state_shardings


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
        make = partial(jax.tree.map, jnp.zeros_like if self.has_adapters else jnp.copy)
        return jax.jit(make, out_shardings=shardings_of(self.trained))(self.trained)


def load_policy(config: PolicyConfig, seed: int, mesh: Mesh) -> tuple[SplitPolicy, Checkpoint]:
    """Load `config.init` onto the mesh; adapters are new, drawn from `seed`.

    Each device gets its own slices only; of several processes each reads a share of the files.

    Returns the split policy and the checkpoint with its VQ tokenizer alone. Every process calls it.
    Raises InputError.
    """
    with raise_on_all_processes():
        path = find_checkpoint(config.init)
        sizes = read_sizes(path)
        shapes = policy_shapes(config, sizes, mesh)
        stored = shapes.frozen if shapes.has_adapters else shapes.trained
        checkpoint = load_checkpoint(
            path, parts=("policy", "vq"), dtype=jnp.dtype(config.param_dtype),
            shardings={"policy": shardings_of(stored)},
        )  # fmt: skip
    checkpoint = checkpoint.exchanged()
    loaded = checkpoint.policy
    checkpoint = replace(checkpoint, policy=None)
    if not shapes.has_adapters:
        return replace(shapes, trained=loaded), checkpoint

    def draw(key: jax.Array) -> nnx.State:
        # Only the adapters are returned, so the compiler drops the rest of the model.
        policy = JanusPolicy(sizes, rngs=nnx.Rngs(params=key), **_settings(config))
        return split_lora(policy)[1]

    trained = jax.jit(draw, out_shardings=shardings_of(shapes.trained))(jax.random.key(seed))
    return replace(shapes, trained=trained, frozen=loaded), checkpoint


def policy_shapes(config: PolicyConfig, sizes: JanusConfig, mesh: Mesh) -> SplitPolicy:
    """What `load_policy` loads as shapes that know their places; nothing is allocated."""
    abstract = abstract_policy(sizes, **_settings(config))
    if config.lora is None:
        graphdef, rest = nnx.split(abstract)
        trained = placed_shapes(rest, state_shardings(rest, mesh))
        return SplitPolicy(graphdef, trained, nnx.State({}), False)
    graphdef, adapters, rest = split_lora(abstract)
    trained, frozen = (placed_shapes(x, state_shardings(x, mesh)) for x in (adapters, rest))
    return SplitPolicy(graphdef, trained, frozen, True)


def _settings(config: PolicyConfig) -> dict[str, Any]:
    """How the module is built."""
    return {
        "lora": config.lora,
        "dtype": jnp.dtype(config.dtype),
        "param_dtype": jnp.dtype(config.param_dtype),
        "remat": config.remat,
    }
