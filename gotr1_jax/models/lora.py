"""Splitting and merging of LoRA adapters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gotr1_jax.models.layers import Linear


def split_lora(model: nnx.Module) -> tuple[Any, Any, Any]:
    """(graphdef, adapter state, all other parameters); inverse of `nnx.merge`. LoRAParam is a
    subclass of Param, so it is filtered first."""
    parts: Any = nnx.split(model, nnx.LoRAParam, nnx.Param)
    return parts


def _merged_kernel(layer: Linear) -> jax.Array:
    """W + scale * A @ B of a layer or of stacked layers, in W's dtype; computed in float32."""
    assert layer.lora_a is not None and layer.lora_b is not None
    delta = jnp.einsum("...ir,...ro->...io", layer.lora_a[...], layer.lora_b[...])
    wide = layer.kernel[...].astype(jnp.float32) + layer.lora_scale * delta
    return wide.astype(layer.kernel[...].dtype)


def merge_lora(model: nnx.Module) -> nnx.Module:
    """Add every adapter to its kernel and remove it.

    Changes `model` in place and returns it; inside a jit, pass the result of `nnx.merge`.
    """
    for _, node in nnx.iter_graph(model):
        if isinstance(node, Linear) and node.lora_a is not None:
            node.kernel[...] = _merged_kernel(node)
            node.lora_a = node.lora_b = None
            node.lora_scale = 0.0
    return model
