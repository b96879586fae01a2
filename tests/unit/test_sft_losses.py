"""The supervised loss against numbers worked out by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gotr1_jax.sft.losses import SftWeights, count_tokens, sft_loss

# Row 0: plan -1, -2, BOI -3. Row 1: plan -4, BOI -5, padding. Image: -1 -2 and -3 (one left out).
PLAN = jnp.array([[-1.0, -2.0, -3.0], [-4.0, -5.0, jnp.nan]])
PLAN_MASK = jnp.array([[True, True, False], [True, False, False]])
BOI_MASK = jnp.array([[False, False, True], [False, True, False]])
IMAGE = jnp.array([[-1.0, -2.0], [-3.0, jnp.nan]])
IMAGE_MASK = jnp.array([[True, True], [True, False]])
COUNTS = count_tokens(PLAN_MASK, BOI_MASK, IMAGE_MASK)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        # Sums: plan 7 over 3 tokens, image 6 over 3, BOI 8 over 2.
        (SftWeights(), (7 + 6 + 8) / 8),
        (SftWeights(text=2.0, image=1.0, boi=0.0), (14 + 6) / 9),
        (SftWeights(text=0.0, image=0.0, boi=0.5), 4.0),
    ],
)
def test_weighted_token_mean(weights, expected):
    loss, stats = sft_loss(PLAN, PLAN_MASK, BOI_MASK, IMAGE, IMAGE_MASK, weights, COUNTS)
    assert loss == pytest.approx(expected, abs=1e-6)
    got = (stats.text, stats.image, stats.boi)
    assert got == pytest.approx((7 / 3, 2.0, 4.0), abs=1e-6)


def test_boi_inside_the_plan_mask_counts_once():
    both = PLAN_MASK | BOI_MASK
    counts = count_tokens(both, BOI_MASK, IMAGE_MASK)
    assert counts.text == 3 and counts.boi == 2
    loss, _ = sft_loss(PLAN, both, BOI_MASK, IMAGE, IMAGE_MASK, SftWeights(2.0, 1.0, 0.0), counts)
    assert loss == pytest.approx(20 / 9, abs=1e-6)


def test_micro_batches_add_up_with_their_gradients():
    weights = SftWeights(2.0, 1.0, 0.5)

    def value_and_grad(s):
        def loss_of(plan, image):
            masks = (PLAN_MASK[s], BOI_MASK[s])
            return sft_loss(plan, *masks, image, IMAGE_MASK[s], weights, COUNTS)

        return jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)(PLAN[s], IMAGE[s])

    (loss, stats), gradient = value_and_grad(slice(None))
    first, second = value_and_grad(slice(0, 1)), value_and_grad(slice(1, 2))
    assert float(first[0][0] + second[0][0]) == pytest.approx(float(loss), abs=1e-6)
    total = jax.tree.map(jnp.add, first[0][1], second[0][1])
    for got, want in zip(jax.tree.leaves(total), jax.tree.leaves(stats), strict=True):
        assert float(got) == pytest.approx(float(want), abs=1e-6)
    # Weight over Σ w = 2·3 + 3 + 0.5·2 = 10; padding gets 0.
    np.testing.assert_allclose(
        jnp.concatenate([first[1][0], second[1][0]]),
        [[-0.2, -0.2, -0.05], [-0.2, -0.05, 0.0]],
        atol=1e-7,
    )
    np.testing.assert_allclose(gradient[1], [[-0.1, -0.1], [-0.1, 0.0]], atol=1e-7)


def test_weights_that_leave_nothing_are_refused():
    with pytest.raises(ValueError, match="all 0"):
        SftWeights(0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="negative"):
        SftWeights(text=-1.0)
