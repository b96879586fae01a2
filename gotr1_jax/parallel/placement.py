"""Putting batches and states onto the mesh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from gotr1_jax.errors import InputError
from gotr1_jax.parallel.mesh import put_global, replicated, row_multiple, row_sharding
from gotr1_jax.parallel.processes import is_main_process
from gotr1_jax.parallel.sharding import state_shardings


def check_rows(count: int, mesh: Mesh, what: str) -> None:
    """Raise InputError unless `count` rows divide over the mesh's row axes."""
    multiple = row_multiple(mesh)
    if count % multiple:
        raise InputError(
            f"{what} is {count}, which does not divide over the mesh's {multiple} row shards "
            "(mesh.data x mesh.fsdp); use a multiple or a smaller mesh"
        )


def put_rows(tree: Any, mesh: Mesh) -> Any:
    """Host arrays (B, ...) onto the mesh, rows split over its row axes.

    Every process gives the whole arrays.
    """
    return jax.tree.map(lambda x: put_global(np.asarray(x), row_sharding(mesh)), tree)


def put_addressable_rows(tree: Any, held: np.ndarray, count: int, mesh: Mesh) -> Any:
    """As `put_rows`, of arrays with only the rows `held` of `count`; see `addressable_rows`."""
    layout = row_sharding(mesh)

    def one(x: np.ndarray) -> jax.Array:
        def slice_of(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(count)
            first = int(np.searchsorted(held, start))
            return x[first : first + stop - start]

        return jax.make_array_from_callback((count, *x.shape[1:]), layout, slice_of)

    return jax.tree.map(one, tree)


def take_on_mesh(tree: Any, index: np.ndarray) -> Any:
    """Rows `index` of arrays (B, ...), laid out as they are; devices pass on what has to move."""
    return _laid_out_alike(_take, tree, index)


def concatenate_on_mesh(trees: Sequence[Any]) -> Any:
    """The rows of all trees, one after the other, laid out as those of the first."""
    return _laid_out_alike(_join, *trees)


def _laid_out_alike(change: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    layout = jax.tree.map(lambda x: x.sharding, tree)
    return jax.jit(change, out_shardings=layout)(tree, *rest)


def _take(tree: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda x: x[index], tree)


def _join(*trees: Any) -> Any:
    return jax.tree.map(lambda *x: jnp.concatenate(x), *trees)


def train_state_shardings(abstract: Any, params: Any, mesh: Mesh) -> Any:
    """Shardings of a train state: whatever mirrors `params` (moments) lies as they do.

    `abstract` is the state's shapes; leaves that match no parameter's path are replicated.
    """
    wanted = state_shardings(params, mesh)
    by_path = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(wanted)
    }

    def place(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        for own, sharding in by_path.items():
            if name.endswith(own):
                return sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, abstract)


def gather_to_main(tree: Any) -> Any:
    """The arrays of a tree as numpy arrays in process 0; None in the others.

    Every process calls it. One array after another goes whole through the devices.
    """

    def fetch(x: jax.Array) -> np.ndarray | None:
        if x.is_fully_addressable:
            return np.asarray(x)
        whole = multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(whole) if is_main_process() else None

    return jax.tree.map(fetch, tree)


def count_parameters(state: Any) -> int:
    """Number of scalars in a tree."""
    return sum(int(jnp.size(x)) for x in jax.tree.leaves(state))
