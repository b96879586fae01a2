"""A compiled loop over one bucket of cache slots that holds its caches once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.experimental.layout import Format, Layout

_OWN_LAYOUTS = ("tpu",)  # platforms where the compiler's layout of a cache is not the default one


class BucketLoop:
    """`loop(params, context, rows, state) -> state`, jitted; the state is donated.

    On TPUs the compiler has the caches of such a loop slot by slot in memory. With arrays in the
    default layout the program would begin and end with a copy of the whole cache, and both would be
    in memory. Here the compiler chooses the layout in which the state's caches come and go; an
    array that comes in another one, as all do after growth, is copied by itself.
    """

    def __init__(self, loop: Callable[..., Any]) -> None:
        self._loop = loop
        self._default = jax.jit(loop, donate_argnums=3)
        self._compiled: dict[Hashable, Any] = {}

    def __call__(self, *args: Any) -> Any:
        """The state after the bucket; the one that is given is deleted."""
        if not _has_own_layout(args[-1]):
            return self._default(*args)
        leaves, structure = jax.tree.flatten(args)
        # Nothing depends on the layouts in which the state comes.
        others = jax.tree.leaves(args[:-1])
        key = (
            structure,
            tuple((x.shape, x.dtype, getattr(x, "sharding", None)) for x in leaves),
            tuple(_format(x) for x in others),
        )
        if key not in self._compiled:
            self._compiled[key] = self.trace(*args).lower().compile()
        compiled = self._compiled[key]
        state = jax.tree.map(_put, args[-1], compiled.input_formats[0][-1])
        return compiled(*args[:-1], state)

    def trace(self, *args: Any) -> Any:
        """As of `jax.jit`; arguments may be shapes with shardings."""
        state = args[-1]
        if not _has_own_layout(state):
            return self._default.trace(*args)

        formats = jax.tree.map(lambda x: Format(_layout(x), x.sharding), state)
        others = (None,) * (len(args) - 1)
        program = jax.jit(
            self._loop, donate_argnums=3, in_shardings=(*others, formats), out_shardings=formats
        )
        # Where the state is, `formats` say; an array would bring a layout.
        bare = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        return program.trace(*args[:-1], bare)

    def lower(self, *args: Any) -> Any:
        """As of `jax.jit`."""
        return self.trace(*args).lower()


def _layout(_: Any) -> Any:
    """Of an array of the state: whatever the compiler wants."""
    return Layout.AUTO


def _has_own_layout(state: Any) -> bool:
    sharding = jax.tree.leaves(state)[0].sharding
    if sharding is None:
        return False
    return next(iter(sharding.device_set)).platform in _OWN_LAYOUTS


def _format(x: Any) -> Hashable:
    """None of random keys and of numpy's arrays."""
    return getattr(x, "format", None) if isinstance(x.dtype, np.dtype) else None


def _put(x: Any, wanted: Format) -> jax.Array:
    """The array in a format; where it has another one, it is copied and deleted."""
    if x.format == wanted:
        return x
    moved = jax.block_until_ready(_mover(wanted)(x))
    x.delete()
    return moved


@cache
def _mover(wanted: Format) -> Any:
    """A program, as `jax.device_put` is for arrays whose shards are all here."""
    return jax.jit(lambda x: x, out_shardings=wanted)
