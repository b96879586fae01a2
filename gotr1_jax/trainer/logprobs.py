"""Teacher-forced log-probabilities: a full forward of given tokens, which training differentiates.

Text logits are computed at plan positions only and image logits at image positions only, a chunk
of positions at a time, so logits of all positions over a vocabulary of 100 000 never exist at
once. The unconditional branch runs the unconditional prefix (BOS and pads) once for all rows; a
row adds only its BOI and image tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gotr1_jax.decoding.config import LogpConfig
from gotr1_jax.decoding.guidance import guide
from gotr1_jax.models.attention import attention, flash_attention_behind
from gotr1_jax.models.decoder import Decoder, checkpointed
from gotr1_jax.models.flash import AttentionMask
from gotr1_jax.models.janus import JanusPolicy
from gotr1_jax.sampler.token_batch import TokenBatch, embed_rows, unconditional_prefix
from gotr1_jax.tokenizers.janus import SpecialIds


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenLogps:
    """Scores of B samples, float32, nats; N = T + U: plan tokens, then image tokens.

    Attributes:
      logp_BN: log-probability of each token.
      entropy_BN: entropy of the distribution that the token was sampled from.
    Both are 0 where `TokenBatch.sampled_mask_BN` is False.
    """

    logp_BN: jax.Array
    entropy_BN: jax.Array


def prefix_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, prefix_k: jax.Array, prefix_v: jax.Array,
    prefix_len_B: jax.Array,
) -> jax.Array:  # fmt: skip
    """Causal attention that also sees the first `prefix_len_B` tokens of a shared prefix.

    q (B,U,H,C), k and v (B,U,K,C), prefix_k and prefix_v (1,R,K,C) -> (B,U,H,C).
    """
    B, U, H, C = q.shape
    K, R = k.shape[2], prefix_k.shape[1]
    by_kernel = flash_attention_behind(q, k, v, [(prefix_k, prefix_v, prefix_len_B)])
    if by_kernel is not None:
        return by_kernel
    q = q.reshape(B, U, K, H // K, C) * C**-0.5
    wide = {"preferred_element_type": jnp.float32}
    shared = jnp.einsum("bukgc,rkc->bkgur", q, prefix_k[0], **wide)
    own = jnp.einsum("bukgc,bwkc->bkguw", q, k, **wide)
    in_prefix = jnp.arange(R)[None, :] < prefix_len_B[:, None]
    shared = jnp.where(in_prefix[:, None, None, None, :], shared, -jnp.inf)
    own = jnp.where(jnp.tril(jnp.ones((U, U), bool)), own, -jnp.inf)
    weights = jax.nn.softmax(jnp.concatenate([shared, own], axis=-1), axis=-1).astype(v.dtype)
    mixed = jnp.einsum("bkgur,rkc->bukgc", weights[..., :R], prefix_v[0], **wide)
    mixed = mixed + jnp.einsum("bkguw,bwkc->bukgc", weights[..., R:], v, **wide)
    return mixed.astype(v.dtype).reshape(B, U, H, C)


def _forward_on_prefix(
    decoder: Decoder, prefix_1RD: jax.Array, own_BUD: jax.Array, prefix_len_B: jax.Array
) -> jax.Array:
    """Hidden states (B,U,D) of tokens that follow the first `prefix_len_B` tokens of a prefix."""
    R, U = prefix_1RD.shape[1], own_BUD.shape[1]
    prefix_rope = decoder.rope(jnp.arange(R, dtype=jnp.int32)[None, :])
    own_rope = decoder.rope(prefix_len_B[:, None] + jnp.arange(U, dtype=jnp.int32)[None, :])
    graphdef, stacked = nnx.split(decoder.layers)

    def step(carry: tuple[jax.Array, jax.Array], layer: Any) -> tuple[Any, None]:
        prefix, own = carry
        block = nnx.merge(graphdef, layer)
        seen: list[tuple[jax.Array, jax.Array]] = []

        def attend_prefix(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            seen.append((k, v))
            return attention(q, k, v, AttentionMask(causal=True))

        def attend_own(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return prefix_attention(q, k, v, *seen[0], prefix_len_B)

        prefix = block(prefix, prefix_rope, attend_prefix)
        own = block(own, own_rope, attend_own)
        return (prefix, own), None

    carry = (prefix_1RD, own_BUD)
    (_, own_BUD), _ = jax.lax.scan(checkpointed(step, decoder.remat), carry, stacked)
    return decoder.norm(own_BUD)


def conditional_hidden(policy: JanusPolicy, rows: TokenBatch) -> tuple[jax.Array, jax.Array]:
    """Hidden states that predict the plan's tokens (B,T,D) and the image's (B,U,D)."""
    x_BSD, positions_1S = embed_rows(policy, rows)
    hidden = policy.hidden(x_BSD, positions_1S)
    T, U = rows.plan_ids_BT.shape[1], rows.image_ids_BU.shape[1]
    at_plan = rows.prompt_len_B[:, None] - 1 + jnp.arange(T, dtype=jnp.int32)[None, :]
    at_image = rows.context_len_B[:, None] - 1 + jnp.arange(U, dtype=jnp.int32)[None, :]
    # Padding of a plan may lie behind a row whose context was cut.
    at = jnp.minimum(jnp.concatenate([at_plan, at_image], axis=1), hidden.shape[1] - 1)
    picked = jnp.take_along_axis(hidden, at[..., None], axis=1)
    return picked[:, :T], picked[:, T:]


def unconditional_hidden(policy: JanusPolicy, rows: TokenBatch, specials: SpecialIds) -> jax.Array:
    """Hidden states (B,U,D) that predict the image's tokens after the null context."""
    U = rows.image_ids_BU.shape[1]
    prefix = policy.embed_text(unconditional_prefix(rows.context_size - 1, specials))
    boi = policy.embed_text(jnp.full((1, 1), specials.boi, jnp.int32))
    image = policy.embed_image(rows.image_ids_BU[:, : U - 1])
    boi = jnp.broadcast_to(boi, (image.shape[0], 1, image.shape[2]))
    own = jnp.concatenate([boi, image], axis=1)
    return _forward_on_prefix(policy.decoder, prefix, own, rows.context_len_B - 1)


def guided_image_logits(
    policy: JanusPolicy, cond: jax.Array, uncond: jax.Array, weight: float
) -> jax.Array:
    """Guided image logits (..., I), float32, of both branches' hidden states (..., D).

    The head's last layer is affine: guiding its input is guiding its output, and the largest
    product of the head is computed once instead of twice.
    """
    head = policy.gen_head
    inner_cond, inner_uncond = (head.inner(h).astype(jnp.float32) for h in (cond, uncond))
    inner = guide(inner_cond, inner_uncond, weight)
    return head.second(inner.astype(cond.dtype), float32=True)


def _score(logits: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probability of ids (...) under logits (..., V) and the entropy, both (...)."""
    log_z = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
    mean = jnp.sum(jnp.exp(logits - log_z[..., None]) * logits, axis=-1)
    return chosen - log_z, log_z - mean


def _score_in_chunks(
    logits_of: Callable[..., jax.Array], hidden: tuple[jax.Array, ...], ids_BN: jax.Array,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """`_score` of `logits_of(*hidden)`, hidden each (B,N,D), `chunk` positions at a time.

    The backward pass computes the logits of a chunk again. With at most `chunk` positions there
    is no loop and nothing is computed twice.
    """
    B, N = ids_BN.shape
    if chunk >= N:
        return _score(logits_of(*hidden), ids_BN)
    pieces = -(-N // chunk)

    def cut(x: jax.Array) -> jax.Array:
        pad = [(0, 0), (0, pieces * chunk - N)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, pad).reshape(B, pieces, chunk, *x.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def one(piece: tuple[tuple[jax.Array, ...], jax.Array]) -> tuple[jax.Array, jax.Array]:
        return _score(logits_of(*piece[0]), piece[1])

    logp, entropy = jax.lax.map(one, (tuple(cut(h) for h in hidden), cut(ids_BN)))
    return tuple(x.swapaxes(0, 1).reshape(B, -1)[:, :N] for x in (logp, entropy))


def _frozen(policy: JanusPolicy) -> JanusPolicy:
    """The same policy with a stop-gradient on its parameters."""
    graphdef, state = nnx.split(policy)
    return nnx.merge(graphdef, jax.tree.map(jax.lax.stop_gradient, state))


def token_logps(
    policy: JanusPolicy, rows: TokenBatch, specials: SpecialIds, settings: LogpConfig,
    chunk: int = 128,
) -> TokenLogps:  # fmt: skip
    """Score given tokens under the distributions that the sampler draws from.

    Plan: log_softmax(text logits / text_temperature), never guided. Image:
    log_softmax((uncond + w (cond - uncond)) / image_temperature), or cond alone by the mode.

    Args:
      policy: merged module, inside a jit; its `remat` governs both forwards.
      rows: the tokens of B samples.
      specials: ids of BOS, pad and BOI.
      settings: mode, guidance and temperatures of the rollout.
      chunk: positions whose logits are computed at once: memory against time.
    """
    h_plan, h_image = conditional_hidden(policy, rows)

    def plan_logits(h: jax.Array) -> jax.Array:
        return policy.text_logits(h) / settings.text_temperature

    plan_logp, plan_entropy = _score_in_chunks(plan_logits, (h_plan,), rows.plan_ids_BT, chunk)
    hidden: tuple[jax.Array, ...] = (h_image,)
    other = _frozen(policy) if settings.mode == "guided_detach" else policy
    if settings.needs_unconditional:
        hidden = (h_image, unconditional_hidden(other, rows, specials))

    def image_logits(*hidden: jax.Array) -> jax.Array:
        if len(hidden) == 1:
            logits = policy.image_logits(hidden[0])
        elif other is policy:
            logits = guided_image_logits(policy, hidden[0], hidden[1], settings.guidance)
        else:
            cond, uncond = policy.image_logits(hidden[0]), other.image_logits(hidden[1])
            logits = guide(cond, uncond, settings.guidance)
        return logits / settings.image_temperature

    image_logp, image_entropy = _score_in_chunks(image_logits, hidden, rows.image_ids_BU, chunk)
    mask = rows.plan_mask_BT

    def join(plan_BT: jax.Array, image_BU: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.where(mask, plan_BT, 0.0), image_BU], axis=1)

    return TokenLogps(join(plan_logp, image_logp), join(plan_entropy, image_entropy))
