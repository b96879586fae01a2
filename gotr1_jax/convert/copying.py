"""Transposing copies, tile by tile.

Numpy copies a transposed view along whole rows, so every element comes from another cache line.
Tiles use all elements of a cache line while it is in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_TILE = (1024, 64)  # of the last two axes; measured best for 2 and for 4 bytes an element
_ALIGNMENT = 64  # bytes; JAX's CPU device needs it to use memory without a copy
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def empty_aligned(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An uninitialised array that a CPU device can use without a copy."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(kind).reshape(tuple(shape))


def copy_into(target: np.ndarray, view: np.ndarray) -> None:
    """target[...] = view, cast to target's dtype; `view` may be transposed."""
    if target.dtype == view.dtype:
        # Numpy copies bfloat16 slowly; integers of the same size are fast.
        bits = _UNSIGNED[target.dtype.itemsize]
        target, view = target.view(bits), view.view(bits)
    if view.ndim < 2 or view.flags.c_contiguous:
        target[...] = view
        return
    others = math.prod(view.shape[:-2])
    tall, wide = max(1, _TILE[0] // others), _TILE[1]
    for top in range(0, view.shape[-2], tall):
        for left in range(0, view.shape[-1], wide):
            tile = (..., slice(top, top + tall), slice(left, left + wide))
            if target.dtype == view.dtype:
                target[tile] = view[tile]
            else:
                # Cast in the order of memory first, then transpose.
                axes = np.argsort(view.strides, kind="stable")[::-1]
                packed = np.ascontiguousarray(view[tile].transpose(axes)).astype(target.dtype)
                target[tile] = packed.transpose(np.argsort(axes))
