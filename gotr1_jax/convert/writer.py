"""Writing safetensors one tensor at a time, and directories that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from gotr1_jax.errors import InputError, RunError

DTYPES = {"float32": ("F32", np.dtype(np.float32)), "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16))}  # fmt: skip  # noqa: E501


@dataclass(frozen=True)
class OutTensor:
    """A tensor to be written: its name, its shape, and where its values come from when needed."""

    name: str
    shape: tuple[int, ...]
    get: Callable[[], np.ndarray]


def write_safetensors(path: Path, tensors: Sequence[OutTensor], dtype: str) -> None:
    """Writes `tensors`, cast to `dtype` ("float32" or "bfloat16"), each fetched when it is due."""
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} cannot be written; choose {' or '.join(DTYPES)}")
    code, kind = DTYPES[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + math.prod(tensor.shape) * kind.itemsize
        header[tensor.name] = {
            "dtype": code,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data starts at a multiple of 8 bytes
    with open(path, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            values = np.ascontiguousarray(tensor.get(), dtype=kind)
            if values.shape != tensor.shape:
                raise ValueError(f"{tensor.name}: {values.shape} is not {tensor.shape}")
            stream.write(values.reshape(-1).view(np.uint8).data)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def new_directory(target: Path, marker: str) -> Iterator[Path]:
    """A temporary directory beside `target` that takes its place when the block ends well.

    An existing `target` is replaced if it is empty or holds the file `marker`; any other is an
    InputError, because it is somebody's work. RunError if it cannot be written; a failed block
    leaves nothing behind.
    """
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; choose a directory")
    if target.is_dir() and any(target.iterdir()) and not (target / marker).is_file():
        raise InputError(f"{target} is not empty and holds no {marker}; choose another directory")
    temporary = target.with_name(f".{target.name}.tmp{os.getpid()}")
    old = target.with_name(f".{target.name}.old{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if target.exists():
            target.rename(old)
        temporary.rename(target)
    except OSError as error:
        if old.exists() and not target.exists():
            old.rename(target)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(f"disk full: {target} was not written; free some space") from error
        raise RunError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
