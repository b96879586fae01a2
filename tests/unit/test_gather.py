"""Refill: which groups a step learns from and what is wasted, by hand."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_rows

from gotr1_jax.decoding.config import LogpSettings
from gotr1_jax.grpo.advantages import GroupAdvantages, group_advantages
from gotr1_jax.grpo.dynamic_sampling import SampledGroups, sample_groups
from gotr1_jax.grpo.rollout import JudgedSample, ScoredRollout
from gotr1_jax.plan import parse_plan
from gotr1_jax.rewards import JudgeResult
from gotr1_jax.sampler.sampler import Rollout

NAN = math.nan
# Rounds of three groups of two.
FLAT, GOOD, WORSE, HALF, LOST = (1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (1.0, NAN), (NAN, NAN)


def scored(groups: list[tuple[float, float]], start: int) -> ScoredRollout:
    totals = np.asarray(groups, np.float32).reshape(-1)
    B = len(totals)
    names = tuple(f"caption {start + i // 2}" for i in range(B))
    return ScoredRollout(
        rollout=Rollout(
            jax.tree.map(jnp.asarray, random_rows(B, start)),
            jnp.zeros((B, 5)),
            jnp.zeros((B, 9)),
            LogpSettings(),
        ),
        captions=names,
        caption_indices_B=start + np.arange(B) // 2,
        judged={
            b: JudgedSample(parse_plan(names[b]), np.zeros((2, 2, 3), np.uint8), JudgeResult({}))
            for b in range(B)
        },
        scores={"verdict": totals},
        total_B=totals,
        plan_tokens_B=totals,
        truncated_B=totals,
        boxes_B=totals,
        judge_seconds=1.0,
        reward_seconds=2.0,
    )


def gather(rounds: list[list[tuple[float, float]]], resample_rounds: int) -> SampledGroups:
    asked: list[int] = []
    held: list[int] = []

    def draw(number: int) -> ScoredRollout:
        asked.append(number)
        return scored(rounds[number], 3 * number)

    def advantages(rewards_PG: np.ndarray) -> GroupAdvantages:
        held.append(len(rewards_PG))
        return group_advantages(rewards_PG, np.isfinite(rewards_PG), "mean")

    found = sample_groups(draw, advantages, 2, resample_rounds)
    assert asked == list(range(found.rounds))
    assert max(held) <= 6, "no more than one round is held besides the kept groups"
    assert np.isfinite(found.advantages_B).all() and len(found.scored) == 6
    return found


def test_no_refill_is_needed() -> None:
    found = gather([[GOOD, WORSE, GOOD]], resample_rounds=8)
    assert (found.rounds, found.zero_variance_frac, found.wasted_frac) == (1, 0, 0)
    np.testing.assert_array_equal(found.advantages_B, [-0.5, 0.5, 0.5, -0.5, -0.5, 0.5])


def test_groups_without_variance_are_replaced_in_order() -> None:
    # Learned from: captions 1, 3 and 5; of 12 rows 6 are wasted. Caption 6 is never drawn.
    found = gather([[FLAT, GOOD, FLAT], [WORSE, FLAT, GOOD], [GOOD] * 3], resample_rounds=8)
    assert found.rounds == 2 and found.zero_variance_frac == 3 / 6
    assert found.scored.caption_indices_B.tolist() == [1, 1, 3, 3, 5, 5]
    np.testing.assert_array_equal(found.scored.total_B, [0, 1, 1, 0, 0, 1])
    np.testing.assert_array_equal(found.advantages_B, [-0.5, 0.5, 0.5, -0.5, -0.5, 0.5])
    assert not found.zero_variance_P.any() and found.wasted_frac == 0.5
    assert (found.scored.judge_seconds, found.scored.reward_seconds) == (2, 4)


def test_good_groups_too_many_are_wasted() -> None:
    found = gather([[GOOD, GOOD, FLAT], [GOOD] * 3], resample_rounds=1)
    assert found.scored.caption_indices_B.tolist() == [0, 0, 1, 1, 3, 3]
    assert found.zero_variance_frac == 1 / 6 and found.wasted_frac == 0.5


def test_an_exhausted_refill_goes_on_with_what_there_is() -> None:
    rounds = [[FLAT, LOST, FLAT], [FLAT] * 3, [FLAT, FLAT, GOOD]]
    found = gather(rounds, resample_rounds=2)
    assert found.rounds == 3 and found.zero_variance_frac == 8 / 9
    # The first of the flat ones fill up; nothing is learned from them.
    assert found.scored.caption_indices_B.tolist() == [0, 0, 1, 1, 8, 8]
    assert found.zero_variance_P.tolist() == [True, True, False]
    np.testing.assert_array_equal(found.advantages_B, [0, 0, 0, 0, -0.5, 0.5])
    assert found.row_mask_B.tolist() == [True, True, False, False, True, True]
    assert found.wasted_frac == pytest.approx(16 / 18)


def test_a_group_of_one_reward_teaches_nothing() -> None:
    found = gather([[HALF, GOOD, GOOD]], resample_rounds=0)
    assert found.zero_variance_P.tolist() == [True, False, False]
    np.testing.assert_array_equal(found.advantages_B, [0, 0, -0.5, 0.5, -0.5, 0.5])
    assert found.wasted_frac == pytest.approx(2 / 6)


def test_nothing_at_all() -> None:
    found = gather([[LOST] * 3, [LOST] * 3], resample_rounds=1)
    assert found.wasted_frac == 1 and found.zero_variance_P.all() and not found.row_mask_B.any()
