"""The plan: text tokens until BOI without guidance, one compiled loop per bucket of cache slots.

Letters as in `decoding.kv_cache`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import jax
import jax.numpy as jnp

from gotr1_jax.config import CheckedConfig
from gotr1_jax.decoding.config import TokenSamplingConfig
from gotr1_jax.decoding.forward import (
    MASKED,
    attend_to_caches,
    rope_table,
    run_layers,
    text_logits,
)
from gotr1_jax.decoding.kv_cache import KVCache, write_slot
from gotr1_jax.decoding.sample_token import sample_token
from gotr1_jax.limits import Range, Temperature
from gotr1_jax.models.config import DecoderConfig
from gotr1_jax.sampler.policy_weights import PolicyWeights


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PromptCache:
    """KV cache of prompts, shared by all samples of a caption.

    Attributes:
      cache: P rows of C slots.
      len_P: int32 number of filled slots of each prompt.
    """

    cache: KVCache
    len_P: jax.Array

    def per_row(self, rows: int) -> jax.Array:
        """Prompt length of each of `rows` rows (caption-major), int32 (B,)."""
        return jnp.repeat(self.len_P, rows // self.len_P.shape[0])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PlanState:
    """State of the loop. All rows are at the same step; tokens of finished rows are discarded.

    Attributes:
      cache: B rows; slot t is plan token t. Slots from a row's BOI on are never read.
      hidden_BD: final hidden state of the newest token, which predicts token `step`.
      ids_BT: tokens sampled so far, pads elsewhere; T = max_plan_tokens + 1, for a forced BOI.
      logp_BT: their log-probabilities, 0 elsewhere.
      len_B: tokens of a finished row, BOI included; 0 for an unfinished row.
      step: int32 scalar, tokens sampled so far.
    """

    cache: KVCache
    hidden_BD: jax.Array
    ids_BT: jax.Array
    logp_BT: jax.Array
    len_B: jax.Array
    step: jax.Array


@dataclass(frozen=True)
class PlanLoopConfig(CheckedConfig):
    """Static settings of the loop; `end` is the token that ends a row."""

    decoder: DecoderConfig
    sampling: TokenSamplingConfig
    temperature: Temperature
    # -1: no token ends it.
    end: Annotated[int, Range("[-1, 10000000]")]


def start_plans(
    hidden_PD: jax.Array, rows: int, max_tokens: int, cache: KVCache, pad: int
) -> PlanState:
    """State before the first token. hidden_PD: hidden state of each prompt's last token."""
    return PlanState(
        cache=cache,
        hidden_BD=jnp.repeat(hidden_PD, rows // hidden_PD.shape[0], axis=0),
        ids_BT=jnp.full((rows, max_tokens + 1), pad, jnp.int32),
        logp_BT=jnp.zeros((rows, max_tokens + 1), jnp.float32),
        len_B=jnp.zeros((rows,), jnp.int32),
        step=jnp.zeros((), jnp.int32),
    )


def plan_token(
    params: PolicyWeights, prompts: PromptCache, keys_B: jax.Array, state: PlanState,
    config: PlanLoopConfig, rope: tuple[jax.Array, jax.Array],
) -> PlanState:  # fmt: skip
    """Sample one token per row and run it through the decoder."""
    t, cache = state.step, state.cache
    positions_B = prompts.per_row(keys_B.shape[0]) + t
    logits = text_logits(params, state.hidden_BD) / config.temperature
    sampled, logp = sample_token(logits, keys_B, positions_B, config.sampling)
    unfinished = state.len_B == 0
    put = jax.lax.dynamic_update_slice
    old = jax.lax.dynamic_slice(state.ids_BT, (0, t), (sampled.shape[0], 1))[:, 0]
    ids = put(state.ids_BT, jnp.where(unfinished, sampled, old)[:, None], (0, t))
    logps = put(state.logp_BT, jnp.where(unfinished, logp, 0.0)[:, None], (0, t))
    ends = unfinished & (sampled == config.end)

    unfilled = jnp.arange(prompts.cache.size) >= prompts.len_P[:, None]
    prompt_bias = jnp.repeat(jnp.where(unfilled, MASKED, 0.0), len(keys_B) // len(unfilled), 0)
    own_bias = jnp.where(jnp.arange(cache.size) > t, MASKED, 0.0)

    def attend(i: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        nonlocal cache
        cache = write_slot(cache, i, t, k, v)
        both = [(prompts.cache, prompt_bias[:, None, None]), (cache, own_bias)]
        return attend_to_caches(i, q, both)

    cos, sin = rope[0][positions_B], rope[1][positions_B]
    x = params.text_embed_VD[sampled]
    hidden = run_layers(params, config.decoder, x, (cos, sin), attend)
    return PlanState(cache, hidden, ids, logps, jnp.where(ends, t + 1, state.len_B), t + 1)


def run_plan_bucket(
    params: PolicyWeights, prompts: PromptCache, keys_B: jax.Array, state: PlanState,
    config: PlanLoopConfig,
) -> PlanState:  # fmt: skip
    """Sample tokens until the cache is full or every row has its end token."""
    size = state.cache.size
    rope = rope_table(config.decoder, prompts.cache.size + size)

    def unfinished(state: PlanState) -> jax.Array:
        return (state.step < size) & jnp.any(state.len_B == 0)

    def step(state: PlanState) -> PlanState:
        return plan_token(params, prompts, keys_B, state, config, rope)

    return jax.lax.while_loop(unfinished, step, state)


def finish_plans(state: PlanState, boi: int) -> tuple[PlanState, jax.Array]:
    """Append BOI to plans without one: (state, plan_mask_BT), the mask False on a forced BOI."""
    at_T = jnp.arange(state.ids_BT.shape[1])
    forced = state.len_B == 0
    length = jnp.where(forced, state.step + 1, state.len_B)
    last = at_T == length[:, None] - 1
    mask = (at_T < length[:, None]) & ~(last & forced[:, None])
    ids = jnp.where(last, boi, state.ids_BT)
    return replace(state, ids_BT=ids, len_B=length), mask
