"""Logical axis names of parameters -> mesh axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gotr1_jax.errors import InputError
from gotr1_jax.parallel.mesh import ROWS

# Parameters are sharded over `fsdp` along the model width and over `tensor` along the rest.
PARAMETER_RULES: dict[str, str | None] = {
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    # Hidden width of an output head; its other axis is sharded.
    "head_mlp": None,
    # Vision towers: small, with sizes that few mesh axes divide.
    "patch": None,
    "vision_mlp": None,
    "vocab": "tensor",
    "image_vocab": "tensor",
    "lora_rank": None,
    "code": None,
}

# Decode weights: not sharded over `fsdp`, because a gather at every token would cost more than the
# token. They are gathered once per rollout.
DECODE_RULES: dict[str, str | None] = PARAMETER_RULES | {"embed": None}


def partition_spec(
    axes: tuple[str | None, ...],
    shape: tuple[int, ...],
    rules: Mapping[str, str | None],
    mesh: Mesh,
) -> PartitionSpec:
    """The PartitionSpec of one array.

    An extra leading dimension is the stack of layers; a dimension named None is not sharded.
    Raises InputError for an unknown name, a mesh axis used twice, and a size that does not divide.
    """
    if len(shape) == len(axes) + 1:
        axes = ("layers", *axes)
    if len(shape) != len(axes):
        raise InputError(f"axes {axes} do not fit the shape {shape}")
    spec: list[str | None] = []
    for name, size in zip(axes, shape):
        if name is None:
            spec.append(None)
            continue
        if name not in rules:
            raise InputError(f"no sharding rule for the axis {name!r}; rules: {sorted(rules)}")
        target = rules[name]
        if target is not None and target in spec:
            raise InputError(f"axes {axes} would use the mesh axis {target!r} twice")
        if target is not None and size % mesh.shape[target]:
            raise InputError(
                f"axis {name!r} of size {size} does not divide over mesh axis {target!r} "
                f"of size {mesh.shape[target]}"
            )
        spec.append(target)
    return PartitionSpec(*spec)


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Shardings of an NNX state (concrete or abstract) by PARAMETER_RULES: the same tree."""

    def one(variable: nnx.Variable) -> nnx.Variable:
        axes = variable.get_metadata().get("axes")
        shape = tuple(variable.get_value().shape)
        if axes is None:
            return variable.replace(NamedSharding(mesh, PartitionSpec()))
        spec = partition_spec(axes, shape, PARAMETER_RULES, mesh)
        return variable.replace(NamedSharding(mesh, spec))

    return jax.tree.map(one, state, is_leaf=lambda x: isinstance(x, nnx.Variable))


def constrain_rows(x: jax.Array, width: str | None = None) -> jax.Array:
    """Constrain x (B, ...) inside a jit to be sharded by rows only, or its last axis by `width`.

    Otherwise the compiler shards activations like parameters and reduces them over the mesh at
    every product instead of gathering the layer's weights. No effect outside of a jit, without a
    mesh, or if the rows do not divide.
    """
    mesh = jax.typeof(x).sharding.mesh if isinstance(x, jax.core.Tracer) else None
    if mesh is None or not {"data", "fsdp"} <= set(mesh.axis_names):
        return x
    if x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    spec = ROWS
    if width is not None and x.shape[-1] % mesh.shape[width] == 0:
        spec = PartitionSpec(ROWS[0], *[None] * (x.ndim - 2), width)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def placed_shapes(shapes: Any, shardings: Any) -> Any:
    """Add shardings to a tree of shapes and dtypes; both trees have the same structure."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def shardings_of(tree: Any) -> Any:
    """Shardings of the arrays of a tree."""
    return jax.tree.map(lambda x: x.sharding, tree)
