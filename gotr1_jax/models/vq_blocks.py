"""Building blocks of the VQ-16 image tokenizer: convolution, group norm, residual, attention.

Arrays are channels-last, (B, h, w, channels). Attribute names follow the tensor names of the
released Janus and LlamaGen checkpoints.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

NORM_EPS = 1e-6
SAME = ((1, 1), (1, 1))
"""Zero padding (top, bottom), (left, right) with which a 3×3 convolution keeps the size."""


class Conv(nnx.Module):
    """2-D convolution with a bias; `kernel` is (height, width, in, out)."""

    def __init__(
        self, in_channels: int, out_channels: int, size: int, *, rngs: nnx.Rngs, dtype=jnp.float32
    ):
        # Kernel and bias are uniform in ±1/sqrt(fan_in), as in the released tokenizer.
        bound = 1.0 / math.sqrt(in_channels * size * size)
        shape = (size, size, in_channels, out_channels)
        kernel = jax.random.uniform(rngs.params(), shape, dtype, -bound, bound)
        bias = jax.random.uniform(rngs.params(), (out_channels,), dtype, -bound, bound)
        self.kernel = nnx.Param(kernel, axes=(None, None, "vq_in", "vq_out"))
        self.bias = nnx.Param(bias, axes=("vq_out",))

    def __call__(self, x: jax.Array, padding=((0, 0), (0, 0)), stride: int = 1) -> jax.Array:
        """(B, h, w, in) → (B, h', w', out)."""
        kernel = self.kernel[...]
        y = jax.lax.conv_general_dilated(
            x.astype(kernel.dtype),
            kernel,
            window_strides=(stride, stride),
            padding=padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + self.bias[...]


class GroupNorm(nnx.Module):
    """Group normalisation over (h, w, channels of a group), computed in float32."""

    def __init__(self, channels: int, groups: int, *, dtype=jnp.float32):
        self.groups = groups
        self.scale = nnx.Param(jnp.ones((channels,), dtype), axes=("vq_in",))
        self.bias = nnx.Param(jnp.zeros((channels,), dtype), axes=("vq_in",))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        centred = wide - self._group_mean(wide)
        y = centred * jax.lax.rsqrt(self._group_mean(jnp.square(centred)) + NORM_EPS)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)

    def _group_mean(self, x: jax.Array) -> jax.Array:
        """(B, h, w, C) → (B, 1, 1, C), the mean of each channel's group."""
        b, _, _, c = x.shape
        # Positions are reduced first: channels are the contiguous axis.
        by_group = x.mean(axis=(1, 2)).reshape(b, self.groups, c // self.groups).mean(-1)
        return jnp.repeat(by_group, c // self.groups, axis=-1)[:, None, None, :]


class ResBlock(nnx.Module):
    """Two normalised 3×3 convolutions and a shortcut, 1×1 (`nin_shortcut`) if widths differ."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, *, rngs, dtype):
        self.norm1 = GroupNorm(in_channels, groups, dtype=dtype)
        self.conv1 = Conv(in_channels, out_channels, 3, rngs=rngs, dtype=dtype)
        self.norm2 = GroupNorm(out_channels, groups, dtype=dtype)
        self.conv2 = Conv(out_channels, out_channels, 3, rngs=rngs, dtype=dtype)
        if in_channels != out_channels:
            self.nin_shortcut = Conv(in_channels, out_channels, 1, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.conv1(jax.nn.silu(self.norm1(x)), SAME)
        h = self.conv2(jax.nn.silu(self.norm2(h)), SAME)
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class AttnBlock(nnx.Module):
    """Single-head self-attention over all positions of the grid, with a residual."""

    def __init__(self, channels: int, groups: int, *, rngs, dtype):
        self.norm = GroupNorm(channels, groups, dtype=dtype)
        self.q = Conv(channels, channels, 1, rngs=rngs, dtype=dtype)
        self.k = Conv(channels, channels, 1, rngs=rngs, dtype=dtype)
        self.v = Conv(channels, channels, 1, rngs=rngs, dtype=dtype)
        self.proj_out = Conv(channels, channels, 1, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        y = self.norm(x)
        q, k, v = (conv(y).reshape(b, h * w, c) for conv in (self.q, self.k, self.v))
        scores = jnp.einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores * c**-0.5, axis=-1).astype(v.dtype)
        out = jnp.einsum("bqk,bkc->bqc", weights, v).reshape(b, h, w, c)
        return x + self.proj_out(out)


class Downsample(nnx.Module):
    """Halves both sides: zero padding at the bottom and right, 3×3 convolution with stride 2."""

    def __init__(self, channels: int, *, rngs, dtype):
        self.conv = Conv(channels, channels, 3, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x, ((0, 1), (0, 1)), stride=2)


class Upsample(nnx.Module):
    """Doubles both sides: nearest-neighbour upsampling, then a 3×3 convolution."""

    def __init__(self, channels: int, *, rngs, dtype):
        self.conv = Conv(channels, channels, 3, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2), SAME)


class VQLevel(nnx.Module):
    """One resolution: residual blocks, each followed by attention if `attention`, then a resize.

    `resize` is "down", "up" or None.
    """

    def __init__(
        self, in_channels: int, out_channels: int, num_blocks: int, groups: int, *,
        attention: bool, resize: str | None, rngs: nnx.Rngs, dtype,
    ):  # fmt: skip
        widths = [in_channels] + [out_channels] * num_blocks
        self.res = nnx.List(
            ResBlock(a, b, groups, rngs=rngs, dtype=dtype)
            for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.attn = nnx.List(
            AttnBlock(out_channels, groups, rngs=rngs, dtype=dtype)
            for _ in range(num_blocks if attention else 0)
        )
        if resize == "down":
            self.downsample = Downsample(out_channels, rngs=rngs, dtype=dtype)
        elif resize == "up":
            self.upsample = Upsample(out_channels, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        for i, res in enumerate(self.res):
            x = res(x)
            if len(self.attn):
                x = self.attn[i](x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        elif hasattr(self, "upsample"):
            x = self.upsample(x)
        return x


def middle(channels: int, groups: int, *, rngs: nnx.Rngs, dtype) -> nnx.List:
    """Residual block, attention, residual block: the middle of both encoder and decoder."""
    first = ResBlock(channels, channels, groups, rngs=rngs, dtype=dtype)
    attention = AttnBlock(channels, groups, rngs=rngs, dtype=dtype)
    last = ResBlock(channels, channels, groups, rngs=rngs, dtype=dtype)
    return nnx.List([first, attention, last])
