"""Who computes attention over whole rows: a kernel of `models.flash`, or XLA.

XLA holds all scores at once. On CPUs causal attention goes over blocks of queries, because there
the passes over the scores take most of the time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp

from gotr1_jax.errors import InputError
from gotr1_jax.models.flash import AttentionMask, KernelRefusal, cudnn_attention, splash_attention
from gotr1_jax.parallel.config import AttentionKind

_LOG = logging.getLogger(__name__)

_BLOCK, _MOST_BLOCKS = 64, 8
_LEAST_KEYS = 128
_OF_PLATFORM: dict[str, AttentionKind] = {
    "gpu": "cudnn", "cuda": "cudnn", "tpu": "splash",
}  # fmt: skip


class _Choice:
    """Of this process, as `jax.config` is: the programs that it traces from now on.

    Attributes:
      kind: as configured.
      used: what programs got, in the order of their tracing; with the reason where it is not the
        platform's own.
    """

    def __init__(self) -> None:
        self.kind: AttentionKind = "auto"
        self.used: dict[str, None] = {}


_CHOICE = _Choice()


def platform_of(x: jax.Array) -> str:
    """Where a program that is traced here will run: its mesh's devices, or the default ones."""
    device = getattr(jax.typeof(x).sharding.mesh, "abstract_device", None)
    return getattr(device, "platform", None) or jax.default_backend()


def is_on_cpu(x: jax.Array) -> bool:
    """Whether a program that is traced here will run on CPUs."""
    return platform_of(x) == "cpu"


def choose_attention(kind: AttentionKind, platform: str) -> None:
    """Set who computes the attention of all programs that this process traces from now on.

    Raises InputError for a kernel that the platform ("cpu", "gpu", "cuda" or "tpu") does not have.
    """
    own = _OF_PLATFORM.get(platform, "xla")
    if kind not in ("auto", "xla", own):
        raise InputError(
            f"mesh.attention is {kind}, which {platform} devices do not have; set auto"
            + ("" if own == "xla" else f", {own}")
            + " or xla"
        )
    _CHOICE.kind, _CHOICE.used = kind, {}


def attention_used() -> str:
    """Who computes the attention of the programs traced since the choice, as a text for a table."""
    return "; ".join(_CHOICE.used) or "none yet"


def kernel_for(q: jax.Array, keys: int) -> AttentionKind:
    """The kernel that is to take q (B,S,H,C) and a number of keys; "xla": none."""
    own = _OF_PLATFORM.get(platform_of(q), "xla")
    # Fewer keys than a kernel's smallest block: it would save nothing.
    return "xla" if keys < _LEAST_KEYS else own if _CHOICE.kind == "auto" else _CHOICE.kind


def flash_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, seen: AttentionMask
) -> jax.Array | None:
    """q (B,S,H,C), k and v (B,E,K,C) -> (B,S,H,C) by a kernel; None: XLA is to compute it.

    That is so where it is chosen, for few keys, and, said once, where the kernel refuses.
    """
    kind = kernel_for(q, k.shape[1])
    out, used = None, str(kind)
    try:
        if kind == "splash":
            out = splash_attention(q, k, v, seen, interpret=is_on_cpu(q))
        elif kind == "cudnn":
            out = cudnn_attention(q, k, v, seen)
    except KernelRefusal as refusal:
        used = f"xla, as {kind} cannot: {refusal}"
        if used not in _CHOICE.used:
            _LOG.warning("attention by %s", used)
    _CHOICE.used[used] = None
    return out


def attention(q: jax.Array, k: jax.Array, v: jax.Array, seen: AttentionMask) -> jax.Array:
    """`flash_attention`, or where no kernel takes it XLA's over all scores at once."""
    out = flash_attention(q, k, v, seen)
    if out is not None:
        return out
    mask = AttentionMask(False, seen.segments).mask(q.shape[1], k.shape[1])
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=seen.causal)


def flash_attention_behind(
    q: jax.Array, k: jax.Array, v: jax.Array,
    before: Sequence[tuple[jax.Array, jax.Array, jax.Array]],
) -> jax.Array | None:  # fmt: skip
    """Causal attention of q (B,S,H,C) to own keys and to all that are before them, by a kernel.

    For it every row gets its own copy of what rows share. None: XLA is to compute it.

    Args:
      k, v: own, (B,S,K,C).
      before: keys and values (N,E,K,C), each for B / N rows, and how many of them a row sees, int32
        (B,) or (1,).
    """
    B, S = q.shape[:2]
    if kernel_for(q, S + sum(keys.shape[1] for keys, *_ in before)) == "xla":
        return None
    own_BS = jnp.zeros((B, S), jnp.int32)
    numbers = []
    for keys, _, length in before:
        unseen = jnp.arange(keys.shape[1]) >= length[:, None]
        numbers.append(jnp.broadcast_to(unseen.astype(jnp.int32), (B, keys.shape[1])))
    seen = AttentionMask(
        causal=True, segments=(own_BS, jnp.concatenate([*numbers, own_BS], axis=1))
    )

    def join(shared: Iterable[jax.Array], own: jax.Array) -> jax.Array:
        by_row = (jnp.repeat(x, B // x.shape[0], axis=0) for x in shared)
        return jnp.concatenate([*by_row, own], axis=1)

    keys, values = join((x for x, *_ in before), k), join((x for _, x, _ in before), v)
    return flash_attention(q, keys, values, seen)


def blockwise_causal_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """q (B,S,H,C), k and v (B,S,K,C) -> (B,S,H,C), as `jax.nn.dot_product_attention`.

    A block of queries sees the keys up to its end only, which saves up to half of the scores. The
    weights are divided by their sum after the product with v, a pass over (S, C) instead of (S, S).
    Scores and sums are float32.
    """
    B, S, H, C = q.shape
    K = k.shape[2]
    q = (q * C**-0.5).reshape(B, S, K, H // K, C).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    blocks = min(-(-S // _BLOCK), _MOST_BLOCKS)
    ends = [S * i // blocks for i in range(blocks + 1)]
    mixed = [
        _attend(q[..., start:end, :], k[:, :, :end], v[:, :, :end], start)
        for start, end in zip(ends, ends[1:])
    ]
    out = jnp.concatenate(mixed, axis=3).astype(v.dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, S, H, C)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, start: int) -> jax.Array:
    """Queries (B,K,G,Q,C) from position `start` on, keys and values (B,K,E,C) -> (B,K,G,Q,C)."""
    wide = {"preferred_element_type": jnp.float32}
    scores = jnp.einsum("bkgqc,bkec->bkgqe", q, k, **wide)
    Q, E = scores.shape[-2:]
    seen = jnp.arange(E)[None, :] <= start + jnp.arange(Q)[:, None]
    scores = jnp.where(seen, scores, -jnp.inf)
    # Its own position is always seen, so the maximum is finite.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    mixed = jnp.einsum("bkgqe,bkec->bkgqc", weights.astype(v.dtype), v, **wide)
    return mixed / weights.sum(-1, keepdims=True)
