"""The supervised loss against numbers worked out by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gotr1_jax.sampler.token_batch import TokenBatch
from gotr1_jax.sft.losses import SftWeights, TargetKinds, count_targets, sft_loss
from gotr1_jax.sft.update import target_kinds

# Row 0: plan -1, -2, BOI -3. Row 1: plan -4, BOI -5, padding. Image: -1 -2 and -3 (one left out).
LOGP = jnp.array([[-1.0, -2.0, -3.0, -1.0, -2.0], [-4.0, -5.0, jnp.nan, -3.0, jnp.nan]])
MASKS = TargetKinds(
    text=jnp.array([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], bool),
    image=jnp.array([[0, 0, 0, 1, 1], [0, 0, 0, 1, 0]], bool),
    boi=jnp.array([[0, 0, 1, 0, 0], [0, 1, 0, 0, 0]], bool),
)
COUNTS = count_targets(MASKS)


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
    loss, nats = sft_loss(LOGP, MASKS, weights, COUNTS)
    assert loss == pytest.approx(expected, abs=1e-6)
    assert (nats.text, nats.image, nats.boi) == pytest.approx((7 / 3, 2.0, 4.0), abs=1e-6)


def test_kinds_of_targets_of_a_token_batch():
    # A sampled BOI, a BOI that the mask leaves out (a dropped caption), a plan of BOI alone.
    rows = TokenBatch(
        prompt_ids_BC=jnp.ones((3, 1), jnp.int32),
        prompt_len_B=jnp.array([1, 1, 1]),
        plan_ids_BT=jnp.array([[7, 8, 3], [7, 3, 0], [3, 0, 0]]),
        plan_len_B=jnp.array([3, 2, 1]),
        plan_mask_BT=jnp.array([[1, 1, 1], [0, 0, 0], [1, 0, 0]], bool),
        image_ids_BU=jnp.zeros((3, 2), jnp.int32),
    )
    kinds = target_kinds(rows)
    assert kinds.text.astype(int).tolist() == [[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert kinds.boi.astype(int).tolist() == [[0, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert kinds.image.astype(int).tolist() == [[0, 0, 0, 1, 1]] * 3
    counts = count_targets(kinds)
    assert (counts.text, counts.image, counts.boi) == (2, 6, 2)


def test_micro_batches_add_up_with_their_gradients():
    weights = SftWeights(2.0, 1.0, 0.5)

    def value_and_grad(s):
        masks = jax.tree.map(lambda mask: mask[s], MASKS)

        def loss_of(logp):
            return sft_loss(logp, masks, weights, COUNTS)

        return jax.value_and_grad(loss_of, has_aux=True)(LOGP[s])

    (loss, nats), gradient = value_and_grad(slice(None))
    first, second = value_and_grad(slice(0, 1)), value_and_grad(slice(1, 2))
    assert float(first[0][0] + second[0][0]) == pytest.approx(float(loss), abs=1e-6)
    total = jax.tree.map(jnp.add, first[0][1], second[0][1])
    for got, want in zip(jax.tree.leaves(total), jax.tree.leaves(nats), strict=True):
        assert float(got) == pytest.approx(float(want), abs=1e-6)
    # Weight over Σ w = 2·3 + 3 + 0.5·2 = 10; padding gets 0.
    wanted = [[-0.2, -0.2, -0.05, -0.1, -0.1], [-0.2, -0.05, 0.0, -0.1, 0.0]]
    np.testing.assert_allclose(gradient, wanted, atol=1e-7)
    np.testing.assert_allclose(np.concatenate([first[1], second[1]]), wanted, atol=1e-7)


def test_weights_that_leave_nothing_are_refused():
    with pytest.raises(ValueError, match="all 0"):
        SftWeights(0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="text is -1.0"):
        SftWeights(text=-1.0)
