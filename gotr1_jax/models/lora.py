"""Low-rank adapters of a policy: split off, merged."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gotr1_jax.models.layers import Linear


def split_lora(model: nnx.Module) -> tuple[Any, Any, Any]:
    """(graphdef, adapter state, all other parameters). LoRAParam is a subclass of Param, so it
    is filtered first; `nnx.merge(graphdef, adapters, rest)` is the inverse."""
    parts: Any = nnx.split(model, nnx.LoRAParam, nnx.Param)
    return parts


def _merged_kernel(layer: Linear) -> jax.Array:
    """W + scale * A @ B of one layer or of a stack, in W's dtype; summed in float32."""
    assert layer.lora_a is not None and layer.lora_b is not None
    delta = jnp.einsum("...ir,...ro->...io", layer.lora_a[...], layer.lora_b[...])
    wide = layer.kernel[...].astype(jnp.float32) + layer.lora_scale * delta
    return wide.astype(layer.kernel[...].dtype)


def merge_lora(model: nnx.Module) -> nnx.Module:
    """Add every adapter to its kernel and drop it: the result has no LoRAParam.

    Changes `model` in place (call it on a freshly merged one, inside jit) and returns it.
    """
    for _, node in nnx.iter_graph(model):
        if isinstance(node, Linear) and node.lora_a is not None:
            node.kernel[...] = _merged_kernel(node)
            node.lora_a = node.lora_b = None
            node.lora_scale = 0.0
    return model
