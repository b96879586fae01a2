"""Lazy access to the tensors of a checkpoint: safetensors or pickled, one file or shards.

Opening reads names, shapes and dtypes only. `Tensor.read` gives a view of the memory-mapped
file, so nothing is copied before a slice of it is taken (`safetensors.safe_open` copies what it
reads). Of a file in a bucket that is here in part (`io.storage.read_in_parts`), what is read is
fetched first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gotr1_jax.convert.folders import describe_weights
from gotr1_jax.convert.safetensors_file import Extent, read_extents
from gotr1_jax.convert.torch_file import read_state
from gotr1_jax.errors import InputError
from gotr1_jax.io.partial_file import PartialFile
from gotr1_jax.io.reading import read_json, read_json_object
from gotr1_jax.io.storage import partial_file

# The first that exists is read; an index names its shards.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

# Stored dtypes that weights may have, as safetensors calls them.
FLOAT_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}

# Dtypes that a tensor no parameter uses may have as well.
STORED_DTYPES: dict[str, Any] = {
    **FLOAT_DTYPES,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


# The name of a weight file in the folder of its index.
_SHARD_NAME = re.compile(r"[\w][\w. +=@-]{0,200}\.(safetensors|bin|pt|pth)")


@dataclass(frozen=True)
class Tensor:
    """One stored tensor: its shape, its dtype as the file calls it, and how to read it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    load: Callable[[int, int | None], np.ndarray]

    def read(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """The stored values, read-only, in the stored dtype; InputError if that is unknown.

        first, last: of the leading axis only these rows are read (and fetched).
        """
        if self.dtype not in STORED_DTYPES:
            known = ", ".join(STORED_DTYPES)
            raise InputError(
                f"{self.file}: tensor {self.name} has dtype {self.dtype}; known are {known}"
            )
        return self.load(first, last)


def model_type_of(directory: Path) -> str:
    """The kind of model that the directory's config.json names; empty if there is none."""
    try:
        data = read_json(directory / "config.json")
    except InputError:
        return ""
    kind = data.get("model_type") if isinstance(data, dict) else None
    return kind if isinstance(kind, str) else ""


def open_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint directory by name.

    Raises InputError if there are no weights or weights in another form, if a file is missing,
    truncated or corrupt, if one tensor is stored twice, if an index names a tensor that its file
    does not hold, and if an adapter lies beside the weights, which would be left out.
    """
    first = next((directory / n for n in WEIGHT_FILES if (directory / n).is_file()), None)
    other = describe_weights(directory, complete=first is not None)
    if first is None:
        looked = f"looked for {', '.join(WEIGHT_FILES)}"
        raise InputError(f"no weights in {directory}: {other or looked}")
    if other is not None:
        raise InputError(f"{directory} {other}")
    index = _read_index(first) if first.suffix == ".json" else {}
    files = sorted({directory / name for name in index.values()}) if index else [first]
    if missing := [file.name for file in files if not file.is_file()]:
        raise InputError(f"{first} names shards that are missing: {', '.join(missing)}")
    tensors: dict[str, Tensor] = {}
    for file in files:
        read = _read_safetensors if file.suffix == ".safetensors" else _read_pickle
        for tensor in read(file):
            if tensor.name in tensors:
                other = str(tensors[tensor.name].file)
                raise InputError(f"tensor {tensor.name} is stored twice: in {other} and in {file}")
            tensors[tensor.name] = tensor
    for name, shard in index.items():
        if name not in tensors or tensors[name].file.name != shard:
            raise InputError(f"{first} says that {shard} holds the tensor {name}; it does not")
    return tensors


def open_pickle(file: Path, section: str) -> dict[str, Tensor]:
    """The tensors of one file that torch saved, those under its key `section`, by name.

    Raises InputError if it is missing, truncated or corrupt, or has no such section.
    """
    return {tensor.name: tensor for tensor in _read_pickle(file, section)}


def _read_index(path: Path) -> dict[str, str]:
    index = read_json_object(path).get("weight_map")
    names = index.values() if isinstance(index, dict) else [None]
    # A name with a path in it could point anywhere on the machine.
    if not index or not all(isinstance(n, str) and _SHARD_NAME.fullmatch(n) for n in names):
        raise InputError(
            f"{path} is not a readable index of shards: its weight_map is not a map of files of "
            "the same folder"
        )
    return index


def _read_safetensors(file: Path) -> Iterator[Tensor]:
    start, extents = read_extents(file)
    size = max((extent.end for extent in extents), default=0)
    data = np.memmap(file, np.uint8, "r", start) if size else np.empty(0, np.uint8)
    part = partial_file(file)
    for extent in extents:
        load = partial(_view, data, extent, part, start)
        yield Tensor(extent.name, extent.shape, extent.dtype, file, load)


def _view(
    data: np.ndarray, extent: Extent, part: PartialFile | None, start: int,
    first: int, last: int | None,
) -> np.ndarray:  # fmt: skip
    """Rows of a tensor in mapped memory, which is a file's from byte `start` on."""
    begin, end, shape = extent.begin, extent.end, extent.shape
    if shape and shape[0]:
        row = (end - begin) // shape[0]
        rows = range(shape[0])[first:last]
        begin, end = begin + row * rows.start, begin + row * rows.stop
        shape = (len(rows), *shape[1:])
    if part is not None:
        part.ensure(start + begin, start + end)
    return data[begin:end].view(STORED_DTYPES[extent.dtype]).reshape(shape)


def _read_pickle(file: Path, section: str | None = None) -> Iterator[Tensor]:
    torch_names = {np.dtype(kind).name: code for code, kind in STORED_DTYPES.items()}
    for name, tensor in read_state(file, section).items():
        kind = str(tensor.dtype).removeprefix("torch.")
        dtype = torch_names.get(kind, kind)
        yield Tensor(name, tuple(tensor.shape), dtype, file, _from_torch(tensor))


def _from_torch(tensor: Any) -> Callable[[int, int | None], np.ndarray]:
    def load(first: int, last: int | None) -> np.ndarray:
        plain = tensor.detach().resolve_conj().resolve_neg()
        plain = plain[first:last] if plain.ndim else plain
        if str(plain.dtype) == "torch.bfloat16":
            import torch

            return plain.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return plain.numpy()

    return load
