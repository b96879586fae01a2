"""CISPO, GMPO, importance weights, tokens by entropy: by hand, and as TRL and verl have them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gotr1_jax.config import from_dict
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.grpo.losses import (
    EntropyBonusConfig,
    ImportanceConfig,
    LossBatch,
    PolicyLossConfig,
    TokenChoiceConfig,
    add_stats,
    advantages_with_entropy,
    count_normalisers,
    importance_weights,
    policy_loss,
    select_tokens,
)
from gotr1_jax.grpo.per_modality import PerModality

NAN = math.nan


def batch_of(
    log_ratio: Any, adv: Any, logp: Any = None, image_from: int = 2, **more: Any
) -> LossBatch:
    """Samples with the given log-ratios; NaN stands where nothing was sampled."""
    ratio_BN = np.asarray(log_ratio, float)
    logp_BN = np.full(ratio_BN.shape, -2.0) if logp is None else np.asarray(logp, float)
    adv_B = jnp.asarray(adv, jnp.float32)
    B, N = ratio_BN.shape
    return LossBatch(
        logp_BN=jnp.asarray(logp_BN, jnp.float32),
        old_logp_BN=jnp.asarray(logp_BN - ratio_BN, jnp.float32),
        mask_BN=jnp.asarray(np.isfinite(ratio_BN)),
        is_image_BN=jnp.asarray(np.tile(np.arange(N) >= image_from, (B, 1))),
        advantages=PerModality(adv_B, adv_B),
        row_mask_B=jnp.ones(B, bool),
        **more,
    )


def loss_and_gradient(batch: LossBatch, config: PolicyLossConfig) -> tuple[Any, Any, Any]:
    norm = count_normalisers(batch.mask_BN, batch.is_image_BN, batch.row_mask_B)

    def loss_of(logp_BN: jax.Array) -> Any:
        return policy_loss(dataclasses.replace(batch, logp_BN=logp_BN), config, norm)

    (loss, stats), gradient = jax.value_and_grad(loss_of, has_aux=True)(batch.logp_BN)
    return float(loss), np.asarray(gradient), stats


def test_cispo_by_hand():
    # Ratios 1.5, 1, 0.5 of A = 1 and 0.5, 1.1 of A = -2 are clipped to 1.2, 1, 0.8 and 0.8, 1.1:
    # -w A logp = 1.2·1, 1·2, 0.8·3 and -1.6·1, -2.2·2; the gradient is -w A, of every token.
    ratio = np.log([[1.5, 1.0, 0.5], [0.5, 1.1, NAN]])
    batch = batch_of(ratio, [1.0, -2.0], [[-1.0, -2.0, -3.0], [-1.0, -2.0, 0.0]])
    loss, gradient, stats = loss_and_gradient(batch, PolicyLossConfig(kind="cispo"))
    assert loss == pytest.approx((1.2 + 2.0 + 2.4 - 1.6 - 4.4) / 5, abs=1e-6)
    wanted = np.array([[-1.2, -1.0, -0.8], [1.6, 2.2, 0.0]]) / 5
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)
    assert stats.clip_frac.text == pytest.approx(2 / 4) and stats.clip_frac.image == 1
    # clip_low 1 is no lower bound: 0.5 stays.
    loss, _, stats = loss_and_gradient(batch, PolicyLossConfig(kind="cispo", clip_low=1.0))
    assert loss == pytest.approx((1.2 + 2.0 + 1.5 - 1.0 - 4.4) / 5, abs=1e-6)
    assert stats.clip_frac.text == pytest.approx(1 / 4) and stats.clip_frac.image == 0


def test_gmpo_by_hand():
    # Clipped at 0.4 from above where A > 0: 0.9 -> 0.4; at -0.4 from below where A < 0: -0.9 ->
    # -0.4. Means (0.4 - 0.3 - 0.9) / 3 and (0.9 - 0.4) / 2.
    batch = batch_of([[0.9, -0.3, -0.9], [0.9, -0.9, NAN]], [1.0, -2.0])
    config = PolicyLossConfig(kind="gmpo", clip_low=0.4, clip_high=0.4)
    loss, gradient, stats = loss_and_gradient(batch, config)
    first, second = math.exp(-0.8 / 3), math.exp(0.25)
    assert loss == pytest.approx((-first + 2 * second) / 2, abs=1e-6)
    wanted = [[0.0, -first / 6, -first / 6], [second / 2, 0.0, 0.0]]
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)
    assert stats.clip_frac.text == pytest.approx(2 / 4) and stats.clip_frac.image == 0
    # A plan token counts twice: (0.8 - 0.6 - 0.9) / 5 and (1.8 - 0.8) / 4.
    loss, _, _ = loss_and_gradient(batch, dataclasses.replace(config, text_weight=2.0))
    assert loss == pytest.approx((-math.exp(-0.7 / 5) + 2 * second) / 2, abs=1e-6)


# exp(trainer - sampler) is 4, 1/2 and 1 in the sample; their product is 2.
@pytest.mark.parametrize(
    ("kind", "low", "high", "weights", "cut"),
    [
        ("token_truncate", 0.0, 2.0, [2.0, 0.5, 1.0], [1, 0, 0]),
        ("token_truncate", 0.8, 2.0, [2.0, 0.8, 1.0], [1, 1, 0]),
        ("token_mask", 0.0, 2.0, [0.0, 0.5, 1.0], [1, 0, 0]),
        ("token_mask", 0.8, 5.0, [4.0, 0.0, 1.0], [0, 1, 0]),
        ("sequence_truncate", 0.0, 1.5, [1.5, 1.5, 1.5], [1, 1, 1]),
        ("sequence_truncate", 0.0, 3.0, [2.0, 2.0, 2.0], [0, 0, 0]),
        ("sequence_mask", 0.0, 1.5, [0.0, 0.0, 0.0], [1, 1, 1]),
    ],
)
def test_importance_weights_by_hand(kind, low, high, weights, cut):
    config = ImportanceConfig(kind, low, high)
    sampler = jnp.asarray(-2.0 - np.log([[4.0, 0.5, 1.0, 9.0]]), jnp.float32)
    batch = batch_of([[0.0, 0.0, 0.0, NAN]], [1.0], sampler_logp_BN=sampler.at[0, 3].set(NAN))
    found = importance_weights(jnp.full((1, 4), -2.0), sampler, batch.mask_BN, config)
    np.testing.assert_allclose(found.used_BN[0, :3], weights, rtol=1e-6)
    np.testing.assert_array_equal(found.is_cut_BN[0, :3], np.array(cut, bool))
    # Nothing is updated: the loss is minus the mean weight, and so is the gradient of each token.
    settings = PolicyLossConfig(kind="dapo", importance=config)
    loss, gradient, stats = loss_and_gradient(batch, settings)
    assert loss == pytest.approx(-sum(weights) / 3, abs=1e-6)
    np.testing.assert_allclose(gradient, [[*(-w / 3 for w in weights), 0.0]], atol=1e-6)
    is_token = kind.startswith("token")
    assert stats.importance.mean.text == pytest.approx(np.mean(weights[:2]), rel=1e-6)
    assert stats.importance.max.text == pytest.approx(4.0 if is_token else 2.0, rel=1e-5)
    assert stats.importance.max.image == pytest.approx(1.0 if is_token else 2.0, rel=1e-5)
    assert stats.importance.cut_frac.text == pytest.approx(np.mean(cut[:2]))


def test_the_first_update_is_corrected_by_its_own_forward():
    """Where the old log-probs are those of this forward, the weights have no gradient."""
    sampler = jnp.full((1, 3), -2.0 - math.log(1.5))

    def loss_of(logp_BN: jax.Array) -> jax.Array:
        batch = batch_of([[0.0] * 3], [1.0], sampler_logp_BN=sampler)
        batch = dataclasses.replace(batch, logp_BN=logp_BN, old_logp_BN=logp_BN)
        norm = count_normalisers(batch.mask_BN, batch.is_image_BN, batch.row_mask_B)
        config = PolicyLossConfig(kind="dapo", importance=ImportanceConfig())
        return policy_loss(batch, config, norm)[0]

    np.testing.assert_allclose(jax.grad(loss_of)(jnp.full((1, 3), -2.0)), -0.5, rtol=1e-6)


def test_tokens_of_high_entropy_by_hand():
    # Plans: 1 to 5, of which 0.4 reach the quantile 0.6 = 3.4; images: 7 and 9, 0.5 reach 8.
    entropy = jnp.array([[1.0, 5.0, 9.0, 7.0], [4.0, 2.0, NAN, NAN], [3.0, 99.0, NAN, NAN]])
    mask = jnp.isfinite(entropy) & (entropy < 50)
    is_image = jnp.tile(jnp.arange(4) >= 2, (3, 1))
    chosen = select_tokens(entropy, mask, is_image, TokenChoiceConfig(0.4, 0.5))
    wanted = [[False, True, True, False], [True, False, False, False], [False] * 4]
    np.testing.assert_array_equal(chosen, wanted)
    everything = select_tokens(entropy, mask, is_image, TokenChoiceConfig())
    np.testing.assert_array_equal(everything, mask)
    none = select_tokens(entropy, jnp.zeros_like(mask), is_image, TokenChoiceConfig(0.5, 0.5))
    assert not none.any()
    # The others have no surrogate, but they count as tokens and keep their KL.
    batch = batch_of(
        [[0.0, 0.0, 0.0, 0.0]], [1.0], selected_BN=chosen[:1], ref_logp_BN=jnp.full((1, 4), -2.5)
    )
    config = PolicyLossConfig(kind="dapo", kl="k2", kl_weight=1.0)
    loss, gradient, _ = loss_and_gradient(batch, config)
    assert loss == pytest.approx((-2 + 4 * 0.125) / 4, abs=1e-6)
    np.testing.assert_allclose(gradient, np.array([[0.5, -0.5, -0.5, 0.5]]) / 4, atol=1e-6)


def test_entropy_bonus_by_hand():
    adv = jnp.array([[1.0, -1.0, 0.0, 1.0]])
    entropy = jnp.array([[0.5, 3.0, 3.0, 3.0]])
    is_image = jnp.array([[False, False, False, True]])
    # 1 + min(0.2, 0.5); -1 + min(1.2, 0.5); nothing to add to 0; an image token has its weight.
    found = advantages_with_entropy(adv, entropy, is_image, EntropyBonusConfig(0.4, 0.1, 0.5))
    np.testing.assert_allclose(found, [[1.2, -0.5, 0.0, 1.3]], rtol=1e-6)
    batch = batch_of([[0.0] * 4], [1.0], entropy_BN=entropy)
    config = PolicyLossConfig(kind="dapo", entropy_bonus=EntropyBonusConfig())
    assert loss_and_gradient(batch, config)[0] == pytest.approx(-(1.2 + 1.5 + 1 + 1) / 4, abs=1e-6)


# What follows is compared with TRL at f2cd577 and verl at b178a3c, whose functions were called on
# these inputs in float64 (entropies in float32): value, and gradient by log-prob, summed over each
# sample.
def random_inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    old = rng.normal(-2.0, 0.5, (4, 7))
    logp = old + rng.normal(0.0, 0.5, (4, 7))
    sampler = old + rng.normal(0.0, 0.6, (4, 7))
    adv, entropy = rng.normal(size=4), rng.uniform(0.0, 4.0, (4, 7))
    mask = np.arange(7) < np.array([7, 5, 6, 3])[:, None]
    return {
        "logp": logp, "old": old, "sampler": sampler, "adv": adv, "entropy": entropy, "mask": mask,
    }  # fmt: skip


def random_batch(image_from: int = 7) -> LossBatch:
    x = random_inputs()
    ratio = np.where(x["mask"], x["logp"] - x["old"], NAN)
    batch = batch_of(
        ratio, x["adv"], x["logp"], image_from, sampler_logp_BN=jnp.asarray(x["sampler"]),
        entropy_BN=jnp.asarray(x["entropy"]),
    )  # fmt: skip
    return dataclasses.replace(batch, old_logp_BN=jnp.asarray(x["old"], jnp.float32))


def importance(kind: str) -> ImportanceConfig:
    return ImportanceConfig(kind, 0.5, 1.5)  # type: ignore[arg-type]


RECORDED = {
    "TRL cispo, epsilon_high 1.3": (
        PolicyLossConfig(kind="cispo", clip_low=1.0, clip_high=0.3),
        -0.49112729077008493, [-0.122036451, 0.118602049, 0.227555213, 0.107903781],
    ),
    "verl cispo": (
        PolicyLossConfig(kind="cispo", clip_low=0.2, clip_high=0.3),
        -0.6372063505733743, [-0.124664638, 0.152201574, 0.235794023, 0.114403529],
    ),
    "verl geo_mean": (
        PolicyLossConfig(kind="gmpo", clip_low=0.4, clip_high=0.4),
        0.4750380768726023, [-0.066266053, 0.059551789, 0.179426439, 0.135746235],
    ),
    "verl geo_mean, two bounds": (
        PolicyLossConfig(kind="gmpo", clip_low=0.2, clip_high=0.5),
        0.5142958214171125, [-0.081140374, 0.067144454, 0.148961177, 0.145104459],
    ),
    "TRL dapo, top_entropy_quantile 0.3": (
        PolicyLossConfig(kind="dapo", tokens=TokenChoiceConfig(0.3)),
        0.05337305151127794, [-0.025048495, 0.0, 0.093980904, 0.0],
    ),
    "TRL grpo, top_entropy_quantile 0.5": (
        PolicyLossConfig(kind="grpo", tokens=TokenChoiceConfig(0.5)),
        0.14106483562373648, [-0.018786371, 0.044683764, 0.108928274, 0.0],
    ),
    "TRL grpo, token_truncate": (
        PolicyLossConfig(importance=importance("token_truncate")),
        0.6003574636914182, [-0.042527659, 0.108260516, 0.214638476, 0.19300292],
    ),
    "TRL grpo, token_mask": (
        PolicyLossConfig(importance=importance("token_mask")),
        0.31550937050889927, [-0.022943131, 0.028368449, 0.076357088, 0.19300292],
    ),
    "TRL grpo, sequence_truncate": (
        PolicyLossConfig(importance=importance("sequence_truncate")),
        0.7578269516499171, [-0.064327597, 0.119066645, 0.294851014, 0.264636753],
    ),
    "TRL grpo, sequence_mask": (
        PolicyLossConfig(importance=importance("sequence_mask")),
        0.5448486376107289, [0.0, 0.119066645, 0.294851014, 0.0],
    ),
    "TRL cispo, token_mask": (
        PolicyLossConfig(
            kind="cispo", clip_low=1.0, clip_high=0.3, importance=importance("token_mask")
        ),
        -0.28178956174971104, [-0.051428267, 0.037430756, 0.097167805, 0.093172201],
    ),
    "verl cispo, rollout_is token": (
        PolicyLossConfig(
            kind="cispo", clip_low=0.2, clip_high=0.3,
            importance=ImportanceConfig("token_truncate", 0.0, 1.5),
        ),
        -0.6583370945705301, [-0.144134439, 0.149086935, 0.253888487, 0.138897915],
    ),
    "verl cispo, rollout_is sequence": (
        PolicyLossConfig(
            kind="cispo", clip_low=0.2, clip_high=0.3,
            importance=ImportanceConfig("sequence_truncate", 0.0, 1.5),
        ),
        -0.8353236705813448, [-0.186996956, 0.185023274, 0.333069867, 0.171605294],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDED)
def test_as_trl_and_verl_have_it(name: str):
    config, value, gradients = RECORDED[name]
    batch = random_batch()
    if config.tokens is not None:
        chosen = select_tokens(batch.entropy_BN, batch.mask_BN, batch.is_image_BN, config.tokens)
        batch = dataclasses.replace(batch, selected_BN=chosen)
    loss, gradient, _ = loss_and_gradient(batch, config)
    assert loss == pytest.approx(value, abs=1e-6)
    np.testing.assert_allclose(gradient.sum(axis=1), gradients, atol=1e-6)


def numpy_cispo(x: dict[str, np.ndarray], logp: np.ndarray, held: np.ndarray) -> float:
    """1/Σ|o| Σ sg(clip(r)) A logp, negative; `held`: log-probs of the ratio, not differentiated."""
    ratio = np.clip(np.exp(held - x["old"]), 0.8, 1.3)
    total = sum(
        ratio[i, t] * x["adv"][i] * logp[i, t] for i, t in zip(*np.nonzero(x["mask"]), strict=True)
    )
    return -total / x["mask"].sum()


def numpy_gmpo(x: dict[str, np.ndarray], logp: np.ndarray, _: np.ndarray) -> float:
    """Products of ratios, each (min of ratio^s and clipped ratio^s)^s with s = sign of A."""
    losses = []
    for i, adv in enumerate(x["adv"]):
        product, s = 1.0, np.sign(adv)
        for t in np.nonzero(x["mask"][i])[0]:
            ratio = np.exp(logp[i, t] - x["old"][i, t])
            bounded = np.clip(ratio, np.exp(-0.4), np.exp(0.4))
            product *= min(ratio**s, bounded**s) ** s
        losses.append(-adv * product ** (1 / x["mask"][i].sum()))
    return float(np.mean(losses))


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (PolicyLossConfig(kind="cispo", clip_low=0.2, clip_high=0.3), numpy_cispo),
        (PolicyLossConfig(kind="gmpo", clip_low=0.4, clip_high=0.4), numpy_gmpo),
    ],
)
def test_as_the_papers_write_it(config: PolicyLossConfig, reference: Callable[..., float]):
    """In float64, token by token; the gradient by central differences."""
    x = random_inputs()
    loss, gradient, _ = loss_and_gradient(random_batch(), config)
    assert loss == pytest.approx(reference(x, x["logp"], x["logp"]), abs=1e-6)
    wanted = np.zeros((4, 7))
    for place in np.ndindex(4, 7):
        step = np.zeros((4, 7))
        step[place] = 1e-5
        ends = [reference(x, x["logp"] + sign * step, x["logp"]) for sign in (1, -1)]
        wanted[place] = (ends[0] - ends[1]) / 2e-5
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)


EVERYTHING = {
    "importance": ImportanceConfig("sequence_truncate", 0.1, 3.0),
    "tokens": TokenChoiceConfig(0.6, 0.5),
    "entropy_bonus": EntropyBonusConfig(0.2, 0.1),
}


@pytest.mark.parametrize("kind", ["grpo", "gspo", "cispo", "gmpo"])
def test_micro_batches_add_up_with_everything_on(kind: str):
    config = PolicyLossConfig(kind=kind, text_weight=2.0, **EVERYTHING)  # type: ignore[arg-type]
    batch = random_batch(image_from=4)
    chosen = select_tokens(batch.entropy_BN, batch.mask_BN, batch.is_image_BN, config.tokens)
    batch = dataclasses.replace(batch, selected_BN=chosen)
    norm = count_normalisers(batch.mask_BN, batch.is_image_BN, batch.row_mask_B)
    loss, gradient, stats = loss_and_gradient(batch, config)

    def of_rows(rows: slice) -> Any:
        part = jax.tree.map(lambda a: a[rows], batch)
        return policy_loss(part, config, norm)

    (one, first), (two, second) = of_rows(slice(0, 2)), of_rows(slice(2, 4))
    assert one + two == pytest.approx(loss, abs=1e-6)
    total = [float(leaf) for leaf in jax.tree.leaves(add_stats(first, second))]
    assert total == pytest.approx([float(leaf) for leaf in jax.tree.leaves(stats)], abs=1e-6)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-3
    # NaN where nothing was sampled, and in a sample without a reward, reaches nothing.
    names = ("logp_BN", "old_logp_BN", "sampler_logp_BN", "entropy_BN")
    broken = {n: jnp.where(batch.mask_BN, getattr(batch, n), NAN) for n in names}
    again, gradient_2, _ = loss_and_gradient(dataclasses.replace(batch, **broken), config)
    assert again == pytest.approx(loss, abs=1e-6)
    np.testing.assert_allclose(gradient_2, gradient, atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ({"kind": "ppo"}, "choose from grpo, .*cispo.*file.py:function"),
        ({"kind": ""}, "kind"),
        ({"importance": {"kind": "token"}}, "token_truncate"),
        ({"importance": {"high": 0.5}}, "importance.high"),
        ({"importance": {"low": 2.0}}, "importance.low"),
        ({"tokens": {"text_share": 0.0}}, "tokens.text_share"),
        ({"entropy_bonus": {"limit": 1.0}}, "entropy_bonus.limit"),
    ],
)
def test_wrong_settings_are_refused(loss: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        from_dict(GrpoConfig, {"run_dir": "run", "loss": loss})
