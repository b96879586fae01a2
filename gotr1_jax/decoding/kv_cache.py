"""The KV cache: made, written one slot at a time, grown, read by attention, sharded.

Letters besides the usual ones: K kv heads, g query heads of each, h head width, N rows of a cache,
S its slots.
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
    """Keys and values of a span of tokens, one array a layer.

    A step writes the same slot of all rows; attention reads all slots. `grow_cache` adds slots.

    Attributes:
      k_NKhS: keys with rotary applied; slots last, so that scores are a plain product.
      v_NKSh: values.
    """

    k_NKhS: tuple[jax.Array, ...]
    v_NKSh: tuple[jax.Array, ...]

    @property
    def size(self) -> int:
        """Number of slots."""
        return self.v_NKSh[0].shape[2]

    def scores(self, layer: int, q_BKgh: jax.Array) -> jax.Array:
        """Products (B,K,g,S) of queries and keys, float32. Each of the N rows serves B / N ones."""
        k_NKhS = self.k_NKhS[layer]
        N, (B, K, g, h) = k_NKhS.shape[0], q_BKgh.shape
        if N == B:  # XLA's CPU backend cannot widen this product of bfloat16
            return jnp.einsum("bkgh,bkhs->bkgs", q_BKgh, k_NKhS).astype(jnp.float32)
        q = q_BKgh.reshape(N, B // N, K, g, h)
        wide = {"preferred_element_type": jnp.float32}
        scores = jnp.einsum("pnkgh,pkhs->pnkgs", q, k_NKhS, **wide)
        return scores.reshape(B, K, g, k_NKhS.shape[-1])

    def values(self, layer: int, weights_BKgS: jax.Array) -> jax.Array:
        """Sums (B,K,g,h) of values under weights. Each of the N rows serves B / N ones."""
        v_NKSh = self.v_NKSh[layer]
        N, (B, K, g, S) = v_NKSh.shape[0], weights_BKgS.shape
        weights = weights_BKgS.reshape(N, B // N, K, g, S)
        mixed = jnp.einsum("pnkgs,pksh->pnkgh", weights, v_NKSh)
        return mixed.reshape(B, K, g, v_NKSh.shape[-1])


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

    One array after another, so that no more than one of them is in memory twice.
    """
    if cache.size == size:
        return cache

    def grow(x: jax.Array, axis: int) -> jax.Array:
        longer = _grow(x, axis, size)
        x.delete()
        return longer

    return KVCache(tuple(grow(k, 3) for k in cache.k_NKhS), tuple(grow(v, 2) for v in cache.v_NKSh))


def write_slot(cache: KVCache, layer: int, slot: jax.Array, k: jax.Array, v: jax.Array) -> KVCache:
    """The cache with k and v (N,K,h) of one token a row written to `slot` of `layer`."""
    keys, values = list(cache.k_NKhS), list(cache.v_NKSh)
    zero = jnp.zeros((), slot.dtype)
    keys[layer] = jax.lax.dynamic_update_slice(keys[layer], k[..., None], (zero, zero, zero, slot))
    values[layer] = jax.lax.dynamic_update_slice(
        values[layer], v[:, :, None, :], (zero, zero, slot, zero)
    )
    return KVCache(tuple(keys), tuple(values))


def cache_sharding(mesh: Mesh) -> NamedSharding:
    """Of every array of a cache: rows over `data` and `fsdp`, kv heads over `tensor`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "tensor"))
