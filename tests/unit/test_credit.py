"""Advantages of plan and image: segments, GDPO, plan trees, RAFT and best-of-plan, by hand."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gotr1_jax.config import from_dict
from gotr1_jax.errors import InputError
from gotr1_jax.grpo.advantages import (
    gdpo_advantages,
    group_advantages,
    mean_over_chosen,
    normalise_batch,
    sample_advantages,
)
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.grpo.credit import make_credit
from gotr1_jax.grpo.dynamic_sampling import SampledGroups, sample_groups
from gotr1_jax.grpo.losses import LossBatch, PolicyLossConfig, count_normalisers, policy_loss
from gotr1_jax.grpo.metrics import advantage_metrics
from gotr1_jax.grpo.per_modality import PerModality
from gotr1_jax.grpo.rollout import SampleTable, ScoredRollout
from gotr1_jax.grpo.setup import loss_settings

NAN, HALF = math.nan, 0.5**0.5


def both(rewards_PG: Any) -> PerModality:
    return PerModality(jnp.asarray(rewards_PG), jnp.asarray(rewards_PG))


def close(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_plan_and_image_learn_from_rewards_of_their_own() -> None:
    """Three samples with both rewards: plan mean 2/3, image mean 1/2. The third leaves both."""
    rewards = PerModality([[0.0, 1.0, 0.5, 1.0]], [[1.0, 0.0, NAN, 0.5]])
    found = sample_advantages(rewards, "mean", "segment")
    close(found.advantages.text, [[-2 / 3, 1 / 3, 0, 1 / 3]])
    close(found.advantages.image, [[0.5, -0.5, 0, 0]])
    assert found.mask_PG.tolist() == [[True, True, False, True]]


def test_a_group_has_variance_if_one_of_its_segments_has() -> None:
    flat, varied = [0.5, 0.5], [0.0, 1.0]
    rewards = PerModality([flat, varied, flat, [1, NAN]], [varied, flat, flat, [NAN, 1]])
    found = sample_advantages(rewards, "mean", "segment")
    assert found.zero_variance_P.tolist() == [False, False, True, True]
    close(found.advantages.text, [[0, 0], [-0.5, 0.5], [0, 0], [0, 0]])
    assert found.mask_PG[3].tolist() == [False, False]


# Plans with two images each: means 1/2, 1 (of one image) and none. The plans that are left:
# mean 3/4, centered -1/4 and 1/4, std sqrt(1/8); of two, leave one out doubles what is centered.
TREE = [[1.0, 0.0, 1.0, NAN, NAN, NAN]]


@pytest.mark.parametrize(
    ("kind", "plan", "image"),
    [
        ("mean", 0.25, 0.5),
        ("mean_std", HALF, HALF),
        ("leave_one_out", 0.5, 1.0),
    ],
)
def test_a_tree_compares_plans_by_their_images_and_images_of_one_plan(
    kind: Any, plan: float, image: float
) -> None:
    found = sample_advantages(both(TREE), kind, "tree", images_per_plan=2)
    close(found.advantages.text, [[-plan, -plan, plan, 0, 0, 0]])
    close(found.advantages.image, [[image, -image, 0, 0, 0, 0]])
    assert found.mask_PG.tolist() == [[True, True, True, False, False, False]]
    assert not found.zero_variance_P.any()


def test_equal_plans_and_equal_images_of_a_tree() -> None:
    """Plans of one mean, images of one reward in each plan, and both."""
    rewards = [[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0], [0.3] * 4]
    found = sample_advantages(both(rewards), "mean", "tree", images_per_plan=2)
    close(found.advantages.text, [[0] * 4, [-0.5, -0.5, 0.5, 0.5], [0] * 4])
    close(found.advantages.image, [[0.5, -0.5, -0.5, 0.5], [0] * 4, [0] * 4])
    assert found.zero_variance_P.tolist() == [False, False, True]


def test_only_the_best_image_of_a_plan_is_learned_from() -> None:
    """The plans' best are 0.6 and 1, mean 0.8; a flat comparison would have the mean 0.55."""
    rewards = [[0.2, 0.6, 1.0, 0.4, NAN, NAN]]
    found = sample_advantages(both(rewards), "mean", "best_of_plan", images_per_plan=2)
    close(found.advantages.text, [[0, -0.2, 0.2, 0, 0, 0]])
    close(found.advantages.image, found.advantages.text)
    assert found.mask_PG.tolist() == [[False, True, True, False, False, False]]


def test_raft_keeps_the_first_of_the_best() -> None:
    rewards = [[0.2, 0.9, 0.9, NAN], [0.5] * 4, [NAN] * 4]
    found = group_advantages(jnp.array(rewards), kind="raft")
    close(found.adv_PG, [[0, 1, 0, 0], [0] * 4, [0] * 4])
    assert found.mask_PG.tolist() == [[False, True, False, False], [False] * 4, [False] * 4]
    assert found.zero_variance_P.tolist() == [False, True, True]


def test_raft_in_a_tree_keeps_the_best_plan_and_the_best_image_of_each() -> None:
    found = sample_advantages(both([[0.0, 0.4, 0.9, 0.3]]), "raft", "tree", images_per_plan=2)
    close(found.advantages.text, [[0, 0, 1, 1]])
    close(found.advantages.image, [[0, 1, 1, 0]])
    assert found.mask_PG.tolist() == [[False, True, True, True]]


def test_gdpo_keeps_apart_what_one_sum_makes_equal() -> None:
    """Arxiv 2601.05242: in the second group both terms grow. Of two samples a term's advantages are
    -+1/sqrt 2; the first group's second term has no variance and adds 0. Sums: 1/sqrt 2, sqrt 2;
    over the batch mean 0, std sqrt((2 * 1/2 + 2 * 2) / 3) = sqrt(5/3). Advantages of the total
    would be 1/sqrt 2 in both groups.
    """
    a, b = [[0.0, 1.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]]
    terms = PerModality([a, b], [a, b])
    found = normalise_batch(gdpo_advantages(terms, PerModality([1.0, 1.0], [1.0, 1.0])))
    std = math.sqrt(5 / 3)
    close(found.advantages.text, [[-HALF / std, HALF / std], [-2 * HALF / std, 2 * HALF / std]])
    assert found.advantages.text.tolist() == found.advantages.image.tolist()
    summed = group_advantages(np.add(a, b), kind="mean_std")
    close(summed.adv_PG, [[-HALF, HALF], [-HALF, HALF]])


def test_gdpo_of_weights_missing_scores_and_groups_without_variance() -> None:
    """Sums 1/sqrt 2 (1 - 1/2) and, without the sample that lacks a term, 1/sqrt 2 (1 + 1/2)."""
    a = [[0.0, 1.0, 0.3], [2.0, 5.0, NAN], [1.0, 1.0, 1.0]]
    b = [[3.0, -3.0, NAN], [0.0, 0.1, 0.0], [2.0, 2.0, 2.0]]
    terms = PerModality([a, b], [a, b])
    found = gdpo_advantages(terms, PerModality([1.0, 0.5], [1.0, 0.5]))
    sums = [[-0.5 * HALF, 0.5 * HALF, 0], [-1.5 * HALF, 1.5 * HALF, 0], [0, 0, 0]]
    close(found.advantages.text, sums)
    assert found.mask_PG.tolist() == [[True, True, False], [True, True, False], [True] * 3]
    assert found.zero_variance_P.tolist() == [False, False, True]
    whole = normalise_batch(found)
    # Seven samples count: sum of squares 2 (1/8 + 9/8) = 5/2, over 6.
    close(whole.advantages.text, np.array(sums) / math.sqrt(2.5 / 6))
    assert whole.advantages.text[2].tolist() == [0, 0, 0]
    # Terms that cancel teach nothing, whatever rounding leaves.
    none = gdpo_advantages(PerModality([a, a], [a, a]), PerModality([0.3, -0.3], [0.3, -0.3]))
    assert none.zero_variance_P.all() and not np.any(normalise_batch(none).advantages.text)


def test_gdpo_of_segments_and_trees() -> None:
    plan, image = [[0.0, 1.0], [1.0, 0.0]], [[0.0, 5.0], [1.0, 1.0]]
    terms, weights = PerModality([plan], [image, plan]), PerModality([1.0], [1.0, 1.0])
    found = gdpo_advantages(terms, weights, "segment")
    close(found.advantages.text, [[-HALF, HALF], [HALF, -HALF]])
    close(found.advantages.image, [[-2 * HALF, 2 * HALF], [HALF, -HALF]])
    tree = PerModality([[[0.0, 1.0, 2.0, 3.0]]], [[[0.0, 1.0, 3.0, 2.0]]])
    found = gdpo_advantages(tree, PerModality([2.0], [1.0]), "tree", 2)
    close(found.advantages.text, [[-2 * HALF, -2 * HALF, 2 * HALF, 2 * HALF]])
    close(found.advantages.image, [[-HALF, HALF, HALF, -HALF]])


def loss_batch(advantages: PerModality, mask_B: Any, logp_BN: jax.Array) -> LossBatch:
    """Samples of two plan and two image tokens, the second plan token of the first not sampled."""
    B = logp_BN.shape[0]
    return LossBatch(
        logp_BN=logp_BN,
        old_logp_BN=jax.lax.stop_gradient(logp_BN),
        mask_BN=jnp.ones((B, 4), bool).at[0, 1].set(False),
        is_image_BN=jnp.tile(jnp.arange(4) >= 2, (B, 1)),
        advantages=advantages,
        row_mask_B=jnp.asarray(mask_B),
    )


@pytest.mark.parametrize("kind", ["grpo", "dapo", "gspo"])
def test_the_first_update_of_raft_is_supervised_fine_tuning_on_the_best(kind: Any) -> None:
    """The gradient is that of the mean over the chosen samples of -log p, their tokens' mean; dapo
    takes the mean over all tokens. Samples 0 and 3 are the best of their groups."""
    found = group_advantages(jnp.array([[0.9, 0.1], [0.2, 0.3]]), kind="raft")
    mask_B, adv_B = found.mask_PG.reshape(-1), found.adv_PG.reshape(-1)
    assert mask_B.tolist() == [True, False, False, True]
    logp_BN = -jnp.arange(1.0, 17.0).reshape(4, 4) / 8

    def loss(logp_BN: jax.Array) -> jax.Array:
        batch = loss_batch(PerModality(adv_B, adv_B), mask_B, logp_BN)
        counts = count_normalisers(batch.mask_BN, batch.is_image_BN, batch.row_mask_B)
        return policy_loss(batch, PolicyLossConfig(kind=kind), counts)[0]

    def fine_tuning(logp_BN: jax.Array) -> jax.Array:
        first, last = logp_BN[0, jnp.array([0, 2, 3])], logp_BN[3]
        if kind == "dapo":
            return -(first.sum() + last.sum()) / 7
        return -(first.mean() + last.mean()) / 2

    close(jax.grad(loss)(logp_BN), jax.grad(fine_tuning)(logp_BN))


def test_plan_and_image_learn_from_their_own_best_by_means_over_these() -> None:
    """The best plans are those of samples 0 and 3, the best images of 1 and 3: three samples in the
    loss, two for each side. Tokens of the samples: 3, 4 and 4."""
    rewards = PerModality([[0.9, 0.1], [0.2, 0.3]], [[0.1, 0.9], [0.2, 0.3]])
    found = mean_over_chosen(sample_advantages(rewards, "raft", "segment"))
    close(found.advantages.text, [[1.5, 0], [0, 1.5]])
    close(found.advantages.image, [[0, 1.5], [0, 1.5]])
    sides = PerModality(*(x.reshape(-1) for x in (found.advantages.text, found.advantages.image)))

    def loss(logp_BN: jax.Array) -> jax.Array:
        batch = loss_batch(sides, found.mask_PG.reshape(-1), logp_BN)
        counts = count_normalisers(batch.mask_BN, batch.is_image_BN, batch.row_mask_B)
        return policy_loss(batch, PolicyLossConfig(), counts)[0]

    gradient_BN = jax.grad(loss)(jnp.zeros((4, 4)))
    close(gradient_BN, -np.array([[1 / 6, 0, 0, 0], [0, 0, *[1 / 8] * 2], [0] * 4, [1 / 8] * 4]))
    alone = sample_advantages(rewards, "raft")
    assert mean_over_chosen(alone).advantages.text.tolist() == alone.advantages.text.tolist()
    nothing = mean_over_chosen(sample_advantages(both([[1.0, 1.0]]), "raft", "segment"))
    assert nothing.advantages.image.tolist() == [[0, 0]]


@pytest.mark.parametrize("size", [1e15, 1e20, 1e30])
def test_advantages_of_very_large_rewards(size: float) -> None:
    """Squares of 1e20 are no float32: with them the advantages would silently be 0."""
    rewards, small = jnp.array([[0.0, size, size / 2, NAN]]), [[0.0, 1.0, 0.5, NAN]]
    for kind in ("mean", "mean_std", "leave_one_out", "raft"):
        found, wanted = (group_advantages(r, kind=kind).adv_PG for r in (rewards, small))
        is_scaled = kind in ("mean", "leave_one_out")
        close(found / (size if is_scaled else 1), wanted)


def test_gdpo_of_a_tree_that_lacks_images_has_mean_0_over_the_batch() -> None:
    """Plans of one, two and two scored images: -1, 0, 0, 1, 1, whose mean is not 0, and the 0 of a
    group without variance, which stays 0."""
    rewards = [[0.0, NAN, 1.0, 1.0, 2.0, 2.0], [0.5, NAN, NAN, NAN, NAN, NAN]]
    terms = PerModality([rewards], [rewards])
    found = normalise_batch(gdpo_advantages(terms, PerModality([1.0], [1.0]), "tree", 2))
    values = np.array([-1, 0, 0, 1, 1, 0])
    wanted = (values - 1 / 6) / values.std(ddof=1)
    close(found.advantages.text[0], [wanted[0], 0, *wanted[1:5]])
    assert not found.advantages.text[1].any()


def test_gspo_has_a_ratio_for_each_part_that_is_compared() -> None:
    """Ratios 1.5; 1 and 1/2, together sqrt(1/2). Plan, A = 1: min(1.5, 1.2); image, A = -1: the
    clipped 0.8. Of three tokens (-1.2 + 0.8 + 0.8) / 3. With one ratio, (3/4)^(1/3), for all three:
    (-0.9086 + 0.9086 + 0.9086) / 3."""
    logp_BN = jnp.log(jnp.array([[1.5, 9.0, 1.0, 0.5]]))
    batch = loss_batch(PerModality(jnp.array([1.0]), jnp.array([-1.0])), [True], logp_BN)
    batch = LossBatch(**{**vars(batch), "old_logp_BN": jnp.zeros((1, 4))})
    counts = count_normalisers(batch.mask_BN, batch.is_image_BN, batch.row_mask_B)

    def loss(ratio: Any) -> float:
        config = PolicyLossConfig(kind="gspo", gspo_ratio=ratio)
        return float(policy_loss(batch, config, counts)[0])

    assert loss("segment") == pytest.approx(0.4 / 3, abs=1e-6)
    assert loss("sample") == pytest.approx(0.75 ** (1 / 3) / 3, abs=1e-6)


def settings(**sections: Any) -> GrpoConfig:
    return from_dict(GrpoConfig, {"run_dir": "run", **sections})


def scored(group_size: int, **scores: list[float]) -> ScoredRollout:
    """Rows with the scores of a few terms, the first of which is the total."""
    columns = np.array(list(scores.values()), np.float32)
    zeros_B = np.zeros(columns.shape[1])
    record_B = np.full(len(zeros_B), None, object)
    names = ("caption_index_B", "plan_tokens_B", "truncated_B", "boxes_B", "score_like_B")
    rest = {name: zeros_B for name in names} | {"record_B": record_B}
    table = SampleTable(terms=tuple(scores), scores_BK=columns.T, total_B=columns[0], **rest)
    return ScoredRollout(None, table, group_size, 0.0, 0.0)  # type: ignore[arg-type]


def learned(config: GrpoConfig) -> tuple[str, str]:
    return config.learned_from.text.text, config.learned_from.image.text


def test_terms_say_whose_tokens_they_teach() -> None:
    split = {"scope": "segment"}
    assert learned(settings()) == (settings().reward.expression.text,) * 2
    assert learned(settings(advantage=split)) == ("(sem + spa)", "pi * ri")
    own = {"python": "rewards.py:score"}
    terms = {"sem": {}, "pi": {"weight": 2.0}, "own": own, "late": {**own, "stage": "image"}}
    config = settings(advantage=split, reward={"total": "sem * pi * own - late", "terms": terms})
    assert learned(config) == ("(sem + own) / 2", "(pi + own + late) / 3")
    # Any assignment of one's own; without one a tree compares the whole total.
    given = {"scope": "segment", "text": "sem + pi", "image": "min(pi, ri)"}
    assert learned(settings(advantage=given)) == ("sem + pi", "min(pi, ri)")
    tree = {"advantage": {"scope": "tree", "image": "pi"}, "rollout": {"images_per_plan": 4}}
    assert learned(settings(**tree)) == (settings().reward.expression.text, "pi")
    # gspo has a ratio for each of what is compared.
    loss = {"kind": "gspo"}
    assert loss_settings(settings(advantage=split, loss=loss), 4).gspo_ratio == "segment"
    assert loss_settings(settings(loss=loss), 4).gspo_ratio == "sample"
    loss |= {"gspo_ratio": "sample"}
    assert loss_settings(settings(advantage=split, loss=loss), 4).gspo_ratio == "sample"


def test_credit_of_the_scores_of_a_rollout() -> None:
    rows = scored(2, total=[0.0, 1.0], sem=[1.0, 0.0], spa=[1.0, 1.0], ri=[0.5, 1.0], pi=[0.4, 0.4])
    by_part = make_credit(settings(advantage={"kind": "mean", "scope": "segment"})).groups(rows)
    # Plan 2 and 1; image 0.2 and 0.4.
    close(by_part.advantages.text, [[0.5, -0.5]])
    close(by_part.advantages.image, [[-0.1, 0.1]])
    whole = make_credit(settings(advantage={"kind": "mean"})).groups(rows)
    assert whole.advantages.text.tolist() == whole.advantages.image.tolist() == [[-0.5, 0.5]]
    # GDPO: weights count, scale and sign of a term's range do not.
    terms = {"sem": {"weight": 3.0, "scale": 10.0}, "ri": {"weight": -1.0, "scale": 50.0}}
    gdpo = {"advantage": {"kind": "gdpo"}, "reward": {"total": "sem + ri", "terms": terms}}
    credit = make_credit(settings(**gdpo))
    found = credit.groups(rows)
    close(found.advantages.text / (4 * HALF), [[1, -1]])
    close(credit.batch(found).advantages.text, [[HALF, -HALF]])


def test_rows_that_raft_leaves_out_are_wasted_and_groups_without_variance_replaced() -> None:
    credit = make_credit(settings(advantage={"kind": "raft"}))
    rounds = [[0.1, 0.4, 0.5, 0.5], [0.2, 0.2, 0.9, 0.3]]

    def sample(number: int) -> ScoredRollout:
        return scored(2, total=rounds[number])

    with pytest.MonkeyPatch.context() as patch:
        for name in ("take_on_mesh", "concatenate_on_mesh"):
            patch.setattr(f"gotr1_jax.grpo.rollout.{name}", lambda *_: None)
        found = sample_groups(sample, credit.groups, 1, credit.batch)
    assert (found.rounds, found.zero_variance_frac, found.wasted_frac) == (2, 0.5, 0.75)
    np.testing.assert_array_equal(found.advantages.text, [0, 1, 1, 0])
    assert found.row_mask_B.tolist() == [False, True, True, False]
    values = advantage_metrics(found)
    assert values["advantage/abs_max/text"] == 1 and values["advantage/std/image"] == 0


def test_statistics_of_advantages_are_of_the_samples_in_the_loss() -> None:
    advantages = PerModality(np.array([3.0, -3.0, 0.0, 9.0]), np.zeros(4))
    mask_B = np.array([True, True, True, False])
    groups = SampledGroups(None, advantages, mask_B, None, 0.0, 1, None)  # type: ignore[arg-type]
    found = advantage_metrics(groups)
    assert found["advantage/std/text"] == pytest.approx(math.sqrt(6))
    assert (found["advantage/abs_max/text"], found["advantage/zero_frac/image"]) == (3, 1)
    assert found["advantage/zero_frac/text"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"advantage": {"scope": "plan"}}, "advantage.scope is 'plan'; choose one of sample"),
        ({"advantage": {"text": "sem"}}, "advantage.text is 'sem' with scope sample"),
        (
            {"advantage": {"scope": "segment", "text": "sem + spo"}},
            "advantage.text is 'sem \\+ spo'; character 7: no judge gives 'spo'",
        ),
        (
            {"advantage": {"scope": "segment", "image": "(pi"}},
            "advantage.image is '\\(pi'; character",
        ),
        (
            {"advantage": {"kind": "gdpo"}, "reward": {"total": "pi * 2 - ri"}},
            r"reward.total is 'pi \* 2 - ri'; character 8: advantage.kind gdpo adds the terms",
        ),
        ({"advantage": {"kind": "gdpo"}, "reward": {"total": "pi + -0.5 * ri"}}, "character 11: "),
        (
            {"advantage": {"scope": "segment"}, "reward": {"total": "pi * ri"}},
            r"has no term that judges the plan \(pi image, ri image\); set advantage.text",
        ),
        ({"advantage": {"scope": "tree"}}, "advantage.scope is tree, .*images_per_plan is 1;"),
        (
            {"advantage": {"scope": "best_of_plan"}, "rollout": {"images_per_plan": 16}},
            "images_per_plan 16 leaves one of 16",
        ),
        (
            {
                "advantage": {"scope": "best_of_plan", "kind": "gdpo"},
                "rollout": {"images_per_plan": 4},
            },
            "advantage.kind is gdpo with scope best_of_plan",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(sections: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        settings(**sections)
