"""What the sampler's loops read and write: weights laid out for decoding, and the cache.

Letters besides the usual ones: K kv heads, g query heads of each, h head width, N rows of a
segment (P captions, B rows, or 1 for the ramp), S its slots.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gotr1_jax.models.config import DecoderConfig
from gotr1_jax.models.decoder import Decoder
from gotr1_jax.models.janus import JanusPolicy
from gotr1_jax.models.layers import GeluMLP
from gotr1_jax.models.lora import fold_lora
from gotr1_jax.parallel.sharding import SAMPLING_RULES, partition_spec


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerWeights:
    """One block with q, k, v in one matrix and gate, up in another: fewer, larger products.

    Every matrix has its outputs first (see `sampling.forward.project`).

    Attributes:
      attention_norm_D, mlp_norm_D: scales of the two norms.
      qkv_KfhD: f = g + 2 heads for each kv head: its g query heads, then its key and its value.
        Grouped by kv head so that the matrix can be cut over K without moving anything.
      qkv_bias_Kfh: its bias, or None.
      out_DKgh: output projection.
      gate_up_2FD: gate at [0], up at [1].
      down_DF: output of the mlp.
    """

    attention_norm_D: jax.Array
    qkv_KfhD: jax.Array
    qkv_bias_Kfh: jax.Array | None
    out_DKgh: jax.Array
    mlp_norm_D: jax.Array
    gate_up_2FD: jax.Array
    down_DF: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TextParams:
    """A decoder laid out for decoding: adapters folded in, layers apart, one dtype.

    Attributes:
      text_embed_VD: text embedding.
      layers: one entry a layer.
      norm_D: scale of the final norm.
      text_head_VD: text head.
    """

    text_embed_VD: jax.Array
    layers: tuple[LayerWeights, ...]
    norm_D: jax.Array
    text_head_VD: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplingParams(TextParams):
    """A policy laid out for decoding.

    Attributes, besides those of its decoder:
      image_embed_ID: picture embedding with the aligner applied to every code once.
      image_head: first kernel (D, D), first bias, second kernel (I, D), second bias.
    """

    image_embed_ID: jax.Array
    image_head: tuple[jax.Array, jax.Array, jax.Array, jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Segment:
    """Keys and values of one stretch of tokens, an array a layer.

    A segment is written at one slot for all its rows and read whole; `grow` adds slots.

    Attributes:
      k_NKhS: keys with rotary applied; slots last, so that scores are a plain product.
      v_NKSh: values.
    """

    k_NKhS: tuple[jax.Array, ...]
    v_NKSh: tuple[jax.Array, ...]

    @property
    def size(self) -> int:
        """Number of slots."""
        return self.v_NKSh[0].shape[2]


def empty_segment(cfg: DecoderConfig, rows: int, size: int, dtype: jnp.dtype) -> Segment:
    """Zeros for `rows` rows and `size` slots."""
    K, h, L = cfg.num_kv_heads, cfg.head_dim, cfg.num_layers
    keys = tuple(jnp.zeros((rows, K, h, size), dtype) for _ in range(L))
    values = tuple(jnp.zeros((rows, K, size, h), dtype) for _ in range(L))
    return Segment(keys, values)


@partial(jax.jit, static_argnames=("axis", "size"))
def _grow(x: jax.Array, axis: int, size: int) -> jax.Array:
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, pad)


def grow(segment: Segment, size: int) -> Segment:
    """The same segment with `size` slots; `segment` itself is used up.

    One array after another, so that no more than one of them is held twice.
    """
    if segment.size == size:
        return segment

    def one(x: jax.Array, axis: int) -> jax.Array:
        longer = _grow(x, axis, size)
        x.delete()
        return longer

    return Segment(
        tuple(one(k, 3) for k in segment.k_NKhS), tuple(one(v, 2) for v in segment.v_NKSh)
    )


def write_slot(
    segment: Segment, layer: int, slot: jax.Array, k: jax.Array, v: jax.Array
) -> Segment:
    """Segment with k and v (N,K,h) of one token a row at `slot` of `layer`."""
    keys, values = list(segment.k_NKhS), list(segment.v_NKSh)
    zero = jnp.zeros((), slot.dtype)
    keys[layer] = jax.lax.dynamic_update_slice(keys[layer], k[..., None], (zero, zero, zero, slot))
    values[layer] = jax.lax.dynamic_update_slice(
        values[layer], v[:, :, None, :], (zero, zero, slot, zero)
    )
    return Segment(tuple(keys), tuple(values))


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

    return LayerWeights(
        attention_norm_D=block.attention_norm.scale[i].astype(dtype),
        qkv_KfhD=jnp.moveaxis(qkv("kernel"), 0, -1),
        qkv_bias_Kfh=None if block.q.bias is None else qkv("bias"),
        out_DKgh=block.o.kernel[i].T.reshape(D, K, g, h).astype(dtype),
        mlp_norm_D=block.mlp_norm.scale[i].astype(dtype),
        gate_up_2FD=jnp.stack([block.gate.kernel[i].T, block.up.kernel[i].T]).astype(dtype),
        down_DF=block.down.kernel[i].T.astype(dtype),
    )


def lay_out_text(decoder: Decoder, dtype: jnp.dtype) -> TextParams:
    """Weights of a decoder without adapters, in `dtype`, as the loops read them."""
    text_head = (
        decoder.embed.table[...] if decoder.lm_head is None else decoder.lm_head.kernel[...].T
    )
    return TextParams(
        text_embed_VD=decoder.embed.table[...].astype(dtype),
        layers=tuple(_layer_weights(decoder, i, dtype) for i in range(decoder.cfg.num_layers)),
        norm_D=decoder.norm.scale[...].astype(dtype),
        text_head_VD=text_head.astype(dtype),
    )


def lay_out(policy: JanusPolicy, dtype: jnp.dtype) -> SamplingParams:
    """Weights of a policy without adapters, in `dtype`, as the loops read them."""
    head: GeluMLP = policy.gen_head
    assert head.first.bias is not None and head.second.bias is not None
    codes = policy.gen_embed.table[...].astype(dtype)
    text = lay_out_text(policy.decoder, dtype)
    return SamplingParams(
        **{field.name: getattr(text, field.name) for field in fields(text)},
        image_embed_ID=policy.gen_aligner(codes),
        image_head=(
            head.first.kernel[...].T.astype(dtype),
            head.first.bias[...].astype(dtype),
            head.second.kernel[...].T.astype(dtype),
            head.second.bias[...].astype(dtype),
        ),
    )


def prepare_params(
    graphdef: nnx.GraphDef, state: nnx.State, dtype: jnp.dtype | None
) -> SamplingParams:
    """SamplingParams of a split policy with its adapters folded in; for use inside a jit.

    dtype: of weights, activations and cache; None takes the policy's own.
    """
    policy = fold_lora(nnx.merge(graphdef, state))
    assert isinstance(policy, JanusPolicy)
    return lay_out(policy, policy.dtype if dtype is None else dtype)


def text_shardings(params: TextParams, mesh: Mesh) -> TextParams:
    """Shardings of (abstract) TextParams by SAMPLING_RULES; embeddings are whole, to be looked up.

    Raises InputError for a size that does not divide.
    """

    def on(x: jax.Array | None, *axes: str | None) -> Any:
        return None if x is None else _placed(x, axes, mesh)

    def layer(w: LayerWeights) -> LayerWeights:
        return LayerWeights(
            attention_norm_D=on(w.attention_norm_D, "embed"),
            qkv_KfhD=on(w.qkv_KfhD, "kv_heads", None, None, "embed"),
            qkv_bias_Kfh=on(w.qkv_bias_Kfh, "kv_heads", None, None),
            out_DKgh=on(w.out_DKgh, "embed", "kv_heads", None, None),
            mlp_norm_D=on(w.mlp_norm_D, "embed"),
            gate_up_2FD=on(w.gate_up_2FD, None, "mlp", "embed"),
            down_DF=on(w.down_DF, "embed", "mlp"),
        )

    return TextParams(
        text_embed_VD=on(params.text_embed_VD, None, "embed"),
        layers=tuple(layer(w) for w in params.layers),
        norm_D=on(params.norm_D, "embed"),
        text_head_VD=on(params.text_head_VD, "vocab", "embed"),
    )


def _placed(x: jax.Array, axes: tuple[str | None, ...], mesh: Mesh) -> Any:
    return NamedSharding(mesh, partition_spec(axes, x.shape, SAMPLING_RULES, mesh))


def params_shardings(params: SamplingParams, mesh: Mesh) -> SamplingParams:
    """Shardings of (abstract) SamplingParams, as `text_shardings`."""

    first, first_bias, second, second_bias = params.image_head
    text = text_shardings(params, mesh)
    return SamplingParams(
        **{field.name: getattr(text, field.name) for field in fields(text)},
        image_embed_ID=_placed(params.image_embed_ID, (None, "embed"), mesh),
        image_head=(
            _placed(first, ("head_mlp", "embed"), mesh),
            _placed(first_bias, ("head_mlp",), mesh),
            _placed(second, ("image_vocab", "head_mlp"), mesh),
            _placed(second_bias, ("image_vocab",), mesh),
        ),
    )


def segment_sharding(mesh: Mesh) -> NamedSharding:
    """Of every array of a segment: rows over `data` and `fsdp`, kv heads over `tensor`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "tensor"))
