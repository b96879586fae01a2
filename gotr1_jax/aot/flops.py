"""FLOPs of a traced program: matrix products and convolutions, times the iterations of loops.

XLA's cost analysis counts the body of a loop once, and not every compiler has it; the jaxpr has the
length of every scan. Recomputation (remat) is in the jaxpr, so it is counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from jax.extend import core


def count_flops(jaxpr: Any, iterations: int = 1) -> float:
    """FLOPs of the whole program on all devices together; of a choice those of its largest branch.

    iterations: of its outermost while loops.
    """
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _dot_flops(equation)
        elif name == "conv_general_dilated":
            total += _convolution_flops(equation)
        elif name == "scan":
            total += params["length"] * count_flops(params["jaxpr"])
        elif name == "while":
            total += iterations * count_flops(params["body_jaxpr"])
        elif name == "shard_map":
            total += params["mesh"].size * count_flops(params["jaxpr"], iterations)
        elif name == "pallas_call":
            total += math.prod(params["grid_mapping"].grid) * count_flops(params["jaxpr"])
        elif name.startswith("dot_product_attention_"):
            total += _cudnn_flops(equation)
        elif name == "cond":
            total += max(count_flops(branch, iterations) for branch in params["branches"])
        else:
            total += sum(count_flops(inner, iterations) for inner in _inner_jaxprs(params))
    return total


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """Jaxprs among an equation's parameters: of jit, remat, custom derivatives and so on."""
    for value in params.values():
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, core.Jaxpr | core.ClosedJaxpr):
                yield item


def _cudnn_flops(equation: Any) -> float:
    """Of cuDNN's attention, all pairs of positions counted: two products, five in its gradient."""
    q, k = (x.aval.shape for x in equation.invars[:2])
    products = 5 if "bwd" in equation.primitive.name else 2
    return products * 2.0 * math.prod(q) * k[1]


def _dot_flops(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _convolution_flops(equation: Any) -> float:
    kernel = equation.invars[1].aval.shape
    outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / outputs
