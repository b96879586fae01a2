"""Attention by kernels that never hold all scores: cuDNN's on NVIDIA GPUs, splash on TPUs.

Both keep a running softmax over blocks of keys (arXiv 2205.14135), forward and backward, so that
memory grows with the length of a row instead of its square. Letters: B rows, S queries, E keys, H
heads, K kv heads, C head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from gotr1_jax.parallel.mesh import ROWS

_LANES = 128  # of a TPU's vector registers: blocks and head widths are multiples of it
_LARGEST_BLOCK = 640
_WIDEST_HEAD = 256  # of cuDNN, on Hopper and later; 128 before
_SEES_NOTHING = jnp.iinfo(jnp.int32).min


class KernelRefusal(Exception):
    """A kernel cannot compute this attention; the message says why."""


@dataclass(frozen=True)
class AttentionMask:
    """Which keys a query sees.

    Attributes:
      causal: query s of S sees keys up to s + E - S; else all.
      segments: int32 (B,S) and (B,E): of these it sees the keys with its own number; None: all.
    """

    causal: bool
    segments: tuple[jax.Array, jax.Array] | None = None

    def mask(self, S: int, E: int) -> jax.Array | None:
        """What `segments` and `causal` allow together, (B or 1,1,S,E) bool; None: everything."""
        mask = None
        if self.causal:
            mask = jnp.tril(jnp.ones((1, 1, S, E), bool), E - S)
        if self.segments is not None:
            queries, keys = self.segments
            same = queries[:, None, :, None] == keys[:, None, None, :]
            mask = same if mask is None else mask & same
        return mask


def cudnn_attention(q: jax.Array, k: jax.Array, v: jax.Array, seen: AttentionMask) -> jax.Array:
    """q (B,S,H,C), k and v (B,E,K,C) -> (B,S,H,C), scaled by C ** -0.5.

    Rows and heads lie over the mesh as far as they divide; what does not is computed on every
    device. What is not plainly causal is a mask of one number a pair of positions, in the dtype of
    q, which all heads share. Raises KernelRefusal for what cuDNN does not take.
    """
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        raise KernelRefusal(f"it takes bfloat16 and float16, not {q.dtype}")
    if (width := q.shape[-1]) % 8 or width > _WIDEST_HEAD:
        raise KernelRefusal(f"heads of {width} are no multiple of 8 up to {_WIDEST_HEAD}")
    try:
        rows = partial(_cudnn_rows, causal=seen.causal)
        return _on_each_device(rows, q, k, v, _hiding(seen, q, k, 2))
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise KernelRefusal(str(error).partition("\n")[0]) from error


def splash_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, seen: AttentionMask, interpret: bool = False
) -> jax.Array:
    """As `cudnn_attention`, by the kernel in `jax.experimental.pallas.ops.tpu`, in any dtype.

    Lengths and head widths are padded here. interpret: without a TPU, for tests.
    """
    rows = partial(_splash_rows, causal=seen.causal, interpret=interpret)
    return _on_each_device(rows, q, k, v, _hiding(seen, q, k, _block(k.shape[1])))


def _hiding(seen: AttentionMask, q: jax.Array, k: jax.Array, multiple: int) -> Any:
    """The segments, or such that hide the keys which padding to a multiple adds: those would be
    seen where queries see all keys."""
    if seen.segments is not None or seen.causal or k.shape[1] % multiple == 0:
        return seen.segments
    return tuple(jnp.zeros(x.shape[:2], jnp.int32) for x in (q, k))


def _on_each_device(
    attend: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array, segments: Any
) -> jax.Array:
    """`attend(q, k, v, segments)` by every device of the traced program for its rows and heads."""
    mesh = jax.typeof(q).sharding.mesh
    shared = zip(mesh.axis_sizes, mesh.axis_types)
    # One device, or already inside of a shard_map.
    if not any(size > 1 and kind == AxisType.Auto for size, kind in shared):
        return attend(q, k, v, segments)
    over = tuple(name for name in ROWS[0] if name in mesh.shape)
    divides = q.shape[0] % math.prod(mesh.shape[name] for name in over) == 0
    heads = "tensor" if k.shape[2] % mesh.shape.get("tensor", k.shape[2] + 1) == 0 else None
    rows = PartitionSpec(over if divides else None)
    spec = PartitionSpec(rows[0], None, heads, None)
    on_mesh = jax.shard_map(
        attend, mesh=mesh, in_specs=(spec, spec, spec, rows), out_specs=spec, check_vma=False
    )
    return on_mesh(q, k, v, segments)


def _cudnn_rows(q: jax.Array, k: jax.Array, v: jax.Array, segments: Any, causal: bool) -> jax.Array:
    """`cudnn_attention` of the rows and heads of one device."""
    S, E, mask = q.shape[1], k.shape[1], None
    if segments is not None or (causal and S != E):
        mask = AttentionMask(causal, segments).mask(S, E)
        assert mask is not None
        mask = _pad(_pad(mask, 2, S + S % 2, True), 3, E + E % 2, False)
        mask = jnp.broadcast_to(mask, (q.shape[0], *mask.shape[1:]))
    # Gradients need even lengths.
    q, k, v = (_pad(x, 1, x.shape[1] + x.shape[1] % 2) for x in (q, k, v))
    out = jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=causal and S == E, implementation="cudnn"
    )
    return out[:, :S]


def _splash_rows(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: Any, causal: bool, interpret: bool
) -> jax.Array:
    """`splash_attention` of the rows and heads of one device."""
    try:
        from jax.experimental.pallas.ops.tpu.splash_attention import (
            splash_attention_kernel as kernels,
        )
        from jax.experimental.pallas.ops.tpu.splash_attention import (
            splash_attention_mask as masks,
        )
    except ImportError as error:
        raise KernelRefusal(f"this jax has none: {error}") from error
    (S, H, C), E = q.shape[1:], k.shape[1]
    block_q, block_k = _block(S), _block(E)
    padded_S, padded_E = (-(-n // b) * b for n, b in ((S, block_q), (E, block_k)))
    sizes = kernels.BlockSizes(
        block_q=block_q, block_kv=block_k, block_q_dkv=block_q, block_kv_dkv=block_k,
        block_q_dq=block_q, block_kv_dq=block_k,
    )  # fmt: skip
    shape = (padded_S, padded_E)
    # Padded keys are behind all that a real query sees.
    one = masks.CausalMask(shape, offset=E - S) if causal else masks.FullMask(shape)
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([one] * H), block_sizes=sizes, head_shards=1, q_seq_shards=1,
        interpret=interpret,
    )  # fmt: skip

    def by_head(x: jax.Array, size: int) -> jax.Array:
        x = _pad(_pad(x, 1, size), 3, -(-C // _LANES) * _LANES)
        return x.transpose(0, 2, 1, 3)

    ids = None
    if segments is not None:
        ids = kernels.SegmentIds(
            q=_pad(segments[0], 1, padded_S, _SEES_NOTHING),
            kv=_pad(segments[1], 1, padded_E, _SEES_NOTHING),
        )
    out = jax.vmap(kernel)(
        by_head(q * C**-0.5, padded_S), by_head(k, padded_E), by_head(v, padded_E), ids
    )
    return out.transpose(0, 2, 1, 3)[:, :S, :, :C].astype(q.dtype)


def _block(size: int) -> int:
    """Positions of a block: what pads the least, and of such the largest."""
    lanes = min(-(-size // _LANES), _LARGEST_BLOCK // _LANES)
    blocks = [n * _LANES for n in range(lanes, 0, -1)]
    # Blocks of 128 alone are slow, so they do not compete for the least padding.
    return min(blocks[: max(1, len(blocks) - 1)], key=lambda b: -(-size // b) * b)


def _pad(x: jax.Array, axis: int, size: int, value: Any = 0) -> jax.Array:
    """x with `value` behind it, up to `size` along an axis."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths, constant_values=value)
