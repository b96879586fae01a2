"""The image: U tokens under guidance behind given plans, one loop a bucket of cache slots.

Both branches of a row run side by side, N = 2 B rows: 2 b is the conditional one of row b, 2 b + 1
the other (N = B without guidance). So they lie on one device, and guidance moves nothing over the
mesh. The conditional ones read caption and plan, the others the one ramp of BOS and pads; behind
it each has its own segment of BOI and image tokens. Letters as in `sampling.state`.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gotr1_jax.decoding.forward import (
    MASKED,
    project,
    rope_table,
    run_layers,
    shared_scores,
    shared_values,
    softmax_parts,
)
from gotr1_jax.decoding.guidance import guide, join_branches, split_branches
from gotr1_jax.decoding.kv_cache import KVCache, write_slot
from gotr1_jax.decoding.sample_token import TokenSamplingConfig, sample_token
from gotr1_jax.models.config import DecoderConfig
from gotr1_jax.sampler.plan_loop import PromptCache
from gotr1_jax.sampler.policy_weights import SamplingParams


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ImageContext:
    """What stands in front of the images; only read.

    Attributes:
      captions: prompts, shared by the rows of a caption.
      plans: segment of B rows and T slots, without BOI.
      plan_len_B: int32 plan tokens with BOI: the first plan_len - 1 slots are read.
      ramp: segment of one row and C + T slots that all unconditional rows share, or None.
    """

    captions: PromptCache
    plans: KVCache
    plan_len_B: jax.Array
    ramp: KVCache | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ImageState:
    """Where the images stand; all rows are at the same step.

    Attributes:
      segment: N rows; slot 0 holds BOI, slot u the image token u - 1.
      x_ND: embedding of the next input.
      ids_BU, logp_BU: tokens drawn so far and their guided log-probabilities, 0 elsewhere.
      step: int32 scalar, tokens drawn so far.
    """

    segment: KVCache
    x_ND: jax.Array
    ids_BU: jax.Array
    logp_BU: jax.Array
    step: jax.Array


@dataclass(frozen=True)
class ImageRules:
    """Constants of the phase: sizes, how to draw, guidance weight (1: no second branch)."""

    decoder: DecoderConfig
    choice: TokenSamplingConfig
    temperature: float
    guidance: float


def start_images(
    params: SamplingParams, rows: int, branches: int, tokens: int, segment: KVCache, boi: int
) -> ImageState:
    """State before the first token, BOI being the next input."""
    x = params.text_embed_VD[boi]
    return ImageState(
        segment=segment,
        x_ND=jnp.broadcast_to(x, (branches * rows, x.shape[0])),
        ids_BU=jnp.zeros((rows, tokens), jnp.int32),
        logp_BU=jnp.zeros((rows, tokens), jnp.float32),
        step=jnp.zeros((), jnp.int32),
    )


def _prefix_bias(context: ImageContext, rows: int) -> jax.Array:
    """0 where a row (N,1,1,C+T) reads the slots in front of its image, MASKED elsewhere."""
    C, T = context.captions.segment.size, context.plans.size
    caption_len = context.captions.per_row(rows)
    reads_caption = jnp.arange(C) < caption_len[:, None]
    reads_plan = jnp.arange(T) < context.plan_len_B[:, None] - 1
    reads = jnp.concatenate([reads_caption, reads_plan], axis=1)
    if context.ramp is not None:
        reads_ramp = jnp.arange(C + T) < (caption_len + context.plan_len_B - 1)[:, None]
        reads = join_branches(reads, reads_ramp)
    return jnp.where(reads, 0.0, MASKED)[:, None, None]


def _prefix_scores(context: ImageContext, layer: int, q_NKgh: jax.Array) -> jax.Array:
    """Scores (N,K,g,C+T): conditional rows against captions and plans, others against the ramp."""
    cond, *uncond = split_branches(q_NKgh, context.plan_len_B.shape[0])
    caption = shared_scores(cond, context.captions.segment.k_NKhS[layer])
    plan = jnp.einsum("bkgh,bkhs->bkgs", cond, context.plans.k_NKhS[layer]).astype(jnp.float32)
    scores = jnp.concatenate([caption, plan], axis=-1)
    if context.ramp is not None:
        ramp = shared_scores(uncond[0], context.ramp.k_NKhS[layer])
        scores = join_branches(scores, ramp)
    return scores


def _prefix_values(context: ImageContext, layer: int, weights: jax.Array) -> jax.Array:
    """Values (N,K,g,h) of captions, plans and ramp under weights (N,K,g,C+T)."""
    B, C = context.plan_len_B.shape[0], context.captions.segment.size
    cond, *uncond = split_branches(weights, B)
    mixed = shared_values(cond[..., :C], context.captions.segment.v_NKSh[layer])
    plans = context.plans.v_NKSh[layer]
    mixed = mixed + jnp.einsum("bkgs,bksh->bkgh", cond[..., C:], plans)
    if context.ramp is not None:
        ramp = shared_values(uncond[0], context.ramp.v_NKSh[layer])
        mixed = join_branches(mixed, ramp)
    return mixed


def image_token(
    params: SamplingParams, context: ImageContext, keys_B: jax.Array, state: ImageState,
    rules: ImageRules, rope: tuple[jax.Array, jax.Array], prefix_bias: jax.Array,
) -> ImageState:  # fmt: skip
    """Run the next input through the decoder and draw one token a row."""
    cfg, u, B = rules.decoder, state.step, keys_B.shape[0]
    branches, width = state.x_ND.shape[0] // B, prefix_bias.shape[-1]
    # BOI stands at context_len - 1, and the token that input u predicts one further.
    drawn_at_B = context.captions.per_row(B) + context.plan_len_B + u
    positions_N = jnp.repeat(drawn_at_B - 1, branches)
    segment = state.segment
    own_bias = jnp.where(jnp.arange(segment.size) > u, MASKED, 0.0)

    def attend(i: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        nonlocal segment
        segment = write_slot(segment, i, u, k, v)
        q = q * cfg.head_dim**-0.5
        before = _prefix_scores(context, i, q) + prefix_bias
        own = jnp.einsum("nkgh,nkhs->nkgs", q, segment.k_NKhS[i]).astype(jnp.float32) + own_bias
        weights, inverse = softmax_parts(jnp.concatenate([before, own], axis=-1))
        weights = weights.astype(v.dtype)
        mixed = jnp.einsum("nkgs,nksh->nkgh", weights[..., width:], segment.v_NKSh[i])
        mixed = mixed + _prefix_values(context, i, weights[..., :width])
        return mixed * inverse.astype(v.dtype)

    cos, sin = rope[0][positions_N], rope[1][positions_N]
    hidden = run_layers(params, cfg, state.x_ND, (cos, sin), attend)
    logits = image_logits(params, hidden, rules.guidance)
    drawn, logp = sample_token(logits / rules.temperature, keys_B, drawn_at_B, rules.choice)
    put = jax.lax.dynamic_update_slice
    return ImageState(
        segment=segment,
        x_ND=jnp.repeat(params.image_embed_ID[drawn], branches, axis=0),
        ids_BU=put(state.ids_BU, drawn[:, None], (0, u)),
        logp_BU=put(state.logp_BU, logp[:, None], (0, u)),
        step=u + 1,
    )


def run_image_bucket(
    params: SamplingParams, context: ImageContext, keys_B: jax.Array, state: ImageState,
    rules: ImageRules,
) -> ImageState:  # fmt: skip
    """Draw tokens until the segment's slots are full."""
    size = state.segment.size
    before = context.captions.segment.size + context.plans.size
    rope = rope_table(rules.decoder, before + 1 + size)
    prefix_bias = _prefix_bias(context, keys_B.shape[0])

    def step(state: ImageState) -> ImageState:
        return image_token(params, context, keys_B, state, rules, rope, prefix_bias)

    return jax.lax.while_loop(lambda state: state.step < size, step, state)


def image_logits(params: SamplingParams, hidden_ND: jax.Array, weight: float) -> jax.Array:
    """Guided logits, float32 (B,I), of N = 2 B hidden states, a row's two side by side.

    weight 1: N = B, there is one branch. The last layer is affine, so guiding what it reads is
    guiding what it makes, at half of the work.
    """
    first, first_bias, second, second_bias = params.image_head
    inner = jax.nn.gelu(project(hidden_ND, first) + first_bias, approximate=False)
    if weight != 1.0:
        cond, uncond = split_branches(inner.astype(jnp.float32), inner.shape[0] // 2)
        inner = guide(cond, uncond, weight).astype(hidden_ND.dtype)
    return (project(inner, second) + second_bias).astype(jnp.float32)
