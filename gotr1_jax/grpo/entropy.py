"""Adaptive entropy: a coefficient for each modality that holds its entropy at a target.

The loss gets the term -α · entropy with α = sinh(ψ). After each optimizer step ψ takes one step of
Adam on α · (entropy - target): α falls while the entropy is above its target and rises while it is
below. α may become negative: the entropy is then pushed down. From ReasonGen-R1 (arXiv
2505.24875).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import asinh
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gotr1_jax.grpo.config import EntropyConfig
from gotr1_jax.grpo.per_modality import PerModality


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EntropyState:
    """ψ of both modalities and its Adam state; part of the training checkpoint."""

    psi: PerModality
    opt_state: Any


def new_entropy_state(config: EntropyConfig | None) -> EntropyState | None:
    """ψ = 0: no bonus before the first update. None without a configuration."""
    if config is None:
        return None
    psi = PerModality(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))
    return EntropyState(psi, optax.adam(config.learning_rate).init(psi))


def coefficients(state: EntropyState) -> PerModality:
    """α = sinh(ψ); ψ is clipped so that |α| stays within config.bound."""
    return jax.tree.map(jnp.sinh, state.psi)


def entropy_loss(alpha: PerModality, entropy: PerModality) -> jax.Array:
    """The term of the policy loss: -Σ α · entropy; α is not differentiated."""
    text, image = jax.lax.stop_gradient((alpha.text, alpha.image))
    return -(text * entropy.text + image * entropy.image)


def update_coefficients(
    state: EntropyState, entropy: PerModality, config: EntropyConfig
) -> EntropyState:
    """One step of Adam on ψ, given the mini-batch's mean entropies (nats a token).

    ψ itself is clipped to ±asinh(bound), so α leaves the bound as soon as the entropy crosses
    its target.
    """

    def gradient(psi: jax.Array, value: jax.Array, target: float) -> jax.Array:
        return jnp.cosh(psi) * (value - target)

    grads = PerModality(
        gradient(state.psi.text, entropy.text, config.text_target),
        gradient(state.psi.image, entropy.image, config.image_target),
    )
    steps, opt_state = optax.adam(config.learning_rate).update(grads, state.opt_state, state.psi)
    limit = asinh(config.bound)
    psi = jax.tree.map(lambda x: jnp.clip(x, -limit, limit), optax.apply_updates(state.psi, steps))
    return EntropyState(psi, opt_state)
