"""A decoder's weights for decoding: layers unstacked, outputs first, one dtype; LoRA beside them.

Adapters are not merged: their first changes are far smaller than the spacing of bfloat16 numbers at
the weights they change, so a sum in bfloat16 (or a product in bfloat16 or TF32 of a float32 sum)
would lose most of them, and the policy that samples would not be the one that is trained. Letters
as in `decoding.kv_cache`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from gotr1_jax.decoding.panels import Matrix, Panels, as_panels
from gotr1_jax.models.decoder import Decoder
from gotr1_jax.models.layers import Linear
from gotr1_jax.parallel.sharding import DECODE_RULES, partition_spec

Axes = tuple[str | None, ...]


@partial(jax.tree_util.register_dataclass, data_fields=("a", "b"), meta_fields=("scale",))
@dataclass(frozen=True)
class AdapterWeights:
    """What adapters add to one product of the loop: scale * B (A x), two thin products.

    A product may stand for several linear layers, of which any may have an adapter. Their n
    matrices A are stacked. B is zero where an output of one layer meets the rank of another.

    Attributes:
      a: (R, *in), R = n * rank.
      b: (*out, R).
      scale: alpha / rank.
    """

    a: jax.Array
    b: jax.Array
    scale: float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerWeights:
    """One block with q, k, v in one matrix and gate, up in another: fewer, larger products.

    Every matrix has its output axes first (see `decoding.forward.project`).

    Attributes:
      attention_norm_D, mlp_norm_D: scales of the two norms.
      qkv_KfhD: f = g + 2 heads per kv head: its g query heads, then its key and its value. Grouped
        by kv head so that K can be sharded.
      qkv_bias_Kfh: its bias, or None.
      qk_norm_fh: scales of the heads' norms, f = g + 1: of the g query heads and the key; or None.
      out_DKgh: output projection.
      gate_up_2FD: gate at [0], up at [1].
      down_DF: output of the mlp.
      qkv_lora, out_lora, gate_up_lora, down_lora: adapters of these products, or None.
    """

    attention_norm_D: jax.Array
    qkv_KfhD: Matrix
    qkv_bias_Kfh: jax.Array | None
    qk_norm_fh: jax.Array | None
    out_DKgh: Matrix
    mlp_norm_D: jax.Array
    gate_up_2FD: Matrix
    down_DF: Matrix
    qkv_lora: AdapterWeights | None = None
    out_lora: AdapterWeights | None = None
    gate_up_lora: AdapterWeights | None = None
    down_lora: AdapterWeights | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeWeights:
    """A decoder's weights: layers unstacked, one dtype, LoRA beside its matrices.

    Attributes:
      text_embed_VD: text embedding.
      layers: one entry for each layer.
      norm_D: scale of the final norm.
      text_head_VD: text head.
    """

    text_embed_VD: jax.Array
    layers: tuple[LayerWeights, ...]
    norm_D: jax.Array
    text_head_VD: Matrix


def _layer_weights(decoder: Decoder, i: int, dtype: jnp.dtype) -> LayerWeights:
    cfg, block = decoder.cfg, decoder.layers
    D, K, h = cfg.hidden_size, cfg.num_kv_heads, cfg.head_dim
    g = cfg.num_heads // K

    def by_head(x: jax.Array, heads: int) -> jax.Array:
        """(..., K * heads * h) -> (..., K, heads, h)."""
        return x.reshape(*x.shape[:-1], K, heads, h)

    def qkv(name: str) -> jax.Array:
        parts = [
            by_head(getattr(layer, name)[i], n)
            for layer, n in ((block.q, g), (block.k, 1), (block.v, 1))
        ]
        return jnp.concatenate(parts, axis=-2).astype(dtype)

    qk_norm_fh = None
    if block.q_norm is not None and block.k_norm is not None:
        scales = [block.q_norm.scale[i]] * g + [block.k_norm.scale[i]]
        qk_norm_fh = jnp.stack(scales).astype(dtype)
    return LayerWeights(
        attention_norm_D=block.attention_norm.scale[i].astype(dtype),
        qkv_KfhD=jnp.moveaxis(qkv("kernel"), 0, -1),
        qkv_bias_Kfh=None if block.q.bias is None else qkv("bias"),
        qk_norm_fh=qk_norm_fh,
        out_DKgh=block.o.kernel[i].T.reshape(D, K, g, h).astype(dtype),
        mlp_norm_D=block.mlp_norm.scale[i].astype(dtype),
        gate_up_2FD=jnp.stack([block.gate.kernel[i].T, block.up.kernel[i].T]).astype(dtype),
        down_DF=block.down.kernel[i].T.astype(dtype),
        **_layer_adapters(decoder, i, dtype),
    )


def _layer_adapters(decoder: Decoder, i: int, dtype: jnp.dtype) -> dict[str, AdapterWeights | None]:
    """The fields of `LayerWeights` with the adapters of layer `i`."""
    cfg, block = decoder.cfg, decoder.layers
    D, F, K, h = cfg.hidden_size, cfg.mlp_size, cfg.num_kv_heads, cfg.head_dim
    g = cfg.num_heads // K
    qkv = ((block.q, (K, g, h)), (block.k, (K, 1, h)), (block.v, (K, 1, h)))
    gate_up = ((block.gate, (1, F)), (block.up, (1, F)))
    adapters = partial(_adapter_weights, i=i, dtype=dtype)
    return {
        "qkv_lora": adapters(qkv, inputs=(D,), axis=1),
        "out_lora": adapters(((block.o, (D,)),), inputs=(K, g, h)),
        "gate_up_lora": adapters(gate_up, inputs=(D,)),
        "down_lora": adapters(((block.down, (D,)),), inputs=(F,)),
    }


def _adapter_weights(
    layers: Sequence[tuple[Linear, tuple[int, ...]]], i: int, dtype: jnp.dtype,
    inputs: tuple[int, ...], axis: int = 0,
) -> AdapterWeights | None:  # fmt: skip
    """Adapters of linear layers of one input; each comes with the shape of its outputs, which are
    joined along `axis`."""
    a_RI, b_OR, scale = [], [], 0.0
    for n, (layer, _) in enumerate(layers):
        if layer.lora_a is None or layer.lora_b is None:
            continue
        a, b, scale = layer.lora_a[i], layer.lora_b[i], layer.lora_scale
        a_RI.append(a.T.reshape(-1, *inputs))
        of_each = [
            b.T.reshape(*shape, -1) if m == n else jnp.zeros((*shape, b.shape[0]), b.dtype)
            for m, (_, shape) in enumerate(layers)
        ]
        b_OR.append(jnp.concatenate(of_each, axis))
    if not a_RI:
        return None
    return AdapterWeights(
        jnp.concatenate(a_RI).astype(dtype), jnp.concatenate(b_OR, axis=-1).astype(dtype), scale
    )


def decode_weights(decoder: Decoder, dtype: jnp.dtype) -> DecodeWeights:
    """DecodeWeights, in `dtype`, of a decoder with or without adapters."""
    head = decoder.lm_head
    text_head = decoder.embed.table[...] if head is None else head.kernel[...].T
    return DecodeWeights(
        text_embed_VD=decoder.embed.table[...].astype(dtype),
        layers=tuple(_layer_weights(decoder, i, dtype) for i in range(decoder.cfg.num_layers)),
        norm_D=decoder.norm.scale[...].astype(dtype),
        text_head_VD=text_head.astype(dtype),
    )


Weights = TypeVar("Weights", bound=DecodeWeights)


def weights_in_panels(params: Weights, rows: int) -> Weights:
    """The same weights for a few rows on one CPU, see `decoding.panels`."""

    def layer(w: LayerWeights) -> LayerWeights:
        return replace(
            w,
            qkv_KfhD=as_panels(w.qkv_KfhD, rows),
            out_DKgh=as_panels(w.out_DKgh, rows, contracted=3),
            gate_up_2FD=as_panels(w.gate_up_2FD, rows),
            down_DF=as_panels(w.down_DF, rows),
        )

    layers = tuple(map(layer, params.layers))
    return replace(params, layers=layers, text_head_VD=as_panels(params.text_head_VD, rows))


def decode_weights_shardings(params: DecodeWeights, mesh: Mesh) -> DecodeWeights:
    """Shardings of (abstract) DecodeWeights by DECODE_RULES; embeddings are not sharded.

    Raises InputError for a size that does not divide.
    """

    def on(x: Matrix | None, *axes: str | None) -> Any:
        return None if x is None else weight_sharding(x, axes, mesh)

    def lora(x: AdapterWeights | None, inputs: Axes, outputs: Axes) -> Any:
        if x is None:
            return None
        return replace(x, a=on(x.a, "lora_rank", *inputs), b=on(x.b, *outputs, "lora_rank"))

    def layer(w: LayerWeights) -> LayerWeights:
        return LayerWeights(
            attention_norm_D=on(w.attention_norm_D, "embed"),
            qkv_KfhD=on(w.qkv_KfhD, "kv_heads", None, None, "embed"),
            qkv_bias_Kfh=on(w.qkv_bias_Kfh, "kv_heads", None, None),
            qk_norm_fh=on(w.qk_norm_fh, None, None),
            out_DKgh=on(w.out_DKgh, "embed", "kv_heads", None, None),
            mlp_norm_D=on(w.mlp_norm_D, "embed"),
            gate_up_2FD=on(w.gate_up_2FD, None, "mlp", "embed"),
            down_DF=on(w.down_DF, "embed", "mlp"),
            qkv_lora=lora(w.qkv_lora, ("embed",), ("kv_heads", None, None)),
            out_lora=lora(w.out_lora, ("kv_heads", None, None), ("embed",)),
            gate_up_lora=lora(w.gate_up_lora, ("embed",), (None, "mlp")),
            down_lora=lora(w.down_lora, ("mlp",), ("embed",)),
        )

    return DecodeWeights(
        text_embed_VD=on(params.text_embed_VD, None, "embed"),
        layers=tuple(layer(w) for w in params.layers),
        norm_D=on(params.norm_D, "embed"),
        text_head_VD=on(params.text_head_VD, "vocab", "embed"),
    )


def weight_sharding(x: Matrix, axes: Axes, mesh: Mesh) -> Any:
    """Sharding of one array with logical `axes` by DECODE_RULES."""
    if isinstance(x, Panels):
        raise TypeError("panels are not sharded")
    return NamedSharding(mesh, partition_spec(axes, x.shape, DECODE_RULES, mesh))
