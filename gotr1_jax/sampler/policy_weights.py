"""A policy's weights as the sampler's loops read them, and their shardings."""

from __future__ import annotations

from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.decoding.weights import TextParams, _placed, lay_out_text, text_shardings
from gotr1_jax.models.janus import JanusPolicy
from gotr1_jax.models.layers import GeluMLP
from gotr1_jax.models.lora import merge_lora


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplingParams(TextParams):
    """A policy laid out for decoding.

    Attributes, besides those of its decoder:
      image_embed_ID: image embedding with the aligner applied to every code once.
      image_head: first kernel (D, D), first bias, second kernel (I, D), second bias.
    """

    image_embed_ID: jax.Array
    image_head: tuple[jax.Array, jax.Array, jax.Array, jax.Array]


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
    policy = merge_lora(nnx.merge(graphdef, state))
    assert isinstance(policy, JanusPolicy)
    return lay_out(policy, policy.dtype if dtype is None else dtype)


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
