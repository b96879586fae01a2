"""The plan: text tokens until BOI, one loop a bucket of cache slots.

No guidance here; text logits only. Letters as in `sampling.state`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from gotr1_jax.decoding.forward import (
    MASKED,
    rope_table,
    run_layers,
    shared_scores,
    shared_values,
    softmax_parts,
    text_logits,
)
from gotr1_jax.decoding.kv_cache import KVCache, write_slot
from gotr1_jax.decoding.sample_token import TokenSamplingConfig, sample_token
from gotr1_jax.models.config import DecoderConfig
from gotr1_jax.sampler.policy_weights import SamplingParams


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PromptCache:
    """Prompts that were run through the policy once, for all their samples.

    Attributes:
      segment: keys and values, P rows of C slots.
      len_P: int32 filled slots of each prompt.
    """

    segment: KVCache
    len_P: jax.Array

    def per_row(self, rows: int) -> jax.Array:
        """Prompt length of each of `rows` rows (caption-major), int32 (B,)."""
        return jnp.repeat(self.len_P, rows // self.len_P.shape[0])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PlanState:
    """Where the plans stand. All rows are at the same step; a finished row idles along.

    Attributes:
      segment: keys and values of plan tokens, B rows; slot t holds token t. What a row wrote from
        its BOI on is never read.
      hidden_BD: final hidden state of the newest token: it predicts token `step`.
      ids_BT: tokens drawn so far, pads elsewhere; T = max_plan_tokens + 1, room for a forced BOI.
      logp_BT: their log-probabilities, 0 elsewhere.
      len_B: tokens with BOI of a finished row, 0 while it goes on.
      step: int32 scalar, tokens drawn so far.
    """

    segment: KVCache
    hidden_BD: jax.Array
    ids_BT: jax.Array
    logp_BT: jax.Array
    len_B: jax.Array
    step: jax.Array


@dataclass(frozen=True)
class PlanRules:
    """Constants of the phase: sizes, how to draw, special ids."""

    decoder: DecoderConfig
    choice: TokenSamplingConfig
    temperature: float
    boi: int


def start_plans(
    hidden_PD: jax.Array, rows: int, max_tokens: int, segment: KVCache, pad: int
) -> PlanState:
    """State before the first token. hidden_PD: of each prompt's last token."""
    return PlanState(
        segment=segment,
        hidden_BD=jnp.repeat(hidden_PD, rows // hidden_PD.shape[0], axis=0),
        ids_BT=jnp.full((rows, max_tokens + 1), pad, jnp.int32),
        logp_BT=jnp.zeros((rows, max_tokens + 1), jnp.float32),
        len_B=jnp.zeros((rows,), jnp.int32),
        step=jnp.zeros((), jnp.int32),
    )


def plan_token(
    params: SamplingParams, captions: PromptCache, keys_B: jax.Array, state: PlanState,
    rules: PlanRules, rope: tuple[jax.Array, jax.Array],
) -> PlanState:  # fmt: skip
    """Draw one token a row and run it through the decoder."""
    cfg, t = rules.decoder, state.step
    positions_B = captions.per_row(keys_B.shape[0]) + t
    logits = text_logits(params, state.hidden_BD) / rules.temperature
    drawn, logp = sample_token(logits, keys_B, positions_B, rules.choice)
    going = state.len_B == 0
    put = jax.lax.dynamic_update_slice
    old = jax.lax.dynamic_slice(state.ids_BT, (0, t), (drawn.shape[0], 1))[:, 0]
    ids = put(state.ids_BT, jnp.where(going, drawn, old)[:, None], (0, t))
    logps = put(state.logp_BT, jnp.where(going, logp, 0.0)[:, None], (0, t))
    ends = going & (drawn == rules.boi)

    segment, C = state.segment, captions.segment.size
    unfilled = jnp.arange(C) >= captions.len_P[:, None]
    caption_bias = jnp.repeat(jnp.where(unfilled, MASKED, 0.0), len(keys_B) // len(unfilled), 0)
    own_bias = jnp.where(jnp.arange(segment.size) > t, MASKED, 0.0)

    def attend(i: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        nonlocal segment
        segment = write_slot(segment, i, t, k, v)
        q = q * cfg.head_dim**-0.5
        before = shared_scores(q, captions.segment.k_NKhS[i]) + caption_bias[:, None, None]
        own = jnp.einsum("bkgh,bkhs->bkgs", q, segment.k_NKhS[i]).astype(jnp.float32) + own_bias
        weights, inverse = softmax_parts(jnp.concatenate([before, own], axis=-1))
        weights = weights.astype(v.dtype)
        mixed = shared_values(weights[..., :C], captions.segment.v_NKSh[i])
        mixed = mixed + jnp.einsum("bkgs,bksh->bkgh", weights[..., C:], segment.v_NKSh[i])
        return mixed * inverse.astype(v.dtype)

    cos, sin = rope[0][positions_B], rope[1][positions_B]
    hidden = run_layers(params, cfg, params.text_embed_VD[drawn], (cos, sin), attend)
    return PlanState(segment, hidden, ids, logps, jnp.where(ends, t + 1, state.len_B), t + 1)


def run_plan_bucket(
    params: SamplingParams, captions: PromptCache, keys_B: jax.Array, state: PlanState,
    rules: PlanRules,
) -> PlanState:  # fmt: skip
    """Draw tokens until the segment's slots are full or every row has its BOI."""
    size = state.segment.size
    rope = rope_table(rules.decoder, captions.segment.size + size)

    def unfinished(state: PlanState) -> jax.Array:
        return (state.step < size) & jnp.any(state.len_B == 0)

    def step(state: PlanState) -> PlanState:
        return plan_token(params, captions, keys_B, state, rules, rope)

    return jax.lax.while_loop(unfinished, step, state)


def finish_plans(state: PlanState, boi: int) -> tuple[PlanState, jax.Array]:
    """Put BOI behind plans that have none, and mask it out: (state, plan_mask_BT)."""
    T = state.ids_BT.shape[1]
    at_T = jnp.arange(T)
    forced = state.len_B == 0
    length = jnp.where(forced, state.step + 1, state.len_B)
    last = at_T == length[:, None] - 1
    mask = (at_T < length[:, None]) & ~(last & forced[:, None])
    ids = jnp.where(last, boi, state.ids_BT)
    return replace(state, ids_BT=ids, len_B=length), mask
