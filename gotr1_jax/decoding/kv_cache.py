"""The KV cache: creation, writing of one slot, growth, reading by attention, sharding.

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

    A step writes the same slot of all rows. Attention reads all slots, so callers mask unfilled
    ones.

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
        k_NKhS = self.k_NKhS[layer]
        N, (B, K, g, h) = k_NKhS.shape[0], q_BKgh.shape
        if N == B:  # XLA's CPU backend has no bfloat16 x bfloat16 -> float32 for this product
            return jnp.einsum("bkgh,bkhs->bkgs", q_BKgh, k_NKhS).astype(jnp.float32)
        q = q_BKgh.reshape(N, B // N, K, g, h)
        wide = {"preferred_element_type": jnp.float32}
        scores = jnp.einsum("pnkgh,pkhs->pnkgs", q, k_NKhS, **wide)
        return scores.reshape(B, K, g, k_NKhS.shape[-1])

    def values(self, layer: int, weights_BKgS: jax.Array) -> jax.Array:
        """Weighted sums (B,K,g,h) of values; each cache row serves B / N rows of weights."""
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


def cache_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of every array of a cache: rows over `data` and `fsdp`, kv heads over `tensor`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "tensor"))
