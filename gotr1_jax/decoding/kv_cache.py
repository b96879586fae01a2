"""The KV cache: creation, writing of slots, growth, reading by attention, sharding.

Letters: K kv heads, g query heads per kv head, h head width, N rows of a cache, S slots of a cache.

A cache in int8 holds, for every row, head and slot, h integers of -127 to 127 and the float32 they
are multiplied by: the largest magnitude over 127. Attention reads the integers and multiplies the
scores by the keys' scales and the weights by the values', so that no float copy is in memory; only
the kernels of `models.flash`, which prefill uses, are given one of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gotr1_jax.decoding.config import CacheDtype
from gotr1_jax.models.config import DecoderConfig

# Of the arrays of each attribute of `KVCache`, in its order.
_SLOT_AXES = {"k_NKhS": 3, "v_NKSh": 2, "k_scale_NKS": 2, "v_scale_NKS": 2}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of a span of tokens, one array per layer.

    A step writes the same slot of all rows, or with `write_slots` of each row its own. Attention
    reads all slots, so callers mask unfilled ones.

    Attributes:
      k_NKhS: keys after rotary embedding; slots last, so that scores are a plain product.
      v_NKSh: values.
      k_scale_NKS, v_scale_NKS: of keys and values in int8; empty: they are floats.
    """

    k_NKhS: tuple[jax.Array, ...]
    v_NKSh: tuple[jax.Array, ...]
    k_scale_NKS: tuple[jax.Array, ...] = ()
    v_scale_NKS: tuple[jax.Array, ...] = ()

    @property
    def size(self) -> int:
        """Number of slots."""
        return self.v_NKSh[0].shape[2]

    @property
    def is_int8(self) -> bool:
        """Whether keys and values are integers with scales."""
        return bool(self.k_scale_NKS)

    def scores(self, layer: int, q_BKgh: jax.Array) -> jax.Array:
        """Products (B,K,g,S) of queries and keys, float32; each cache row serves B / N queries."""
        products = jnp.einsum(
            "nkxh,nkhs->nkxs",
            self._by_cache_row(q_BKgh),
            _as_stored(self.k_NKhS[layer]).astype(q_BKgh.dtype),
            preferred_element_type=jnp.float32,
        )
        if self.is_int8:
            products = products * self.k_scale_NKS[layer][:, :, None]
        return self._by_query_row(products, q_BKgh.shape)

    def values(self, layer: int, weights_BKgS: jax.Array) -> jax.Array:
        """Weighted sums (B,K,g,h) of values, float32; each cache row serves B / N rows of weights.

        The caller rounds once, after the sums over all caches are added.
        """
        weights = self._by_cache_row(weights_BKgS)
        if self.is_int8:
            scaled = weights.astype(jnp.float32) * self.v_scale_NKS[layer][:, :, None]
            weights = scaled.astype(weights.dtype)
        sums = jnp.einsum(
            "nkxs,nksh->nkxh",
            weights,
            _as_stored(self.v_NKSh[layer]).astype(weights.dtype),
            preferred_element_type=jnp.float32,
        )
        return self._by_query_row(sums, weights_BKgS.shape)

    def as_floats(self, layer: int, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
        """Keys and values (N,S,K,h) of a layer, for attention over whole rows."""
        k, v = self.k_NKhS[layer], self.v_NKSh[layer]
        if self.is_int8:
            k = k * self.k_scale_NKS[layer][:, :, None]
            v = v * self.v_scale_NKS[layer][..., None]
        return k.transpose(0, 3, 1, 2).astype(dtype), v.transpose(0, 2, 1, 3).astype(dtype)

    def _by_cache_row(self, x_BKgX: jax.Array) -> jax.Array:
        """(B,K,g,X) -> (N,K,B/N*g,X): the rows that share a cache row on one axis of a product.

        XLA's CPU backend has no bfloat16 x bfloat16 -> float32 for products with more axes.
        """
        N, (B, K, g, X) = self.v_NKSh[0].shape[0], x_BKgX.shape
        return x_BKgX.reshape(N, B // N, K, g, X).swapaxes(1, 2).reshape(N, K, B // N * g, X)

    def _by_query_row(self, y_NKxY: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Inverse of `_by_cache_row` for an array of queries of `shape` (B,K,g,...)."""
        (N, *_, Y), (B, K, g, _) = y_NKxY.shape, shape
        return y_NKxY.reshape(N, K, B // N, g, Y).swapaxes(1, 2).reshape(B, K, g, Y)


def _as_stored(x: jax.Array) -> jax.Array:
    """An array of a cache, which products read in the layout that it has.

    Of a cache that a loop only reads XLA's GPU backend else makes a transposed copy. Over several
    devices it stays so: XLA gathers an array whose layout is said.
    """
    if jax.typeof(x).sharding.mesh.size > 1:
        return x
    layout = Layout(tuple(range(x.ndim)))
    return jax.lax.platform_dependent(
        x, cuda=lambda x: with_layout_constraint(x, layout), default=lambda x: x
    )


def resolve_cache_dtype(choice: CacheDtype, activations: Any) -> jnp.dtype:
    """The dtype of a cache, by the dtype of the activations."""
    return jnp.dtype(jnp.int8 if choice == "int8" else activations)


def empty_cache(cfg: DecoderConfig, rows: int, size: int, dtype: jnp.dtype) -> KVCache:
    """Zeros for `rows` rows and `size` slots; with int8 as `dtype` there are scales."""
    K, h, L = cfg.num_kv_heads, cfg.head_dim, cfg.num_layers

    def zeros(shape: tuple[int, ...], dtype: jnp.dtype) -> tuple[jax.Array, ...]:
        return tuple(jnp.zeros(shape, dtype) for _ in range(L))

    keys, values = zeros((rows, K, h, size), dtype), zeros((rows, K, size, h), dtype)
    if dtype != jnp.int8:
        return KVCache(keys, values)
    one, other = (zeros((rows, K, size), jnp.dtype(jnp.float32)) for _ in range(2))
    return KVCache(keys, values, one, other)


def _to_int8(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Integers of -127 to 127, and the float32 scales without `axis`: x = integers x scales.

    A scale is NaN where x is not finite, as are all products with it.
    """
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=axis)
    scale = jnp.where(jnp.isfinite(largest), largest, jnp.nan) / 127
    divisor = jnp.expand_dims(jnp.where(scale > 0, scale, 1), axis)
    return jnp.round(x / divisor).astype(jnp.int8), scale


def cast_cache(cache: KVCache, dtype: jnp.dtype) -> KVCache:
    """A cache of floats as one of `dtype`: itself, or rounded to int8."""
    if dtype != jnp.int8 or cache.is_int8:
        return cache
    keys, k_scales = zip(*(_to_int8(k, 2) for k in cache.k_NKhS))
    values, v_scales = zip(*(_to_int8(v, 3) for v in cache.v_NKSh))
    return KVCache(keys, values, k_scales, v_scales)


def join_slots(caches: Sequence[KVCache]) -> KVCache:
    """The slots of several caches of the same rows, one behind the other."""

    def joined(name: str, axis: int) -> tuple[jax.Array, ...]:
        layers = zip(*(getattr(cache, name) for cache in caches))
        return tuple(jnp.concatenate(arrays, axis) for arrays in layers)

    return KVCache(**{name: joined(name, axis) for name, axis in _SLOT_AXES.items()})


@partial(jax.jit, static_argnames=("axis", "size"))
def _grow(x: jax.Array, axis: int, size: int) -> jax.Array:
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, pad)


def grow_cache(cache: KVCache, size: int) -> KVCache:
    """The same cache with `size` slots; the arrays of `cache` are deleted.

    Arrays are grown one at a time, so that at most one is in memory twice.
    """
    if cache.size == size:
        return cache

    def grow(arrays: tuple[jax.Array, ...], axis: int) -> tuple[jax.Array, ...]:
        longer = []
        for x in arrays:
            longer.append(_grow(x, axis, size))
            x.delete()
        return tuple(longer)

    return KVCache(**{name: grow(getattr(cache, name), axis) for name, axis in _SLOT_AXES.items()})


def write_slot(cache: KVCache, layer: int, slot: jax.Array, k: jax.Array, v: jax.Array) -> KVCache:
    """The cache with k and v (N,K,h) of one token per row written to `slot` of `layer`."""

    def put(x: jax.Array, new: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(x, jnp.expand_dims(new, axis), slot, axis)

    return _write(cache, layer, k, v, put)


def write_slots(
    cache: KVCache, layer: int, first_N: jax.Array, k: jax.Array, v: jax.Array
) -> KVCache:
    """The cache with k and v (N,W,K,h) of W tokens per row written to `layer`, of each row from its
    own slot `first_N` on."""

    def put(x: jax.Array, new: jax.Array, axis: int) -> jax.Array:
        def put_row(x: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(x, new, at, axis - 1)

        return jax.vmap(put_row)(x, jnp.moveaxis(new, 1, axis), first_N)

    return _write(cache, layer, k, v, put)


def _write(
    cache: KVCache, layer: int, k: jax.Array, v: jax.Array,
    put: Callable[[jax.Array, jax.Array, int], jax.Array],
) -> KVCache:  # fmt: skip
    """The cache with k and v (...,K,h) put into its arrays of `layer`.

    put: (array, what to write without slots or with them behind the rows, axis of the slots) -> the
    array.
    """

    def replaced(arrays: tuple[jax.Array, ...], new: jax.Array, axis: int) -> tuple[jax.Array, ...]:
        return (*arrays[:layer], put(arrays[layer], new, axis), *arrays[layer + 1 :])

    new: tuple[jax.Array, ...] = (k, v)
    if cache.is_int8:
        (k, k_scale), (v, v_scale) = _to_int8(k, -1), _to_int8(v, -1)
        new = (k, v, k_scale, v_scale)
    return KVCache(
        **{
            name: replaced(getattr(cache, name), x, axis)
            for (name, axis), x in zip(_SLOT_AXES.items(), new)
        }
    )


def cache_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of every array of a cache: rows over `data` and `fsdp`, kv heads over `tensor`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "tensor"))
