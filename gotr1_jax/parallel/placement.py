"""Batches and train states on the mesh: placement, selection, gathering."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from gotr1_jax.errors import InputError
from gotr1_jax.parallel.mesh import put_global, replicated, row_multiple, row_sharding
from gotr1_jax.parallel.processes import is_main_process
from gotr1_jax.parallel.sharding import shardings_of, state_shardings


def check_rows(count: int, mesh: Mesh, what: str) -> None:
    """Raise InputError unless `count` rows divide over the mesh's row axes."""
    multiple = row_multiple(mesh)
    if count % multiple:
        raise InputError(
            f"{what} is {count}, which does not divide over the mesh's {multiple} row shards "
            "(mesh.data x mesh.fsdp); use a multiple or a smaller mesh"
        )


def put_rows(tree: Any, mesh: Mesh) -> Any:
    """Put host arrays (B, ...), the same in every process, on the mesh, sharded by rows."""
    return jax.tree.map(lambda x: put_global(np.asarray(x), row_sharding(mesh)), tree)


def put_addressable_rows(tree: Any, count: int, mesh: Mesh) -> Any:
    """As `put_rows`, but each process passes only its `addressable_rows` of `count` rows."""
    put = partial(jax.make_array_from_process_local_data, row_sharding(mesh))
    return jax.tree.map(lambda x: put(x, (count, *x.shape[1:])), tree)


def move_to_mesh(tree: Any, shardings: Any) -> Any:
    """The arrays of a tree in other places, which may be on other devices of the same processes.

    Of several processes each gets one array after the other whole first. Every process calls it.
    """

    def one(x: jax.Array, sharding: NamedSharding) -> jax.Array:
        if x.sharding == sharding:
            return x
        if x.is_fully_addressable and sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        assert isinstance(x.sharding, NamedSharding) and isinstance(x.sharding.mesh, Mesh)
        whole = jax.jit(_same, out_shardings=replicated(x.sharding.mesh))(x)
        here = whole.addressable_shards[0].data
        places = sharding.addressable_devices_indices_map(x.shape)
        parts = [jax.device_put(here[index], device) for device, index in places.items()]
        return jax.make_array_from_single_device_arrays(x.shape, sharding, parts)

    return jax.tree.map(one, tree, shardings)


def move_rows(tree: Any, mesh: Mesh) -> Any:
    """Arrays (B, ...) sharded by rows over another mesh; see `move_to_mesh`."""
    return move_to_mesh(tree, jax.tree.map(lambda _: row_sharding(mesh), tree))


def _same(x: jax.Array) -> jax.Array:
    return x


def take_on_mesh(tree: Any, index: np.ndarray) -> Any:
    """Rows `index` of arrays (B, ...), with the same sharding; devices exchange rows as needed."""
    return _in_same_sharding(_take, tree, index)


def concatenate_on_mesh(trees: Sequence[Any]) -> Any:
    """The rows of all trees, concatenated, with the sharding of the first."""
    return _in_same_sharding(_concatenate, *trees)


def _in_same_sharding(change: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    return jax.jit(change, out_shardings=shardings_of(tree))(tree, *rest)


def _take(tree: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda x: x[index], tree)


def _concatenate(*trees: Any) -> Any:
    return jax.tree.map(lambda *x: jnp.concatenate(x), *trees)


def train_state_shardings(abstract: Any, params: Any, mesh: Mesh) -> Any:
    """Shardings of a train state: each optimizer moment has the sharding of its parameter.

    `abstract` has the state's shapes. A leaf belongs to a parameter if its path ends with the
    parameter's path; other leaves are replicated.
    """
    by_path = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state_shardings(params, mesh))
    }

    def place(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        for parameter, sharding in by_path.items():
            if name.endswith(parameter):
                return sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, abstract)


def gather_to_main(tree: Any) -> Any:
    """The arrays of a tree as numpy arrays in process 0; None in the others.

    Every process calls it. Arrays are gathered on the devices one at a time.
    """

    def fetch(x: jax.Array) -> np.ndarray | None:
        if x.is_fully_addressable:
            return np.asarray(x)
        gathered = multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(gathered) if is_main_process() else None

    return jax.tree.map(fetch, tree)
