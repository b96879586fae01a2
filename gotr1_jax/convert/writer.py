"""Writing checkpoint folders; safetensors files are written one tensor at a time.

`safetensors.numpy.save_file` wants all tensors of a file in memory at once, so the format (a JSON
header, then the bytes) is written here.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gotr1_jax.convert.find import CONFIG_FILE
from gotr1_jax.convert.reader import STORED_DTYPES
from gotr1_jax.errors import InputError
from gotr1_jax.io.files import atomic_folder, write_json

DTYPES = {"float32": "F32", "bfloat16": "BF16"}
"""Dtypes that can be asked for -> their names in safetensors."""
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_CHUNK = 32 << 20  # bytes that are cast and written at a time


@dataclass(frozen=True)
class OutTensor:
    """A tensor to be written.

    Attributes:
      name, shape: what the file says.
      get: fetches the values when they are written.
      dtype: how they are stored, as safetensors calls it.
    """

    name: str
    shape: tuple[int, ...]
    get: Callable[[], np.ndarray]
    dtype: str = "F32"

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * np.dtype(STORED_DTYPES[self.dtype]).itemsize


def dtype_code(dtype: str) -> str:
    """The name in safetensors of a dtype that a user asks for; InputError if not writable."""
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} cannot be written; choose {' or '.join(DTYPES)}")
    return DTYPES[dtype]


def write_safetensors(
    path: Path, tensors: Sequence[OutTensor], progress: Callable[[int], None] | None = None
) -> None:
    """Writes one file, tensors in their order; each is fetched, cast and written in its turn.

    `progress` is called with the bytes of each tensor when it is written. Raises OSError.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.size
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data starts at a multiple of 8 bytes
    with open(path, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            _write_values(stream, tensor)
            if progress is not None:
                progress(tensor.size)
        stream.flush()
        os.fsync(stream.fileno())


def _write_weights(
    directory: Path,
    tensors: Sequence[OutTensor],
    shard_size: int | None,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Writes model.safetensors, or shards with an index where all exceed `shard_size` bytes.

    A tensor larger than that has a shard of its own. Returns the number of files of weights.
    """
    total, done = sum(tensor.size for tensor in tensors), 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(done, total)

    shards = _shards(tensors, shard_size)
    if len(shards) == 1:
        write_safetensors(directory / WEIGHTS_FILE, tensors, count)
        return 1
    index: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(directory / name, shard, count)
        index |= {tensor.name: name for tensor in shard}
    write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": index})
    return len(shards)


def _shards(tensors: Sequence[OutTensor], shard_size: int | None) -> list[list[OutTensor]]:
    shards: list[list[OutTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shard_size is not None and shards[-1] and filled + tensor.size > shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.size
    return shards


def _write_values(stream: BinaryIO, tensor: OutTensor) -> None:
    """Casts and writes some rows at a time: a large tensor is never held twice."""
    values, kind = tensor.get(), np.dtype(STORED_DTYPES[tensor.dtype])
    if values.shape != tensor.shape:
        raise ValueError(f"{tensor.name}: {values.shape} is not {tensor.shape}")
    if not values.shape or not values.size:
        stream.write(values.astype(kind).tobytes())
        return
    rows = max(1, _CHUNK * len(values) // max(1, values.size * kind.itemsize))
    for start in range(0, len(values), rows):
        part = np.ascontiguousarray(values[start : start + rows], dtype=kind)
        stream.write(part.reshape(-1).view(np.uint8).data)


def copy_files(source: Path, names: Iterable[str], target: Path) -> None:
    """Copies those of the files `names` that the directory `source` has; OSError."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def write_checkpoint(
    target: Path,
    config: Mapping[str, Any],
    tensors: Iterable[OutTensor],
    *,
    write_files: Callable[[Path], object] | None = None,
    dtype: str | None = None,
    shard_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    check: Callable[[], object] | None = None,
) -> int:
    """Writes a checkpoint folder, which appears whole or not at all; returns its weight files.

    Args:
      target: the folder. An existing one is replaced if it holds a config.json or nothing.
      config: its config.json.
      tensors: its weights; they are written in the order of their names.
      write_files: puts the files that go with the weights into the folder that it is given.
      dtype: "float32" or "bfloat16" for all weights; None keeps what each tensor says.
      shard_size: bytes above which weights are split into shards; None keeps one file.
      progress: called with (bytes written, all bytes) after every tensor.
      check: called before the folder appears; nothing is written where it raises.

    Raises InputError for another dtype and for a target that holds something else; RunError if
    it cannot be written.
    """
    if dtype is not None:
        tensors = [replace(tensor, dtype=dtype_code(dtype)) for tensor in tensors]
    ordered = sorted(tensors, key=lambda tensor: tensor.name)
    with atomic_folder(target, CONFIG_FILE) as temporary:
        write_json(temporary / CONFIG_FILE, config)
        if write_files is not None:
            write_files(temporary)
        files = _write_weights(temporary, ordered, shard_size, progress)
        if check is not None:
            check()
        return files
