"""Tokens by the entropy of the distribution that they were drawn from."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gotr1_jax.grpo.loss_config import EntropyBonusConfig, TokenChoiceConfig
from gotr1_jax.grpo.losses.batch import by_modality
from gotr1_jax.grpo.per_modality import PerModality


def select_tokens(
    entropy_BN: jax.Array, mask_BN: jax.Array, is_image_BN: jax.Array, config: TokenChoiceConfig
) -> jax.Array:
    """Bool (B, N): the tokens of highest entropy, the configured share of each modality.

    Of n tokens of a modality in the mini-batch the floor(share (n - 1)) + 1 of highest entropy are
    selected, and those that tie with the last: all that reach the quantile 1 - share, linearly
    interpolated (arXiv 2506.01939, section 5; TRL's `top_entropy_quantile`). `mask_BN` leaves out
    what was not sampled or has no reward.
    """

    def select(of_modality_BN: jax.Array, share: float) -> jax.Array:
        valid_BN = mask_BN & of_modality_BN
        descending = jnp.sort(jnp.where(valid_BN, entropy_BN, -jnp.inf).reshape(-1))[::-1]
        # Counted, not interpolated: a rounded threshold would lose the token that it lies on.
        last = jnp.floor(share * (valid_BN.sum() - 1) * (1 + 1e-6)).astype(jnp.int32)
        return valid_BN & (entropy_BN >= descending[jnp.maximum(last, 0)])

    text_BN = select(~is_image_BN, config.text_share)
    return text_BN | select(is_image_BN, config.image_share)


def advantages_with_entropy(
    adv_BN: jax.Array, entropy_BN: jax.Array, is_image_BN: jax.Array, config: EntropyBonusConfig
) -> jax.Array:
    """(B, N): A + min(weight · entropy, limit · |A|), the entropy not differentiated.

    From arXiv 2506.14758, section 3 (its alpha is the weight, its kappa 1 / limit), which
    EG-GRPO (arXiv 2604.02355) uses for image tokens too. An advantage of 0 stays 0.
    """
    weight = by_modality(PerModality(config.text_weight, config.image_weight), is_image_BN)
    bonus_BN = weight * jax.lax.stop_gradient(entropy_BN)
    return adv_BN + jnp.minimum(bonus_BN, config.limit * jnp.abs(adv_BN))
