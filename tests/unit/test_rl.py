"""Advantages, losses and KL against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gotr1_jax.config import from_dict
from gotr1_jax.grpo.advantages import group_advantages, keep_groups
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.grpo.kl import kl_estimate
from gotr1_jax.grpo.losses import (
    LossBatch,
    PolicyLossConfig,
    add_stats,
    count_normalisers,
    policy_loss,
)
from gotr1_jax.grpo.per_modality import PerModality
from gotr1_jax.grpo.setup import loss_settings

NAN = math.nan


# Rewards 0.2, 0.4, 0.9 and one that could not be scored. Mean of three = 0.5, so centered
# -0.3, -0.1, 0.4; std = sqrt((0.09 + 0.01 + 0.16) / 2) = sqrt(0.13);
# leave one out: 0.2 - 0.65, 0.4 - 0.55, 0.9 - 0.3.
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mean", [-0.3, -0.1, 0.4, 0.0]),
        ("mean_std", [-0.3 / 0.13**0.5, -0.1 / 0.13**0.5, 0.4 / 0.13**0.5, 0.0]),
        ("leave_one_out", [-0.45, -0.15, 0.6, 0.0]),
    ],
)
@pytest.mark.parametrize("missing", [NAN, math.inf, 100.0])
def test_advantages_leave_out_what_has_no_reward(kind, expected, missing):
    valid = [True, True, True, not math.isfinite(missing)]
    out = group_advantages(jnp.array([[0.2, 0.4, 0.9, missing]]), jnp.array([valid]), kind)
    np.testing.assert_allclose(out.adv_PG, [expected], atol=1e-5)
    assert out.adv_PG.dtype == jnp.float32
    np.testing.assert_array_equal(out.mask_PG, [[True, True, True, False]])
    assert not out.zero_variance_P[0]


@pytest.mark.parametrize("kind", ["mean", "mean_std", "leave_one_out"])
@pytest.mark.parametrize(
    "rewards",
    [
        # The float32 mean of eight 0.1s is not 0.1, and their deviation is not 0.
        [0.1] * 8,
        [0.7] * 7 + [NAN],
        [0.3, 0.3 + 3e-8] * 4,
        [0.5] + [NAN] * 7,
        [NAN] * 8,
    ],
)
def test_groups_without_variance_are_flagged_and_exactly_zero(kind, rewards):
    teaching = [0.0, 1.0] * 4
    out = group_advantages(jnp.array([rewards, teaching]), jnp.ones((2, 8), bool), kind)
    np.testing.assert_array_equal(out.zero_variance_P, [True, False])
    np.testing.assert_array_equal(out.adv_PG[0], np.zeros(8, np.float32))
    assert np.isfinite(out.adv_PG).all() and (np.abs(out.adv_PG[1]) > 0.4).all()


def test_unknown_advantage_is_refused():
    with pytest.raises(ValueError, match="median"):
        group_advantages(jnp.ones((1, 2)), jnp.ones((1, 2), bool), "median")  # type: ignore[arg-type]


def test_keep_groups_prefers_variance_then_fills_in_order():
    flags = jnp.array([True, False, True, False, False])
    np.testing.assert_array_equal(keep_groups(flags, 2), [1, 3])
    np.testing.assert_array_equal(keep_groups(flags, 4), [0, 1, 3, 4])
    with pytest.raises(ValueError, match="6 groups wanted, 5 given"):
        keep_groups(flags, 6)


@pytest.mark.parametrize(
    ("kind", "value", "gradient"),
    # d = ln 2: k1 = d; k2 = d²/2 with gradient d; k3 = 1/2 - 1 + d with gradient 1 - 1/2.
    [
        ("k1", math.log(2), 1.0),
        ("k2", math.log(2) ** 2 / 2, math.log(2)),
        ("k3", math.log(2) - 0.5, 0.5),
    ],
)
def test_kl_estimators(kind, value, gradient):
    got, slope = jax.value_and_grad(lambda x: kl_estimate(x, jnp.float32(-3.0), kind))(
        jnp.float32(-3.0 + math.log(2))
    )
    assert got == pytest.approx(value, abs=1e-6)
    assert slope == pytest.approx(gradient, abs=1e-6)


# Two rows of two plan and two image positions; 9s stand where the mask is False.
#   row 0, A = 1:  plan ratios 1.5, -; image ratios 1.0, 0.5
#   row 1, A = -2: plan ratios 0.5, 1.1; image ratios 3.0, -
# Clipped to [0.8, 1.2]: row 0 -> -1.2; -1, -0.5    row 1 -> 1.6, 2.2; 6 (min keeps the unclipped)
RATIO = np.array([[1.5, 9.0, 1.0, 0.5], [0.5, 1.1, 3.0, 9.0]])


def both(advantages_B) -> PerModality:
    """The same advantages for both modalities."""
    return PerModality(*[jnp.array(advantages_B, jnp.float32)] * 2)


def hand_batch(**changes) -> LossBatch:
    old_logp = np.log([[0.3, 0.1, 0.01, 0.02], [0.2, 0.6, 0.03, 0.04]])
    batch = LossBatch(
        logp_BN=jnp.array(old_logp + np.log(RATIO)),
        old_logp_BN=jnp.array(old_logp),
        mask_BN=jnp.array([[True, False, True, True], [True, True, True, False]]),
        is_image_BN=jnp.array([[False, False, True, True]] * 2),
        advantages=both([1.0, -2.0]),
        row_mask_B=jnp.array([True, True]),
    )
    return dataclasses.replace(batch, **changes)


def numbers(tree) -> list[float]:
    return [float(leaf) for leaf in jax.tree.leaves(tree)]


def whole_loss(batch: LossBatch, config: PolicyLossConfig):
    norm = count_normalisers(batch.mask_BN, batch.is_image_BN, batch.row_mask_B)
    return policy_loss(batch, config, norm)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # A plan token weighs twice an image token. Row 0: (2·-1.2 - 1 - 0.5) = -3.9 over weight 4;
        # row 1: (2·1.6 + 2·2.2 + 6) = 13.6 over weight 5.
        ("grpo", (-3.9 / 4 + 13.6 / 5) / 2),
        ("dapo", (-3.9 + 13.6) / 9),
        ("dr_grpo", (-0.39 + 1.36) / 2),
        # Sequence ratios: (1.5² · 0.5)^(1/4) = 1.125^(1/4), (0.5² · 1.1² · 3)^(1/5) = 0.9075^(1/5)
        ("gspo", (-(1.125**0.25) + 2 * 0.9075**0.2) / 2),
    ],
)
def test_policy_losses(kind, expected):
    config = PolicyLossConfig(kind=kind, text_weight=4.0, image_weight=2.0, max_tokens=20)
    loss, stats = whole_loss(hand_batch(), config)
    assert loss == pytest.approx(expected, abs=1e-6)
    assert stats.ratio_max.text == pytest.approx(1.5, abs=1e-6)
    assert stats.ratio_max.image == pytest.approx(3.0, abs=1e-5)
    # Clipped: row 0's plan token (1.5, A > 0), row 1's first (0.5, A < 0); no sequence in gspo.
    assert stats.clip_frac.text == pytest.approx(0.0 if kind == "gspo" else 2 / 3)
    assert stats.clip_frac.image == 0
    assert stats.kl is None


def test_lower_and_upper_clip_are_apart():
    # Upper bound 1.4: only row 0's plan token changes, -1.2 to -1.4. Lower bound 0.6: only row 1's
    # first, 1.6 to 1.2.
    high, _ = whole_loss(hand_batch(), PolicyLossConfig(kind="dapo", clip_high=0.4))
    low, _ = whole_loss(hand_batch(), PolicyLossConfig(kind="dapo", clip_low=0.4))
    total = -1.2 - 1 - 0.5 + 1.6 + 2.2 + 6
    assert high == pytest.approx((total - 0.2) / 6, abs=1e-6)
    assert low == pytest.approx((total - 0.4) / 6, abs=1e-6)


def test_gspo_clips_the_whole_sequence():
    # With weight 2 a plan token the ratios are 1.0299 and 0.9808: both outside [0.99, 1.02].
    config = PolicyLossConfig(kind="gspo", clip_low=0.01, clip_high=0.02, text_weight=2.0)

    def loss_of(logp_BN):
        return whole_loss(hand_batch(logp_BN=logp_BN), config)

    (loss, stats), gradient = jax.value_and_grad(loss_of, has_aux=True)(hand_batch().logp_BN)
    assert loss == pytest.approx((-1.02 + 2 * 0.99) / 2, abs=1e-6)
    assert stats.clip_frac.text == 1 and stats.clip_frac.image == 1
    np.testing.assert_array_equal(gradient, np.zeros((2, 4)))


def test_gradient_is_advantage_times_ratio_where_not_clipped():
    def loss_of(logp_BN):
        return whole_loss(hand_batch(logp_BN=logp_BN), PolicyLossConfig(kind="dapo"))[0]

    # d(-r·A) = -r·A over 6 tokens. Only row 0's and row 1's first plan tokens are clipped.
    gradient = jax.grad(loss_of)(hand_batch().logp_BN)
    wanted = np.array([[0.0, 0.0, -1.0, -0.5], [0.0, 2.2, 6.0, 0.0]]) / 6
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "expected"),
    # k3 = ln 2 - 1/2 on a plan token, its weight 3; nothing on image tokens; KL weight 0.1.
    # Shares of the plan: row 0 3/5, row 1 6/7; over all 9/12; dr_grpo 3/10 and 6/10.
    [("grpo", (3 / 5 + 6 / 7) / 2), ("gspo", (3 / 5 + 6 / 7) / 2), ("dapo", 9 / 12)]
    + [("dr_grpo", 0.45)],
)
def test_kl_joins_the_loss_by_the_same_mean(kind, expected):
    batch = hand_batch(advantages=both([0.0, 0.0]))
    reference = batch.logp_BN - jnp.where(batch.is_image_BN, 0.0, math.log(2))
    batch = dataclasses.replace(batch, ref_logp_BN=reference)
    config = PolicyLossConfig(kind=kind, text_weight=3.0, kl="k3", kl_weight=0.1, max_tokens=10)
    loss, stats = whole_loss(batch, config)
    k3 = math.log(2) - 0.5
    assert loss == pytest.approx(0.1 * k3 * expected, abs=1e-6)
    assert stats.kl.text == pytest.approx(k3, abs=1e-6) and stats.kl.image == 0
    with pytest.raises(ValueError, match="reference"):
        whole_loss(hand_batch(), config)


@pytest.mark.parametrize("kind", ["grpo", "dapo", "dr_grpo", "gspo"])
def test_nothing_updated_has_ratio_one(kind):
    batch = hand_batch(logp_BN=hand_batch().old_logp_BN)
    loss, stats = whole_loss(batch, PolicyLossConfig(kind=kind, max_tokens=3))
    # Both rows have three tokens, so every kind is -mean(A) = 0.5.
    assert loss == pytest.approx(0.5, abs=1e-6)
    assert numbers(stats.ratio_max) == [1.0, 1.0] and numbers(stats.clip_frac) == [0.0, 0.0]


@pytest.mark.parametrize("kind", ["grpo", "dapo", "dr_grpo", "gspo"])
def test_what_is_masked_cannot_matter(kind):
    """NaN where nothing was sampled and a row without reward change no loss and no gradient."""
    config = PolicyLossConfig(kind=kind, kl="k3", kl_weight=0.1, max_tokens=10)
    clean = hand_batch(ref_logp_BN=hand_batch().old_logp_BN)
    batch = jax.tree.map(lambda x: jnp.concatenate([x, x[:1]]), clean)
    dirty = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    sampled = dirty["mask_BN"].at[2].set(False)
    for name in ("logp_BN", "old_logp_BN", "ref_logp_BN"):
        dirty[name] = jnp.where(sampled, dirty[name], NAN)
    dirty["advantages"] = jax.tree.map(lambda x: x.at[2].set(NAN), dirty["advantages"])
    dirty["row_mask_B"] = dirty["row_mask_B"].at[2].set(False)

    def run(batch):
        def loss_of(logp):
            return whole_loss(dataclasses.replace(batch, logp_BN=logp), config)

        step = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
        (loss, stats), gradient = step(batch.logp_BN)
        return loss, stats, gradient

    loss, stats, gradient = run(clean)
    loss_2, stats_2, gradient_2 = run(LossBatch(**dirty))
    assert loss_2 == pytest.approx(float(loss), abs=1e-6)
    assert numbers(stats_2) == pytest.approx(numbers(stats), abs=1e-6)
    np.testing.assert_allclose(gradient_2[:2], gradient, atol=1e-6)
    np.testing.assert_array_equal(gradient_2[2], np.zeros(4))


def random_batch(rows: int) -> LossBatch:
    rng = np.random.default_rng(0)

    def logp():
        return jnp.array(rng.normal(-2.0, 0.4, (rows, 9)), jnp.float32)

    is_image_BN = np.tile(np.arange(9) >= 5, (rows, 1))
    lengths = rng.integers(1, 6, rows)
    return LossBatch(
        logp_BN=logp(),
        old_logp_BN=logp(),
        ref_logp_BN=logp(),
        mask_BN=jnp.array((np.arange(9) < lengths[:, None]) | is_image_BN),
        is_image_BN=jnp.array(is_image_BN),
        advantages=both(rng.normal(size=rows)),
        row_mask_B=jnp.array([True] * (rows - 1) + [False]),
    )


@pytest.mark.parametrize("kind", ["grpo", "dapo", "dr_grpo", "gspo"])
def test_micro_batches_add_up_to_the_mini_batch(kind):
    config = PolicyLossConfig(
        kind=kind, text_weight=2.0, image_weight=0.5, kl="k2", kl_weight=0.3, max_tokens=7
    )
    batch = random_batch(6)
    norm = count_normalisers(batch.mask_BN, batch.is_image_BN, batch.row_mask_B)

    def value_and_grad(part):
        def loss_of(logp):
            return policy_loss(dataclasses.replace(part, logp_BN=logp), config, norm)

        return jax.jit(jax.value_and_grad(loss_of, has_aux=True))(part.logp_BN)

    (loss, stats), gradient = value_and_grad(batch)
    parts = [
        value_and_grad(jax.tree.map(lambda a, s=s: a[s], batch))
        for s in (slice(0, 2), slice(2, 4), slice(4, 6))
    ]
    assert sum(p[0][0] for p in parts) == pytest.approx(float(loss), abs=1e-6)
    np.testing.assert_allclose(np.concatenate([p[1] for p in parts]), gradient, atol=1e-7)
    assert np.abs(gradient[:, :5]).max() > 1e-3 and np.abs(gradient[:, 5:]).max() > 1e-3
    total = add_stats(add_stats(parts[0][0][1], parts[1][0][1]), parts[2][0][1])
    assert numbers(total) == pytest.approx(numbers(stats), abs=1e-6)


def test_a_broken_token_keeps_the_gradient_finite():
    batch = hand_batch(old_logp_BN=jnp.full((2, 4), -1e4))
    gradient = jax.grad(
        lambda x: whole_loss(dataclasses.replace(batch, logp_BN=x), PolicyLossConfig())[0]
    )(batch.logp_BN)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"kind": "ppo"}, "ppo"),
        ({"kl": "k4"}, "k4"),
        ({"clip_low": 0.0}, "clip_low"),
        ({"text_weight": 0.0, "image_weight": 0.0}, "text_weight"),
        ({"kl_weight": -1.0}, "kl_weight"),
        ({"max_tokens": -1}, "max_tokens"),
    ],
)
def test_impossible_configurations_are_refused(changes, name):
    with pytest.raises(ValueError, match=name):
        PolicyLossConfig(**changes)


def test_dr_grpo_needs_its_constant_length():
    with pytest.raises(ValueError, match="dr_grpo divides by max_tokens"):
        whole_loss(hand_batch(), PolicyLossConfig(kind="dr_grpo"))


@pytest.mark.parametrize("lengths", [(5, 5), (1, 3)])
def test_dr_grpo_divides_by_the_whole_budget_of_a_run(lengths):
    """TRL: (loss * mask).sum() / (rows * max_completion_length), here plan and image.

    A sample that uses its whole budget has the weight that its tokens' mean would have.
    """
    run = from_dict(
        GrpoConfig,
        {"run_dir": "run", "rollout": {"max_plan_tokens": 5}, "loss": {"kind": "dr_grpo"}},
    )
    config = loss_settings(run, image_tokens=4)
    assert config.max_tokens == 9
    assert loss_settings(dataclasses.replace(run, loss=config), 100).max_tokens == 9
    mask = [[i < n or i >= 6 for i in range(10)] for n in lengths]  # the forced BOI is at 5
    logp = jnp.full((2, 10), -2.0)
    batch = LossBatch(
        logp_BN=logp,
        old_logp_BN=logp,
        mask_BN=jnp.array(mask),
        is_image_BN=jnp.tile(jnp.arange(10) >= 6, (2, 1)),
        advantages=both([1.0, 0.5]),
        row_mask_B=jnp.array([True, True]),
    )
    loss, _ = whole_loss(batch, config)
    first, second = (n + 4 for n in lengths)
    assert loss == pytest.approx(-(first * 1.0 + second * 0.5) / (2 * 9), abs=1e-6)


def test_conventions_of_kl():
    """As docs/conventions.md says: not bounded, held at 20 with zero gradient beyond, and in the
    loss as it is, whatever the ratio, but not of a sample without a reward.
    """

    def k3(logp):
        return kl_estimate(logp, jnp.float32(0.0), "k3")

    assert k3(jnp.float32(-8.0)) == pytest.approx(math.exp(8) - 1 - 8, rel=1e-5)  # verl: 10
    assert k3(jnp.float32(-30.0)) == pytest.approx(math.exp(20) - 21, rel=1e-5)
    assert jax.grad(k3)(jnp.float32(-30.0)) == 0
    batch = hand_batch(ref_logp_BN=hand_batch().logp_BN - 0.5)
    config = PolicyLossConfig(kind="dapo", kl="k3", kl_weight=0.1)
    plain, _ = whole_loss(batch, dataclasses.replace(config, kl="none", kl_weight=0.0))
    loss, _ = whole_loss(batch, config)
    # Ratios of 0.5 to 3, but the same KL of every token.
    assert loss - plain == pytest.approx(0.1 * (math.exp(-0.5) - 1 + 0.5), abs=1e-6)
    half = dataclasses.replace(batch, row_mask_B=jnp.array([True, False]))
    far = dataclasses.replace(half, ref_logp_BN=half.ref_logp_BN.at[1].set(9.0))
    assert whole_loss(half, config)[0] == whole_loss(far, config)[0]
