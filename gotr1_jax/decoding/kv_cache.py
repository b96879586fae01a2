"""The KV cache: creation, writing of slots, growth, reading by attention, sharding.

Letters: K kv heads, g query heads per kv head, h head width, N rows of a cache, S slots of a cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gotr1_jax.models.config import DecoderConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of a span of tokens, one array per layer.

    A step writes the same slot of all rows, or with `write_slots` of each row its own. Attention
    reads all slots, so callers mask unfilled ones.

    Attributes:
      k_NKhS: keys after rotary embedding; slots last, so that scores are a plain product.
      v_NKSh: values.
    """

    k_NKhS: tuple[jax.Array, ...]
    v_NKSh: tuple[jax.Array, ...]

    @property
    def size(self) -> int:
        """Number of slots."""
        return self.v_NKSh[0].shape[2]

    def scores(self, layer: int, q_BKgh: jax.Array) -> jax.Array:
        """Products (B,K,g,S) of queries and keys, float32; each cache row serves B / N queries."""
        products = jnp.einsum(
            "nkxh,nkhs->nkxs",
            self._by_cache_row(q_BKgh),
            self.k_NKhS[layer],
            preferred_element_type=jnp.float32,
        )
        return self._by_query_row(products, q_BKgh.shape)

    def values(self, layer: int, weights_BKgS: jax.Array) -> jax.Array:
        """Weighted sums (B,K,g,h) of values, float32; each cache row serves B / N rows of weights.

        The caller rounds once, after the sums over all caches are added.
        """
        sums = jnp.einsum(
            "nkxs,nksh->nkxh",
            self._by_cache_row(weights_BKgS),
            self.v_NKSh[layer],
            preferred_element_type=jnp.float32,
        )
        return self._by_query_row(sums, weights_BKgS.shape)

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


def empty_cache(cfg: DecoderConfig, rows: int, size: int, dtype: jnp.dtype) -> KVCache:
    """Zeros for `rows` rows and `size` slots."""
    K, h, L = cfg.num_kv_heads, cfg.head_dim, cfg.num_layers
    keys = tuple(jnp.zeros((rows, K, h, size), dtype) for _ in range(L))
    values = tuple(jnp.zeros((rows, K, size, h), dtype) for _ in range(L))
    return KVCache(keys, values)


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

    def grow(x: jax.Array, axis: int) -> jax.Array:
        longer = _grow(x, axis, size)
        x.delete()
        return longer

    return KVCache(tuple(grow(k, 3) for k in cache.k_NKhS), tuple(grow(v, 2) for v in cache.v_NKSh))


def write_slot(cache: KVCache, layer: int, slot: jax.Array, k: jax.Array, v: jax.Array) -> KVCache:
    """The cache with k and v (N,K,h) of one token per row written to `slot` of `layer`."""
    keys, values = list(cache.k_NKhS), list(cache.v_NKSh)
    zero = jnp.zeros((), slot.dtype)
    keys[layer] = jax.lax.dynamic_update_slice(keys[layer], k[..., None], (zero, zero, zero, slot))
    values[layer] = jax.lax.dynamic_update_slice(
        values[layer], v[:, :, None, :], (zero, zero, slot, zero)
    )
    return KVCache(tuple(keys), tuple(values))


def write_slots(
    cache: KVCache, layer: int, first_N: jax.Array, k: jax.Array, v: jax.Array
) -> KVCache:
    """The cache with k and v (N,W,K,h) of W tokens per row written to `layer`, of each row from its
    own slot `first_N` on."""

    def put(axis: int, x: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(x, new, at, axis)

    keys, values = list(cache.k_NKhS), list(cache.v_NKSh)
    keys[layer] = jax.vmap(partial(put, 2))(keys[layer], k.transpose(0, 2, 3, 1), first_N)
    values[layer] = jax.vmap(partial(put, 1))(values[layer], v.swapaxes(1, 2), first_N)
    return KVCache(tuple(keys), tuple(values))


def cache_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of every array of a cache: rows over `data` and `fsdp`, kv heads over `tensor`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "tensor"))
