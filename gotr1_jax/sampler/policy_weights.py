"""A policy's weights for decoding, and their shardings."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.decoding.panels import Matrix, as_panels
from gotr1_jax.decoding.weights import (
    DecodeWeights,
    decode_weights,
    decode_weights_shardings,
    weight_sharding,
    weights_in_panels,
)
from gotr1_jax.models.janus import JanusPolicy
from gotr1_jax.models.layers import GeluMLP


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PolicyWeights(DecodeWeights):
    """A policy's weights: layers unstacked, one dtype, LoRA beside its matrices.

    Attributes, in addition to those of `DecodeWeights`:
      image_embed_ID: image embedding after the aligner, of every code.
      image_head: first kernel (D, D), first bias, second kernel (I, D), second bias.
    """

    image_embed_ID: jax.Array
    image_head: tuple[Matrix, jax.Array, Matrix, jax.Array]


def policy_weights(policy: JanusPolicy, dtype: jnp.dtype) -> PolicyWeights:
    """PolicyWeights, in `dtype`, of a policy with or without adapters."""
    head: GeluMLP = policy.gen_head
    assert head.first.bias is not None and head.second.bias is not None
    codes = policy.gen_embed.table[...].astype(dtype)
    text = decode_weights(policy.decoder, dtype)
    return PolicyWeights(
        **{field.name: getattr(text, field.name) for field in fields(text)},
        image_embed_ID=policy.gen_aligner(codes),
        image_head=(
            head.first.kernel[...].T.astype(dtype),
            head.first.bias[...].astype(dtype),
            head.second.kernel[...].T.astype(dtype),
            head.second.bias[...].astype(dtype),
        ),
    )


def policy_weights_in_panels(params: PolicyWeights, rows: int) -> PolicyWeights:
    """The same weights for a few rows on one CPU, see `decoding.panels`."""
    first, first_bias, second, second_bias = params.image_head
    head = as_panels(first, rows), first_bias, as_panels(second, rows), second_bias
    return replace(weights_in_panels(params, rows), image_head=head)


def prepare_policy_weights(
    graphdef: nnx.GraphDef, state: nnx.State, dtype: jnp.dtype | None
) -> PolicyWeights:
    """The PolicyWeights of a split policy; for use inside a jit.

    dtype: of weights, activations and cache; None: the policy's.
    """
    policy = nnx.merge(graphdef, state)
    assert isinstance(policy, JanusPolicy)
    return policy_weights(policy, policy.dtype if dtype is None else dtype)


def policy_weights_shardings(params: PolicyWeights, mesh: Mesh) -> PolicyWeights:
    """Shardings of (abstract) PolicyWeights, as `decode_weights_shardings`."""
    axes = (("head_mlp", "embed"), ("head_mlp",), ("image_vocab", "head_mlp"), ("image_vocab",))
    head = tuple(weight_sharding(x, names, mesh) for x, names in zip(params.image_head, axes))
    text = decode_weights_shardings(params, mesh)
    return PolicyWeights(
        **{field.name: getattr(text, field.name) for field in fields(text)},
        image_embed_ID=weight_sharding(params.image_embed_ID, (None, "embed"), mesh),
        image_head=head,
    )
