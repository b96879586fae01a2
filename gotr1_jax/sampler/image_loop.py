"""The image: U guided tokens after given plans, one compiled loop for each bucket of cache slots.

Both branches of a row run in one batch of N = 2 B rows: row 2 b is the conditional branch of row b,
2 b + 1 the unconditional one (N = B without guidance). Both are then on one device, and guidance
needs no communication. Conditional rows attend to caption and plan, unconditional ones to the
unconditional prefix, which they share; both to their own cache of BOI and image tokens. The rows of
a caption share its cache, the rows of a plan (if it has several images) share the plan's. Letters
as in `decoding.kv_cache`.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gotr1_jax.config import CheckedConfig
from gotr1_jax.decoding.config import TokenSamplingConfig
from gotr1_jax.decoding.forward import MASKED, attend_to_caches, project, rope_table, run_layers
from gotr1_jax.decoding.guidance import guide, join_branches, split_branches
from gotr1_jax.decoding.kv_cache import KVCache, write_slot
from gotr1_jax.decoding.sample_token import sample_token, token_logp
from gotr1_jax.limits import Guidance, Temperature
from gotr1_jax.models.config import DecoderConfig
from gotr1_jax.sampler.plan_loop import PromptCache
from gotr1_jax.sampler.policy_weights import PolicyWeights


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ImageContext:
    """The caches before the images, read as one cache of N rows and C + T slots.

    Attributes:
      prompts: shared by the rows of a caption.
      plans: cache of B / M rows and T slots, without BOI; each serves M rows in a row.
      plan_len_B: int32 plan tokens with BOI: the first plan_len - 1 slots are read.
      uncond_prefix: cache of one row and C + T slots, shared by all unconditional rows; None
        without guidance.
    """

    prompts: PromptCache
    plans: KVCache
    plan_len_B: jax.Array
    uncond_prefix: KVCache | None

    def bias(self, rows: int) -> jax.Array:
        """Additive attention mask (N,1,1,C+T): 0 where a row reads a slot, else MASKED."""
        C, T = self.prompts.cache.size, self.plans.size
        prompt_len = self.prompts.per_row(rows)
        reads_prompt = jnp.arange(C) < prompt_len[:, None]
        reads_plan = jnp.arange(T) < self.plan_len_B[:, None] - 1
        reads = jnp.concatenate([reads_prompt, reads_plan], axis=1)
        if self.uncond_prefix is not None:
            uncond = jnp.arange(C + T) < (prompt_len + self.plan_len_B - 1)[:, None]
            reads = join_branches(reads, uncond)
        return jnp.where(reads, 0.0, MASKED)[:, None, None]

    def scores(self, layer: int, q_NKgh: jax.Array) -> jax.Array:
        """As `KVCache.scores`: (N,K,g,C+T)."""
        cond, *uncond = split_branches(q_NKgh, self.plan_len_B.shape[0])
        prompt, plan = (c.scores(layer, cond) for c in (self.prompts.cache, self.plans))
        scores = jnp.concatenate([prompt, plan], axis=-1)
        if self.uncond_prefix is None:
            return scores
        return join_branches(scores, self.uncond_prefix.scores(layer, uncond[0]))

    def values(self, layer: int, weights: jax.Array) -> jax.Array:
        """As `KVCache.values`, with weights (N,K,g,C+T): (N,K,g,h)."""
        C = self.prompts.cache.size
        cond, *uncond = split_branches(weights, self.plan_len_B.shape[0])
        mixed = self.prompts.cache.values(layer, cond[..., :C])
        mixed = mixed + self.plans.values(layer, cond[..., C:])
        if self.uncond_prefix is None:
            return mixed
        return join_branches(mixed, self.uncond_prefix.values(layer, uncond[0]))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ImageState:
    """State of the loop; all rows are at the same step.

    Attributes:
      cache: N rows; slot 0 is BOI, slot u is image token u - 1.
      x_ND: embedding of the next input.
      ids_BU, logp_BU: tokens sampled so far and their guided log-probabilities, 0 elsewhere.
      cond_logp_BU: their log-probabilities without guidance, or None if they are not recorded.
      step: int32 scalar, tokens sampled so far.
    """

    cache: KVCache
    x_ND: jax.Array
    ids_BU: jax.Array
    logp_BU: jax.Array
    cond_logp_BU: jax.Array | None
    step: jax.Array


@dataclass(frozen=True)
class ImageLoopConfig(CheckedConfig):
    """Static settings of the loop; guidance 1: no unconditional branch.

    record_conditional: also score each token without guidance; needs guidance.
    """

    decoder: DecoderConfig
    sampling: TokenSamplingConfig
    temperature: Temperature
    guidance: Guidance
    record_conditional: bool = False


def start_images(
    params: PolicyWeights, rows: int, tokens: int, cache: KVCache, boi: int,
    record_conditional: bool = False,
) -> ImageState:  # fmt: skip
    """State before the first token; BOI is the next input. The cache's rows are those of all
    branches."""
    x = params.text_embed_VD[boi]
    no_logp = jnp.zeros((rows, tokens), jnp.float32)
    return ImageState(
        cache=cache,
        x_ND=jnp.broadcast_to(x, (cache.k_NKhS[0].shape[0], x.shape[0])),
        ids_BU=jnp.zeros((rows, tokens), jnp.int32),
        logp_BU=no_logp,
        cond_logp_BU=no_logp if record_conditional else None,
        step=jnp.zeros((), jnp.int32),
    )


def image_token(
    params: PolicyWeights, context: ImageContext, keys_B: jax.Array, state: ImageState,
    config: ImageLoopConfig, rope: tuple[jax.Array, jax.Array], context_bias: jax.Array,
) -> ImageState:  # fmt: skip
    """Run the next input through the decoder and sample one token per row."""
    u, B, cache = state.step, keys_B.shape[0], state.cache
    branches = state.x_ND.shape[0] // B
    # BOI is at position context_len - 1; input u predicts the token one position later.
    sampled_at_B = context.prompts.per_row(B) + context.plan_len_B + u
    positions_N = jnp.repeat(sampled_at_B - 1, branches)
    own_bias = jnp.where(jnp.arange(cache.size) > u, MASKED, 0.0)

    def attend(i: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        nonlocal cache
        cache = write_slot(cache, i, u, k, v)
        return attend_to_caches(i, q, [(context, context_bias), (cache, own_bias)])

    cos, sin = rope[0][positions_N], rope[1][positions_N]
    hidden = run_layers(params, config.decoder, state.x_ND, (cos, sin), attend)
    guided, *cond = image_logits(params, hidden, config.guidance, config.record_conditional)
    sampled, logp = sample_token(guided / config.temperature, keys_B, sampled_at_B, config.sampling)
    put = jax.lax.dynamic_update_slice
    cond_logps = state.cond_logp_BU
    if cond_logps is not None:
        cond_logp = token_logp(cond[0] / config.temperature, sampled)
        cond_logps = put(cond_logps, cond_logp[:, None], (0, u))
    return ImageState(
        cache=cache,
        x_ND=jnp.repeat(params.image_embed_ID[sampled], branches, axis=0),
        ids_BU=put(state.ids_BU, sampled[:, None], (0, u)),
        logp_BU=put(state.logp_BU, logp[:, None], (0, u)),
        cond_logp_BU=cond_logps,
        step=u + 1,
    )


def run_image_bucket(
    params: PolicyWeights, context: ImageContext, keys_B: jax.Array, state: ImageState,
    config: ImageLoopConfig,
) -> ImageState:  # fmt: skip
    """Sample tokens until the cache is full."""
    size = state.cache.size
    before = context.prompts.cache.size + context.plans.size
    rope = rope_table(config.decoder, before + 1 + size)
    context_bias = context.bias(keys_B.shape[0])

    def step(state: ImageState) -> ImageState:
        return image_token(params, context, keys_B, state, config, rope, context_bias)

    return jax.lax.while_loop(lambda state: state.step < size, step, state)


def image_logits(
    params: PolicyWeights, hidden_ND: jax.Array, weight: float, conditional: bool = False
) -> tuple[jax.Array, ...]:
    """Guided logits, float32 (B,I), of N = 2 B hidden states, branches of a row adjacent.

    With weight 1 there is one branch, N = B. The last layer is affine, so guidance is applied to
    its input: the same logits as at its output, for half of the computation.

    conditional: also return those of the conditional branch; the last layer's weights are still
    read once.
    """
    first, first_bias, second, second_bias = params.image_head
    inner = jax.nn.gelu(project(hidden_ND, first) + first_bias, approximate=False)
    if weight != 1.0:
        cond, uncond = split_branches(inner, inner.shape[0] // 2)
        inner = guide(cond.astype(jnp.float32), uncond.astype(jnp.float32), weight)
        inner = inner.astype(cond.dtype)
        if conditional:
            inner = join_branches(inner, cond)
    logits = project(inner, second, dtype=jnp.float32) + second_bias
    return split_branches(logits, logits.shape[0] // 2) if conditional else (logits,)
