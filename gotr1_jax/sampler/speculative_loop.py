"""The image in fewer forward passes: a window of drafts is checked by each (Jacobi decoding).

A sampled token is a function of the tokens before it: with Gumbel noise of its key and position
added to the logits, it is the largest one, as in `sample_token`. A pass evaluates that function for
W positions at once, on drafts of the tokens before them. The first W - 1 drafts of a row are then
compared with what the pass found. Drafts that are found again, up to the first that is not, are the
tokens of sampling one by one, and so is the token found after them: one to W tokens a pass. What
was found for later positions are their next drafts.

The samples are those of `image_loop`, by whatever window: their distribution is kept, without the
acceptance rule and the residual distribution of speculative sampling. The common noise also
couples the drafts of successive passes, which keeps them stable. A draft is kept with a probability
of (1 - d) / (1 + d) or more (arXiv 2408.07978), where d is the total variation between the
distributions that two passes give its position; the best coupling keeps it with 1 - d.

Sources: fixed-point iteration with common noise, arXiv 2002.09928; speculative Jacobi decoding of
images, arXiv 2410.01699; coupled drafts, arXiv 2510.24211. W: positions of the window. Other
letters as in `image_loop`.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gotr1_jax.decoding.forward import MASKED, attend_to_caches, rope_table, run_layers
from gotr1_jax.decoding.kv_cache import KVCache, write_slots
from gotr1_jax.decoding.sample_token import sample_token, token_logp
from gotr1_jax.sampler.image_loop import ImageContext, ImageLoopConfig, image_logits
from gotr1_jax.sampler.policy_weights import PolicyWeights


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SpeculativeImages:
    """The images.

    Attributes:
      ids_BU, logp_BU, cond_logp_BU: as in `ImageState`.
      passes_B: int32 forward passes until a row was complete, 1 to U.
    """

    ids_BU: jax.Array
    logp_BU: jax.Array
    cond_logp_BU: jax.Array | None
    passes_B: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _State:
    """State of the loop; each row is at a length of its own, and complete rows wait.

    X = U + W, so that the window of a complete row is inside of the arrays.

    Attributes:
      cache: N rows of X slots, as in `ImageState`; slots from a row's length on are not final.
      tokens_BX1: int32 inputs of the X slots and one more: column 0 stands for BOI, column u + 1 is
        image token u, where u is not below the length a draft.
      logp_BX, cond_logp_BX: log-probabilities, final below the length.
      len_B: int32 tokens that are final.
      passes_B: see `SpeculativeImages`.
    """

    cache: KVCache
    tokens_BX1: jax.Array
    logp_BX: jax.Array
    cond_logp_BX: jax.Array | None
    len_B: jax.Array
    passes_B: jax.Array


def speculative_images(
    params: PolicyWeights, context: ImageContext, keys_B: jax.Array, cache: KVCache, boi: int,
    config: ImageLoopConfig, window: int,
) -> SpeculativeImages:  # fmt: skip
    """Sample U tokens for each row.

    cache: empty, of N rows and U + W slots.
    """
    X, B = cache.size, keys_B.shape[0]
    U = X - window
    none_B, no_logp = jnp.zeros((B,), jnp.int32), jnp.zeros((B, X), jnp.float32)
    state = _State(
        cache=cache,
        tokens_BX1=jnp.zeros((B, X + 1), jnp.int32),
        logp_BX=no_logp,
        cond_logp_BX=no_logp if config.record_conditional else None,
        len_B=none_B,
        passes_B=none_B,
    )
    before = context.prompts.cache.size + context.plans.size
    rope, context_bias = rope_table(config.decoder, before + 1 + X), context.bias(B)

    def one_pass(state: _State) -> _State:
        found = _forward(params, context, keys_B, state, boi, config, window, rope, context_bias)
        return _accept(state, *found, tokens=U)

    state = jax.lax.while_loop(lambda state: jnp.any(state.len_B < U), one_pass, state)
    cond_logp = state.cond_logp_BX
    return SpeculativeImages(
        ids_BU=state.tokens_BX1[:, 1 : U + 1],
        logp_BU=state.logp_BX[:, :U],
        cond_logp_BU=None if cond_logp is None else cond_logp[:, :U],
        passes_B=state.passes_B,
    )


def _forward(
    params: PolicyWeights, context: ImageContext, keys_B: jax.Array, state: _State, boi: int,
    config: ImageLoopConfig, W: int, rope: tuple[jax.Array, jax.Array], context_bias: jax.Array,
) -> tuple[KVCache, jax.Array, jax.Array, jax.Array | None]:  # fmt: skip
    """The decoder on the next W inputs of each row: the cache with their slots written, the tokens
    (B,W) that follow each of them, their log-probabilities, and those without guidance."""
    B, cache = keys_B.shape[0], state.cache
    N = cache.k_NKhS[0].shape[0]
    branches = N // B
    slots_BW = state.len_B[:, None] + jnp.arange(W)
    x_BWD = params.image_embed_ID[_read(state.tokens_BX1, state.len_B, W)]
    x_BWD = jnp.where((slots_BW == 0)[..., None], params.text_embed_VD[boi], x_BWD)
    sampled_at_BW = (context.prompts.per_row(B) + context.plan_len_B)[:, None] + slots_BW
    # Rows of both branches, as `join_branches` orders them.
    x_NWD, slots_NW, positions_NW = (
        jnp.repeat(x, branches, axis=0) for x in (x_BWD, slots_BW, sampled_at_BW - 1)
    )
    own_bias_NWS = jnp.where(jnp.arange(cache.size) > slots_NW[..., None], MASKED, 0.0)

    def attend(i: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        nonlocal cache
        cache = write_slots(cache, i, slots_NW[:, 0], k, v)
        K, g, h = q.shape[2:]
        # (N, K, W * g, h): to a cache, the queries of a window are more heads of one row.
        by_row = q.swapaxes(1, 2).reshape(N, K, W * g, h)
        own_bias = jnp.repeat(own_bias_NWS, g, axis=1)[:, None]
        mixed = attend_to_caches(i, by_row, [(context, context_bias), (cache, own_bias)])
        return mixed.reshape(N, K, W, g, h).swapaxes(1, 2)

    cos, sin = rope[0][positions_NW], rope[1][positions_NW]
    hidden_NWD = run_layers(params, config.decoder, x_NWD, (cos, sin), attend)
    # The branches of a token side by side.
    D = hidden_NWD.shape[-1]
    hidden = hidden_NWD.reshape(B, branches, W, D).swapaxes(1, 2).reshape(B * W * branches, D)
    guided, *cond = image_logits(params, hidden, config.guidance, config.record_conditional)
    ids, logp = sample_token(
        guided / config.temperature, jnp.repeat(keys_B, W), sampled_at_BW.reshape(-1),
        config.sampling,
    )  # fmt: skip
    cond_logp = None
    if config.record_conditional:
        cond_logp = token_logp(cond[0] / config.temperature, ids).reshape(B, W)
    return cache, ids.reshape(B, W), logp.reshape(B, W), cond_logp


def _accept(
    state: _State, cache: KVCache, ids_BW: jax.Array, logp_BW: jax.Array,
    cond_logp_BW: jax.Array | None, tokens: int,
) -> _State:  # fmt: skip
    """The state after a pass that found `ids_BW` for the window's positions."""
    W, start_B = ids_BW.shape[1], state.len_B
    drafts_BW = _read(state.tokens_BX1, start_B + 1, W)
    # The window's last draft was no input, so nothing was found after it.
    same = (drafts_BW == ids_BW)[:, : W - 1]
    found_again_B = jnp.cumprod(same.astype(jnp.int32), axis=1).sum(axis=1)
    cond_logp = state.cond_logp_BX
    if cond_logp is not None and cond_logp_BW is not None:
        cond_logp = _write(cond_logp, cond_logp_BW, start_B)
    return _State(
        cache=cache,
        tokens_BX1=_write(state.tokens_BX1, ids_BW, start_B + 1),
        logp_BX=_write(state.logp_BX, logp_BW, start_B),
        cond_logp_BX=cond_logp,
        len_B=jnp.minimum(start_B + found_again_B + 1, tokens),
        passes_B=state.passes_B + (start_B < tokens),
    )


def _read(x_BX: jax.Array, start_B: jax.Array, size: int) -> jax.Array:
    """`size` columns of each row from its start on."""
    return jax.vmap(lambda x, at: jax.lax.dynamic_slice_in_dim(x, at, size))(x_BX, start_B)


def _write(x_BX: jax.Array, new_BW: jax.Array, start_B: jax.Array) -> jax.Array:
    """Inverse of `_read`: x with the columns `new`."""
    put = jax.lax.dynamic_update_slice_in_dim
    return jax.vmap(lambda x, new, at: put(x, new, at, axis=0))(x_BX, new_BW, start_B)
