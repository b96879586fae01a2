"""Lazy access to the tensors of a checkpoint: safetensors or pickled, one file or shards.

Opening reads names, shapes and dtypes only. `Tensor.read` gives a view of the memory-mapped
file, so nothing is copied before a slice of it is taken. The header is parsed here because
`safetensors.safe_open` copies what it reads and cannot name a tensor that is stored twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import read_json, read_json_object

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

_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class Tensor:
    """One stored tensor: its shape, its dtype as the file calls it, and how to read it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    load: Callable[[], np.ndarray]

    def read(self) -> np.ndarray:
        """The stored values, read-only, in the stored dtype; InputError if that is unknown."""
        if self.dtype not in STORED_DTYPES:
            known = ", ".join(STORED_DTYPES)
            raise InputError(
                f"{self.file}: tensor {self.name} has dtype {self.dtype}; known are {known}"
            )
        return self.load()


def has_model_type(directory: Path, model_type: str) -> bool:
    """Whether the directory's config.json names this kind of model; False if there is none."""
    try:
        data = read_json(directory / "config.json")
    except InputError:
        return False
    return isinstance(data, dict) and data.get("model_type") == model_type


def open_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint directory by name.

    Raises InputError if there are no weights, if a file is missing, truncated or corrupt, if
    one tensor is stored twice, or if an index names a tensor that its file does not hold.
    """
    first = next((directory / n for n in WEIGHT_FILES if (directory / n).is_file()), None)
    if first is None:
        raise InputError(f"no weights in {directory}: looked for {', '.join(WEIGHT_FILES)}")
    index = _read_index(first) if first.suffix == ".json" else {}
    files = sorted({directory / name for name in index.values()}) if index else [first]
    if missing := [file.name for file in files if not file.is_file()]:
        raise InputError(f"{first} names shards that are missing: {', '.join(missing)}")
    tensors: dict[str, Tensor] = {}
    for file in files:
        read = _read_safetensors if file.suffix == ".safetensors" else _read_pickle
        for tensor in read(file):
            if tensor.name in tensors:
                other = tensors[tensor.name].file
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
    if not index or not all(isinstance(n, str) and Path(n).name == n for n in names):
        raise InputError(
            f"{path} is not a readable index of shards: its weight_map is not a map of files"
        )
    return index


def _read_safetensors(file: Path) -> Iterator[Tensor]:
    """Format: 8 bytes little-endian header length, JSON header, data."""
    try:
        size = file.stat().st_size
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise InputError(f"{file} is truncated or no safetensors file: {size} bytes")
            header = json.loads(stream.read(length), object_pairs_hook=_no_doubles(file))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file} is corrupt: its header is not JSON") from error
    start, available = 8 + length, size - 8 - length
    data = np.memmap(file, np.uint8, "r", start) if available else np.empty(0, np.uint8)
    end_of_all = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
            begin, end = (int(n) for n in entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{file} is corrupt: bad entry for tensor {name}") from error
        if end > available:
            raise InputError(
                f"{file} is truncated: tensor {name} ends at byte {start + end} of {size}"
            )
        wanted = (
            math.prod(shape) * np.dtype(STORED_DTYPES[dtype]).itemsize
            if dtype in STORED_DTYPES
            else None
        )
        if not 0 <= begin <= end or min(shape, default=0) < 0 or wanted not in (None, end - begin):
            raise InputError(f"{file} is corrupt: bad extent of tensor {name}")
        end_of_all = max(end_of_all, end)
        yield Tensor(name, shape, dtype, file, _view(data, begin, end, dtype, shape))
    if end_of_all != available:
        raise InputError(f"{file} is corrupt: {available - end_of_all} bytes belong to no tensor")


def _view(
    data: np.ndarray, begin: int, end: int, dtype: str, shape: tuple[int, ...]
) -> Callable[[], np.ndarray]:
    return lambda: data[begin:end].view(STORED_DTYPES[dtype]).reshape(shape)


def _no_doubles(file: Path) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """A JSON object hook that refuses a key given twice."""

    def hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) != len(names):
            double = next(name for name in names if names.count(name) > 1)
            raise InputError(f"tensor {double} is stored twice in {file}")
        return dict(pairs)

    return hook


def _read_pickle(file: Path, section: str | None = None) -> Iterator[Tensor]:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"reading {file.name} needs torch: pip install 'gotr1_jax[convert]'"
        ) from error
    try:
        state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # zip, pickle and torch errors share no base class
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{file} is truncated or corrupt: {reason}") from error
    if section is not None:
        if not isinstance(state, dict) or section not in state:
            raise InputError(f"{file} is another kind of file: it holds no {section}")
        state = state[section]
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise InputError(f"{file} holds no state dictionary of tensors")
    torch_names = {np.dtype(kind).name: code for code, kind in STORED_DTYPES.items()}
    for name, tensor in state.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        dtype = torch_names.get(kind, kind)
        yield Tensor(name, tuple(tensor.shape), dtype, file, _from_torch(tensor))


def _from_torch(tensor: Any) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        if tensor.element_size() == 2 and str(tensor.dtype) == "torch.bfloat16":
            import torch

            return tensor.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.detach().numpy()

    return load
