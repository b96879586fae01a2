"""Parameter trees from and to the tensors of a checkpoint, for any model with a table of rules.

    tensors = open_tensors(directory)
    graphdef, state = nnx.split(abstract_module)
    unused = check_tensors(tensors, tree_shapes("judge", state), naming, str(directory))
    params = load_tree("judge", state, naming, tensors, jnp.bfloat16)

"judge" is the name of the tree: every `Rule.path` of its table begins with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gotr1_jax.convert.copying import copy_into, empty_aligned
from gotr1_jax.convert.folders import describe_names
from gotr1_jax.convert.reader import FLOAT_DTYPES, Tensor
from gotr1_jax.convert.rules import Naming, Shape, Source, expected_tensors, sources
from gotr1_jax.convert.shared_load import is_shared, read_rows, stored_rows
from gotr1_jax.convert.writer import OutTensor
from gotr1_jax.errors import InputError
from gotr1_jax.io.storage import check_unchanged

_LARGE, _PIECES = 1 << 24, 8  # bytes of an array that several threads copy, and in how many pieces
_SHOWN = 4  # names in an error message, per kind of fault


def tree_leaves(tree: str, state: Any) -> Iterator[tuple[str, Any]]:
    """(dotted path with the tree's name in front, leaf) of a state's arrays, in its order."""
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(state):
        yield dotted(tree, key_path), leaf


def tree_shapes(tree: str, state: Any) -> dict[str, Shape]:
    """Shapes of a state's arrays (abstract ones too) by their dotted paths."""
    return {path: tuple(leaf.shape) for path, leaf in tree_leaves(tree, state)}


def dotted(tree: str, key_path: Sequence[Any]) -> str:
    """ "policy.decoder.layers.q.kernel" of a leaf's key path in a state."""
    names: list[str] = [tree]
    for key in key_path:
        if isinstance(key, jax.tree_util.DictKey):
            names.append(str(key.key))
    return ".".join(names)


def check_tensors(
    tensors: Mapping[str, Tensor],
    leaves: Mapping[str, Shape],
    naming: Naming,
    where: str,
    sizes: str = "its config.json",
) -> tuple[str, ...]:
    """Compares names, shapes and dtypes with what `leaves` need; returns the known unused names.

    Nothing is read. `where` names the directory in messages, `sizes` what the shapes come from.
    Raises InputError, one line, that names unknown, missing and misshapen tensors, both shapes
    and the file.
    """
    expected = expected_tensors(leaves, naming)
    skipped = tuple(sorted(name for name in tensors if naming.unused.match(name)))
    unknown = [
        f"{name} (in {tensors[name].file.name})"
        for name in sorted(set(tensors) - set(expected) - set(skipped))
    ]
    missing = [
        f"{name} {list(shape)}" for name, shape in sorted(expected.items()) if name not in tensors
    ]
    wrong = [
        f"{name} is {list(tensors[name].shape)}, expected {list(shape)} "
        f"(in {tensors[name].file.name})"
        for name, shape in sorted(expected.items())
        if name in tensors and tensors[name].shape != shape
    ]
    faults = [
        f"{len(names)} {kind}: {first_few(names)}"
        for kind, names in (("unknown", unknown), ("missing", missing), ("misshapen", wrong))
        if names
    ]
    if faults:
        hint = f"; {kind}" if (kind := describe_names(list(tensors))) else ""
        raise InputError(f"the tensors in {where} do not fit {sizes}: {'; '.join(faults)}{hint}")
    for name in expected:
        if tensors[name].dtype not in FLOAT_DTYPES:
            raise InputError(
                f"{tensors[name].file}: tensor {name} has dtype {tensors[name].dtype}; "
                f"known are {', '.join(FLOAT_DTYPES)}"
            )
    return skipped


def check_tied_head(head: Tensor, embed: Tensor, where: Path) -> None:
    """InputError for a stored head that is not the embedding, though config.json ties them.

    It would be left out silently. Both are compared piece by piece.
    """
    same = head.shape == embed.shape and {head.dtype, embed.dtype} <= set(FLOAT_DTYPES)
    if same:
        one, other = head.read(), embed.read()
        rows = max(1, _LARGE // max(1, one[:1].nbytes))
        starts = range(0, len(one), rows)
        same = all(_equal(one[i : i + rows], other[i : i + rows]) for i in starts)
    if not same:
        raise InputError(
            f"{where}: {head.name} differs from {embed.name}, but config.json says "
            "tie_word_embeddings true, which would leave it out: set it to false to use the "
            "stored head, or remove the tensor"
        )


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether values are equal; of different dtypes as the coarser one rounds them."""
    if one.dtype == other.dtype:
        return bool(np.array_equal(one, other))
    coarse = min(one.dtype, other.dtype, key=lambda kind: kind.itemsize)
    return bool(np.array_equal(one.astype(coarse), other.astype(coarse)))


def check_state(tree: str, state: Any, expected: Any) -> None:
    """That a state to be written has exactly the arrays of the abstract state `expected`."""
    given, needed = tree_shapes(tree, state), tree_shapes(tree, expected)
    faults = [f"{path} is missing" for path in needed if path not in given]
    faults += [f"{path} is not part of a checkpoint" for path in given if path not in needed]
    faults += [
        f"{path} is {list(shape)}, expected {list(needed[path])}"
        for path, shape in given.items()
        if path in needed and shape != needed[path]
    ]
    if faults:
        raise InputError(f"the {tree} parameters do not fit the configuration: {first_few(faults)}")


def load_tree(
    tree: str,
    state: Any,
    naming: Naming,
    tensors: Mapping[str, Tensor],
    dtype: Any,
    shardings: Any = None,
    share: bool = False,
) -> Any:
    """The arrays of the abstract `state` from checked tensors, in `dtype`, one after another.

    Args:
      tree: name of the tree, with which its rules begin.
      state: pytree of shapes.
      naming: rules of the checkpoint.
      tensors: the stored tensors by name.
      dtype: of the arrays.
      shardings: pytree like `state`; each device then reads its own slices only. Without it
        arrays lie on the default device.
      share: where devices belong to several processes, each of these reads a share of the rows;
        `shared_load.exchange` must follow.

    RunError where a file in a bucket was replaced while it was read in parts.
    """
    others = () if shardings is None else (shardings,)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "load") as pool:

        def load(key_path: Any, leaf: Any, sharding: Any = None) -> Any:
            shape = tuple(leaf.shape)
            places = sources(dotted(tree, key_path), shape, naming)
            if share and is_shared(sharding):
                rows = read_rows(places, shape, tensors, dtype, sharding, pool)
                if rows is not None:
                    return rows
            return _load_leaf(places, shape, tensors, dtype, sharding, pool)

        loaded = jax.tree.map_with_path(load, state, *others)
    for folder in {tensor.file.parent for tensor in tensors.values()}:
        check_unchanged(folder)
    return loaded


def _load_leaf(
    places: Sequence[Source],
    shape: Shape,
    tensors: Mapping[str, Tensor],
    dtype: Any,
    sharding: jax.sharding.Sharding | None,
    pool: Executor,
) -> jax.Array:
    """One parameter of `shape` from its sources, in `dtype`, on its shards."""
    stacked = places[0].layer is not None

    def fetch(index: tuple[slice, ...]) -> np.ndarray:
        size = [len(range(*cut.indices(length))) for cut, length in zip(index, shape)]
        out = empty_aligned(size, dtype)
        if not stacked:
            view = model_view(places[0], tensors)[index]
            rows = max(1, -(-len(view) // _PIECES)) if view.nbytes > _LARGE else max(1, len(view))
            starts = range(0, len(view), rows)
            list(pool.map(lambda i: copy_into(out[i : i + rows], view[i : i + rows]), starts))
            return out

        def copy_layer(row: int, source: Source) -> None:
            copy_into(out[row], model_view(source, tensors)[index[1:]])

        chosen = places[index[0]]
        list(pool.map(copy_layer, range(len(chosen)), chosen))
        return out

    whole = (slice(None),) * len(shape)
    if sharding is not None:
        return jax.make_array_from_callback(
            shape, sharding, lambda index: fetch(whole if index is None else index)
        )
    # No other reference to this memory exists, so a CPU device may use it without a copy.
    # jnp.array would compile.
    return jax.device_put(fetch(whole), may_alias=True)


def model_view(source: Source, tensors: Mapping[str, Tensor]) -> np.ndarray:
    """A view of the stored values in the model's layout and the stored dtype; nothing is copied."""
    array = stored_rows(source, tensors)
    return array if source.axes is None else array.transpose(source.axes)


def checkpoint_tensors(states: Mapping[str, Any], naming: Naming) -> list[OutTensor]:
    """The tensors to be stored for `states` (by tree name), sorted; values are fetched lazily."""
    pieces: dict[str, list[tuple[Source, Any]]] = {}
    for tree, state in states.items():
        for path, leaf in tree_leaves(tree, state):
            for source in sources(path, tuple(leaf.shape), naming):
                pieces.setdefault(source.name, []).append((source, leaf))
    return [
        OutTensor(name, group[0][0].shape, partial(_stored_values, group))
        for name, group in sorted(pieces.items())
    ]


def first_few(names: Sequence[str]) -> str:
    """The first few names of a list that may be long."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def join_pieces(pieces: Sequence[tuple[Source, np.ndarray]]) -> np.ndarray:
    """One stored tensor from the parameters (of one layer each) that it is made of."""
    arrays = [
        array if source.axes is None else array.transpose(np.argsort(source.axes))
        for source, array in sorted(pieces, key=lambda piece: piece[0].third or 0)
    ]
    whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=0)
    return whole[None] if pieces[0][0].leading_one else whole


def _stored_values(group: list[tuple[Source, Any]]) -> np.ndarray:
    """The values of one stored tensor from the parameters that it is made of."""
    return join_pieces(
        [(s, np.asarray(leaf if s.layer is None else leaf[s.layer])) for s, leaf in group]
    )
