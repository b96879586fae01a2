"""Loading by several processes: each reads its share of the bytes, and the devices exchange them.

What a device holds of a matrix is often a column of the stored one: kilobytes from each row, which
no bucket and no file system reads well. So a process reads whole rows instead, one part of them for
each of its devices, and a compiled program brings them into their layout and places.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gotr1_jax.convert.copying import copy_into, empty_aligned
from gotr1_jax.convert.reader import Tensor
from gotr1_jax.convert.rules import Shape, Source

# Bytes of a parameter from which on it is divided; smaller ones each process reads whole.
DIVIDED = 1 << 20


@dataclass(frozen=True)
class StoredRows:
    """A parameter as it is stored, its rows divided over the devices.

    Attributes:
      array: (layers, *stored shape), or without layers; divided along the stored leading axis.
      axes: of the array, in the order of the parameter's; None: the same.
      sharding: of the parameter.
    """

    array: jax.Array
    axes: Shape | None
    sharding: NamedSharding


def is_shared(sharding: Any) -> bool:
    """Whether the devices of a sharding belong to several processes."""
    return isinstance(sharding, NamedSharding) and not sharding.is_fully_addressable


def exchange(tree: Any) -> Any:
    """The parameters in their places, where leaves are `StoredRows`; every process calls it."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, StoredRows):
            return leaf
        move = jax.jit(partial(_transpose, axes=leaf.axes), out_shardings=leaf.sharding)
        return jax.block_until_ready(move(leaf.array))

    return jax.tree.map(one, tree)


def _transpose(x: jax.Array, axes: Shape | None) -> jax.Array:
    return x if axes is None else x.transpose(axes)


def read_rows(
    places: Sequence[Source], shape: Shape, tensors: Mapping[str, Tensor], dtype: Any,
    sharding: NamedSharding, pool: Executor,
) -> StoredRows | None:  # fmt: skip
    """This process's rows of a parameter of `shape`, in `dtype`; None: it is not divided.

    Waits for no other process.
    """
    stacked = places[0].layer is not None
    one = shape[1:] if stacked else shape
    order = places[0].axes or tuple(range(len(one)))
    stored = tuple(one[order.index(axis)] for axis in range(len(one)))
    if not stored or math.prod(shape) * np.dtype(dtype).itemsize < DIVIDED:
        return None
    mesh = sharding.mesh
    assert isinstance(mesh, Mesh)
    divided = _row_axes(stored[0], mesh)
    if not divided:
        return None
    lead = (len(places),) if stacked else ()
    whole = (*lead, *stored)
    spec = PartitionSpec(*(None for _ in lead), divided)
    read: dict[tuple[int, int], np.ndarray] = {}

    def fetch(index: tuple[slice, ...] | None) -> np.ndarray:
        cut = slice(None) if index is None else index[len(lead)]
        first, last, _ = cut.indices(stored[0])
        if (first, last) not in read:
            out = empty_aligned((len(places), last - first, *stored[1:]), dtype)

            def copy(row: int) -> None:
                copy_into(out[row], stored_rows(places[row], tensors, first, last))

            list(pool.map(copy, range(len(places))))
            read[first, last] = out if stacked else out[0]
        return read[first, last]

    array = jax.make_array_from_callback(whole, NamedSharding(mesh, spec), fetch)
    if places[0].axes is None:
        return StoredRows(array, None, sharding)
    axes = (0, *(axis + 1 for axis in order)) if stacked else order
    return StoredRows(array, axes, sharding)


def _row_axes(rows: int, mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes over which the most devices can divide so many rows."""
    names = mesh.axis_names
    choices = [c for n in range(len(names) + 1) for c in combinations(names, n)]
    size = {c: math.prod(mesh.shape[name] for name in c) for c in choices}
    fitting = [c for c in choices if rows % size[c] == 0]
    best = max(fitting, key=lambda c: size[c])
    return best if size[best] > 1 else ()


def stored_rows(
    source: Source, tensors: Mapping[str, Tensor], first: int = 0, last: int | None = None
) -> np.ndarray:
    """A view of rows of what is stored of a parameter, or of one layer: of its third, without an
    axis of length 1 in front."""
    tensor = tensors[source.name]
    if source.leading_one:
        return tensor.read()[0][first:last]
    if source.third is not None:
        size = tensor.shape[0] // 3
        rows = range(source.third * size, (source.third + 1) * size)[first:last]
        return tensor.read(rows.start, rows.stop)
    return tensor.read(first, last)
