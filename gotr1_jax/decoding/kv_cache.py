"""The KV cache of one run of tokens: made, written at one slot, grown, sharded."""

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
    """Keys and values of one stretch of tokens, an array a layer.

    A segment is written at one slot for all its rows and read whole; `grow_cache` adds slots.

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


def grow_cache(segment: KVCache, size: int) -> KVCache:
    """The same segment with `size` slots; `segment` itself is used up.

    One array after another, so that no more than one of them is held twice.
    """
    if segment.size == size:
        return segment

    def one(x: jax.Array, axis: int) -> jax.Array:
        longer = _grow(x, axis, size)
        x.delete()
        return longer

    return KVCache(
        tuple(one(k, 3) for k in segment.k_NKhS), tuple(one(v, 2) for v in segment.v_NKSh)
    )


def write_slot(
    segment: KVCache, layer: int, slot: jax.Array, k: jax.Array, v: jax.Array
) -> KVCache:
    """Segment with k and v (N,K,h) of one token a row at `slot` of `layer`."""
    keys, values = list(segment.k_NKhS), list(segment.v_NKSh)
    zero = jnp.zeros((), slot.dtype)
    keys[layer] = jax.lax.dynamic_update_slice(keys[layer], k[..., None], (zero, zero, zero, slot))
    values[layer] = jax.lax.dynamic_update_slice(
        values[layer], v[:, :, None, :], (zero, zero, slot, zero)
    )
    return KVCache(tuple(keys), tuple(values))


def cache_sharding(mesh: Mesh) -> NamedSharding:
    """Of every array of a segment: rows over `data` and `fsdp`, kv heads over `tensor`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "tensor"))
