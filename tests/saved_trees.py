"""Trees that tests of checkpoints save, and what they do to the files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import jax
import jax.numpy as jnp

from gotr1_jax.trainer.checkpoint import Checkpoints

META = {"seed": 7, "iterator": b"\x00\xffstate", "counters": {"skipped": 2}, "list": [1, 2.5]}


def make_tree(value: float = 0.0):
    return {
        "params": {"w": (jnp.arange(12.0).reshape(3, 4) + value).astype(jnp.bfloat16)},
        "opt": (jnp.int32(3), {"mu": jnp.full(5, value), "nothing": None}, []),
    }


def save_steps(directory: Path, *steps: int, keep: int = 3) -> Checkpoints:
    checkpoints = Checkpoints(directory, keep)
    for step in steps:
        checkpoints.save(step, make_tree(float(step)), META)
    checkpoints.close()
    return checkpoints


def same(a, b) -> bool:
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b))
    return all(x.dtype == y.dtype and bool(jnp.array_equal(x, y)) for x, y in pairs)


def data_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("state/**/d/*")) if path.is_file()]


def no_space(*_arguments: object, **_named: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
