"""Matrices cut into panels, for decoding a few rows on a CPU.

The time of a token of few rows is the time to read the weights. Row by row, XLA's kernel for CPUs
reads half a dozen short stretches of memory at once, at a third to a half of its speed. A panel of
64 outputs is one stretch and is read up to twice as fast. XLA computes a product of panels on one
processor, but divides that of a whole matrix among all, so panels are for few processors.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

FEW_ROWS = 32
"""With more rows arithmetic is the limit, and panels cost more than they save."""
FEW_PROCESSORS = 2
"""With two, panels take as long as whole matrices, which keep both of them busy."""
_WIDTH = 64
# Smaller matrices stay in a processor's cache. All panels read the whole input, which has to stay
# in the first level of it.
_SMALLEST, _LARGEST_INPUT = 2**18, 2**14


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Panels:
    """A matrix (*out, *in).

    Attributes:
      w_PIn: P panels, each of all I inputs and n of the outputs, in order.
      out: sizes of the output axes.
    """

    w_PIn: jax.Array
    out: tuple[int, ...] = field(metadata={"static": True})

    def product(self, x_BI: jax.Array, dtype: jnp.dtype | None) -> jax.Array:
        """The matrix times each row of x: (B, *out)."""
        # Through this sum of x and nothing, XLA makes x once, inside of the product: else it
        # computes whatever makes x again for every panel.
        once = jnp.asarray([1.0, 0.0], x_BI.dtype)
        x_BI = (x_BI[None] * once[:, None, None]).sum(axis=0)
        x_PBI = jnp.broadcast_to(x_BI, (self.w_PIn.shape[0], *x_BI.shape))
        axes = ((2,), (1,)), ((0,), (0,))
        y_PBn = jax.lax.dot_general(x_PBI, self.w_PIn, axes, preferred_element_type=dtype)
        return y_PBn.swapaxes(0, 1).reshape(x_BI.shape[0], *self.out)


Matrix = jax.Array | Panels


def panels_help(array: jax.Array, rows: int) -> bool:
    """Whether panels are faster in a loop over tokens of `rows` rows, with weights such as one
    `array`: float32 on one CPU device, in a process that may use few processors."""
    devices = array.devices()
    on_one_cpu = len(devices) == 1 and next(iter(devices)).platform == "cpu"
    few = rows <= FEW_ROWS and _processors() <= FEW_PROCESSORS
    return few and on_one_cpu and array.dtype == jnp.float32


def as_panels(weight: Matrix, rows: int, contracted: int = 1) -> Matrix:
    """The matrix (*out, *in), with `contracted` input axes, in panels if these are faster."""
    if isinstance(weight, Panels):
        return weight
    out = weight.shape[: weight.ndim - contracted]
    outputs = math.prod(out)
    inputs = weight.size // outputs
    if weight.size < _SMALLEST or rows * inputs > _LARGEST_INPUT or outputs % _WIDTH:
        return weight
    return Panels(weight.reshape(-1, _WIDTH, inputs).swapaxes(1, 2), out)


def _processors() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # on macOS
        return os.cpu_count() or 1
