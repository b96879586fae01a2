"""The adaptive entropy term: signs and numbers by hand, and that it arrives from both sides."""

from __future__ import annotations

from math import asinh, cosh, sinh

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gotr1_jax.errors import InputError
from gotr1_jax.grpo.config import EntropyConfig
from gotr1_jax.grpo.entropy import (
    coefficients,
    entropy_loss,
    new_entropy_state,
    update_coefficients,
)
from gotr1_jax.grpo.per_modality import PerModality


def test_first_steps_by_hand() -> None:
    config = EntropyConfig(text_target=2.0, image_target=7.0, learning_rate=1e-3, bound=1.0)
    state = new_entropy_state(config)
    assert float(coefficients(state).text) == 0.0
    # Text is above its target, image below. Adam's first step has the size of the rate.
    state = update_coefficients(state, PerModality(jnp.float32(3.0), jnp.float32(6.5)), config)
    np.testing.assert_allclose(state.psi.text, -1e-3, rtol=1e-4)
    np.testing.assert_allclose(state.psi.image, 1e-3, rtol=1e-4)
    np.testing.assert_allclose(coefficients(state).image, sinh(1e-3), rtol=1e-4)
    # The second, on text: gradients 1 and cosh(psi) * 0.5, Adam's moments .9 and .999.
    state = update_coefficients(state, PerModality(jnp.float32(2.5), jnp.float32(7.0)), config)
    g1, g2 = 1.0, 0.5 * cosh(1e-3)
    first = (0.9 * 0.1 * g1 + 0.1 * g2) / (1 - 0.9**2)
    second = (0.999 * 0.001 * g1**2 + 0.001 * g2**2) / (1 - 0.999**2)
    np.testing.assert_allclose(state.psi.text, -1e-3 - 1e-3 * first / second**0.5, rtol=1e-4)


def test_loss_rewards_entropy_with_a_positive_coefficient() -> None:
    alpha = PerModality(jnp.float32(0.5), jnp.float32(-0.25))
    entropy = PerModality(jnp.float32(2.0), jnp.float32(4.0))
    assert float(entropy_loss(alpha, entropy)) == -(0.5 * 2.0 - 0.25 * 4.0)
    grads = jax.grad(entropy_loss, argnums=(0, 1))(alpha, entropy)
    assert float(grads[0].text) == 0.0 and float(grads[1].text) == -0.5
    assert float(grads[1].image) == 0.25


def test_coefficients_stay_within_their_bound_and_leave_it_at_once() -> None:
    config = EntropyConfig(learning_rate=0.1, bound=0.3)
    state = new_entropy_state(config)
    low, high = (PerModality(jnp.float32(h), jnp.float32(h)) for h in (0.0, 20.0))
    for _ in range(20):
        state = update_coefficients(state, low, config)
    np.testing.assert_allclose(coefficients(state).text, 0.3, rtol=1e-5)
    np.testing.assert_allclose(state.psi.image, asinh(0.3), rtol=1e-5)
    before = float(state.psi.image)
    for _ in range(5):
        state = update_coefficients(state, high, config)
    assert float(state.psi.image) < before


@pytest.mark.parametrize("peak", [0.0, 3.0])
def test_arrives_at_the_target_from_above_and_from_below(peak: float) -> None:
    # One categorical distribution a modality; nothing but the entropy term moves it.
    config = EntropyConfig(text_target=1.2, image_target=2.0, learning_rate=0.004, bound=0.3)
    targets = np.array([1.2, 2.0])
    logits = jnp.zeros((2, 16)).at[:, 0].set(peak).at[:, 1].set(0.5 * peak)
    optimizer = optax.sgd(1.0)
    moments = optimizer.init(logits)

    def entropy(logits: jax.Array) -> jax.Array:
        logp = jax.nn.log_softmax(logits)
        return -(jnp.exp(logp) * logp).sum(-1)

    start = np.asarray(entropy(logits + 0.01 * jnp.arange(16)))
    assert (start > targets).all() if peak == 0 else (start < targets).any()
    state = new_entropy_state(config)

    @jax.jit
    def step(logits, moments, state):
        def loss(logits):
            h = entropy(logits)
            both = PerModality(h[0], h[1])
            return entropy_loss(coefficients(state), both), both

        grads, both = jax.grad(loss, has_aux=True)(logits)
        updates, moments = optimizer.update(grads, moments)
        return (
            optax.apply_updates(logits, updates),
            moments,
            update_coefficients(state, both, config),
        )

    logits = logits + 0.01 * jnp.arange(16)  # the uniform one has no gradient
    seen = []
    for _ in range(6000):
        logits, moments, state = step(logits, moments, state)
        seen.append(np.asarray(entropy(logits)))
    np.testing.assert_allclose(np.mean(seen[-2000:], axis=0), targets, atol=0.1)


def test_bad_settings_are_named() -> None:
    with pytest.raises(InputError, match="bound is 0"):
        EntropyConfig(bound=0.0)
    with pytest.raises(InputError, match="text_target is -1"):
        EntropyConfig(text_target=-1.0)
