"""Basic modules.

Parameters are stored in `param_dtype` and cast to the dtype of the activations at use, so
float32 master weights compute in bfloat16 when the activations are bfloat16. Each parameter
carries `axes`, the logical name of each of its dimensions; `parallel.sharding` maps the names
to mesh axes. Kernels are (in, out), images are NHWC.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from gotr1_jax.models.config import LoraConfig

Block = TypeVar("Block", bound=nnx.Module)


def stack_blocks(make: Callable[[nnx.Rngs], Block], rngs: nnx.Rngs, count: int) -> Block:
    """`count` blocks as one module, arrays stacked on a leading axis, with a key for each block."""

    def init(key: jax.Array) -> nnx.State:
        return nnx.split(make(nnx.Rngs(params=key)))[1]

    graphdef = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))[0]
    return nnx.merge(graphdef, jax.vmap(init)(jax.random.split(rngs.params(), count)))


@jax.custom_vjp
def float32_product(x_ND: jax.Array, kernel_DV: jax.Array) -> jax.Array:
    """x @ kernel (N,V), accumulated and returned in float32, for logits.

    The cotangent is rounded to the operands' dtype before the products of the backward pass, which
    would otherwise be float32 products of the size of the vocabulary.
    """
    return jnp.matmul(x_ND, kernel_DV, preferred_element_type=jnp.float32)


def _float32_product_fwd(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    return float32_product(x, kernel), (x, kernel)


def _float32_product_bwd(operands: tuple, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = operands
    cotangent = cotangent.astype(x.dtype)
    return cotangent @ kernel.T, x.T @ cotangent


float32_product.defvjp(_float32_product_fwd, _float32_product_bwd)


class Linear(nnx.Module):
    """y = x @ kernel (+ bias) (+ low-rank adapter); x (..., in) -> (..., out)."""

    def __init__(
        self, features_in: int, features_out: int, *, rngs: nnx.Rngs, axes: tuple[str, str],
        bias: bool = False, lora: LoraConfig | None = None, param_dtype: jnp.dtype = jnp.float32,
    ) -> None:  # fmt: skip
        scale = features_in**-0.5
        draw = jax.random.normal(rngs.params(), (features_in, features_out), param_dtype)
        self.kernel = nnx.Param(draw * jnp.asarray(scale, param_dtype), axes=axes)
        self.bias = (
            nnx.Param(jnp.zeros((features_out,), param_dtype), axes=axes[1:]) if bias else None
        )
        self.lora_scale = 0.0 if lora is None else lora.alpha / lora.rank
        self.lora_a: nnx.LoRAParam | None = nnx.data(None)
        self.lora_b: nnx.LoRAParam | None = nnx.data(None)
        if lora is not None:
            # Adapters stay float32, so that small optimizer steps are not rounded away.
            a = jax.random.normal(rngs.params(), (features_in, lora.rank), jnp.float32)
            self.lora_a = nnx.LoRAParam(a * scale, axes=(axes[0], "lora_rank"))
            self.lora_b = nnx.LoRAParam(
                jnp.zeros((lora.rank, features_out), jnp.float32), axes=("lora_rank", axes[1])
            )

    def __call__(self, x: jax.Array, *, float32: bool = False) -> jax.Array:
        """float32: accumulate and return float32; else the result has the dtype of x."""
        # Leading axes are merged: XLA's CPU backend is about three times slower in the gradient of
        # a product with two of them. The batch axis stays the major one, so sharding is kept.
        lead, x = x.shape[:-1], x.reshape(-1, x.shape[-1])
        kernel = self.kernel[...].astype(x.dtype)
        y = float32_product(x, kernel) if float32 else x @ kernel
        if self.lora_a is not None and self.lora_b is not None:
            low = x @ self.lora_a[...].astype(x.dtype)
            y = y + (low @ self.lora_b[...].astype(x.dtype)) * self.lora_scale
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        return y.reshape(*lead, y.shape[-1])


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * scale over the last axis, statistics in float32."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return wide.astype(x.dtype) * scale


class RMSNorm(nnx.Module):
    """`rms_norm` with its scale; `axis` is the logical name of the normalised axis."""

    def __init__(
        self, size: int, eps: float, param_dtype: jnp.dtype = jnp.float32,
        axis: str | None = "embed",
    ) -> None:  # fmt: skip
        self.scale = nnx.Param(jnp.ones((size,), param_dtype), axes=(axis,))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.scale[...].astype(x.dtype), self.eps)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, statistics in float32."""

    def __init__(self, size: int, eps: float, param_dtype: jnp.dtype = jnp.float32) -> None:
        self.scale = nnx.Param(jnp.ones((size,), param_dtype), axes=("embed",))
        self.bias = nnx.Param(jnp.zeros((size,), param_dtype), axes=("embed",))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide - wide.mean(-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * self.scale[...] + self.bias[...]).astype(x.dtype)


class Embedding(nnx.Module):
    """A table (rows, size); ids of any shape -> (..., size)."""

    def __init__(
        self, rows: int, size: int, *, rngs: nnx.Rngs, axes: tuple[str, str],
        param_dtype: jnp.dtype = jnp.float32,
    ) -> None:  # fmt: skip
        self.table = nnx.Param(
            jax.random.normal(rngs.params(), (rows, size), param_dtype)
            * jnp.asarray(0.02, param_dtype),
            axes=axes,
        )

    def __call__(self, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
        return jnp.take(self.table[...], ids, axis=0).astype(dtype)


class GeluMLP(nnx.Module):
    """Linear, exact (erf) GELU, linear; with biases. Janus's aligners and image head."""

    def __init__(
        self, features_in: int, hidden: int, features_out: int, *, rngs: nnx.Rngs,
        axes: tuple[str, str, str], param_dtype: jnp.dtype = jnp.float32,
    ) -> None:  # fmt: skip
        self.first = Linear(
            features_in, hidden, rngs=rngs, axes=axes[:2], bias=True, param_dtype=param_dtype
        )
        self.second = Linear(
            hidden, features_out, rngs=rngs, axes=axes[1:], bias=True, param_dtype=param_dtype
        )

    def inner(self, x: jax.Array) -> jax.Array:
        """Input of the second layer: (..., hidden)."""
        return jax.nn.gelu(self.first(x), approximate=False)

    def __call__(self, x: jax.Array, *, float32: bool = False) -> jax.Array:
        return self.second(self.inner(x), float32=float32)
