"""FLOPs of a traced program: matrix products and convolutions, loops counted as they turn.

XLA's own analysis counts a loop's body once, and is not there for every compiler; the trace knows
how often every scan turns. Recomputation (remat) is in the trace, so it is counted too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from jax.extend import core


def count_flops(jaxpr: Any, turns: int = 1) -> float:
    """Of the whole program, over all devices; `turns`: of its outermost open-ended loops."""
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _of_product(equation)
        elif name == "conv_general_dilated":
            total += _of_convolution(equation)
        elif name == "scan":
            total += params["length"] * count_flops(params["jaxpr"])
        elif name == "while":
            total += turns * count_flops(params["body_jaxpr"])
        elif name == "cond":
            total += max(count_flops(branch, turns) for branch in params["branches"])
        else:
            total += sum(count_flops(inner, turns) for inner in _inner(params))
    return total


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """Programs among an operation's parameters: of jit, remat, custom derivatives and so on."""
    for value in params.values():
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, core.Jaxpr | core.ClosedJaxpr):
                yield item


def _of_product(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _of_convolution(equation: Any) -> float:
    kernel = equation.invars[1].aval.shape
    outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / outputs
