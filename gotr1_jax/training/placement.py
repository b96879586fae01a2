"""Putting batches and states onto the mesh."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.data.pipeline import SftExampleBatch
from gotr1_jax.errors import InputError
from gotr1_jax.parallel.mesh import replicated, row_multiple, rows
from gotr1_jax.parallel.sharding import state_shardings
from gotr1_jax.sampling.rows import Rows


def check_rows(count: int, mesh: Mesh, what: str) -> None:
    """Raise InputError unless `count` rows divide over the mesh's row axes."""
    multiple = row_multiple(mesh)
    if count % multiple:
        raise InputError(
            f"{what} is {count}, which does not divide over the mesh's {multiple} row shards "
            "(mesh.data x mesh.fsdp); use a multiple or a smaller mesh"
        )


def put_rows(tree: Any, mesh: Mesh) -> Any:
    """Host arrays (B, ...) onto the mesh, rows split over its row axes."""
    return jax.tree.map(lambda x: jax.device_put(np.asarray(x), rows(mesh)), tree)


def to_rows(batch: SftExampleBatch, mesh: Mesh) -> Rows:
    """A batch of examples as rows on the mesh; every token of the plan is to be learned."""
    T = batch.plan_ids_BT.shape[1]
    mask_BT = np.arange(T)[None, :] < batch.plan_len_B[:, None]
    put = partial(put_rows, mesh=mesh)
    return Rows(
        prompt_ids_BC=put(batch.prompt_ids_BC),
        prompt_len_B=put(batch.prompt_len_B),
        plan_ids_BT=put(batch.plan_ids_BT),
        plan_len_B=put(batch.plan_len_B),
        plan_mask_BT=put(mask_BT),
        image_ids_BU=put(batch.image_ids_BU),
    )


def mirror_shardings(abstract: Any, params: Any, mesh: Mesh) -> Any:
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


def put_state(state: nnx.State, mesh: Mesh) -> nnx.State:
    """A parameter state onto the mesh by the sharding rules."""
    return jax.device_put(state, state_shardings(state, mesh))


def count_parameters(state: Any) -> int:
    """Number of scalars in a tree."""
    return sum(int(jnp.size(x)) for x in jax.tree.leaves(state))
