"""Random weights of any model, made on its devices by one cheap program.

Initialisers draw every array by a cipher, which takes long to compile for hundreds of arrays, and
several times their memory. Here an integer hash of each element's place is enough.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gotr1_jax.parallel.sharding import shardings_of


def random_weights(shapes: Any, deviations: Mapping[str, float] | None = None) -> Any:
    """Arrays for a state of shapes that know their places.

    Scales are 1 and biases 0; kernels have the standard deviation fan_in ** -0.5, tables 0.02,
    others 1. deviations: instead, of arrays whose path holds a text.
    """

    def make() -> Any:
        return jax.tree.map_with_path(partial(_array, deviations or {}), shapes)

    made = jax.jit(make, out_shardings=shardings_of(shapes))()
    return jax.block_until_ready(made)


def _array(deviations: Mapping[str, float], path: Any, x: Any) -> jax.Array:
    name = jax.tree_util.keystr(path)
    own = next((size for text, size in deviations.items() if text in name), None)
    size = _deviation(name, x.shape) if own is None else own
    if size is None or "bias" in name:
        return jnp.full(x.shape, 0.0 if "bias" in name else 1.0, x.dtype)
    seed = zlib.crc32(name.encode())
    return (size * math.sqrt(3) * uniform(x.shape, seed)).astype(x.dtype)


def _deviation(name: str, shape: tuple[int, ...]) -> float | None:
    """None: all ones."""
    if "scale" in name:
        return None
    if "table" in name:
        return 0.02
    if len(shape) < 2:
        return 1.0
    # A stack of matrices has the layers in front, a convolution the places of its window.
    fan_in = shape[-2] if len(shape) <= 3 else math.prod(shape[:-1])
    return fan_in**-0.5


def uniform(shape: tuple[int, ...], seed: int) -> jax.Array:
    """float32 in [-1, 1): MurmurHash3's finalizer of each element's number."""
    word: Callable[[int], jax.Array] = partial(jnp.asarray, dtype=jnp.uint32)
    bits = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        place = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        bits = bits + place * word(stride % 2**32)
        stride *= shape[axis]
    bits = bits * word(0x9E3779B1) + word(seed)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> word(shift))) * word(factor)
    bits = bits ^ (bits >> word(16))
    return bits.astype(jnp.float32) * 2.0**-31 - 1.0
