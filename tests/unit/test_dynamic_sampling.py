"""Dynamic sampling: which groups a step learns from and what is wasted, by hand."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_rows

from gotr1_jax.decoding.config import LogpConfig
from gotr1_jax.grpo.advantages import SampleAdvantages, sample_advantages
from gotr1_jax.grpo.dynamic_sampling import SampledGroups, sample_groups
from gotr1_jax.grpo.per_modality import PerModality
from gotr1_jax.grpo.rollout import SampleTable, ScoredRollout
from gotr1_jax.plan import parse_plan
from gotr1_jax.rewards.base import JudgeRequest, JudgeResult
from gotr1_jax.sampler.sampler import Rollout
from gotr1_jax.trainer.samples import SampleRecord

NAN = math.nan
# Rounds of three groups of two.
FLAT, GOOD, WORSE, HALF, LOST = (1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (1.0, NAN), (NAN, NAN)


def record(caption_index: int, total: float) -> SampleRecord:
    name = f"caption {caption_index}"
    request = JudgeRequest(name, parse_plan(name), np.zeros((2, 2, 3), np.uint8))
    return SampleRecord.scored(request, JudgeResult({"verdict": total}), total)


def scored(groups: list[tuple[float, float]], start: int) -> ScoredRollout:
    totals = np.asarray(groups, np.float32).reshape(-1)
    B = len(totals)
    caption_index_B = start + np.arange(B) // 2
    records = [record(*row) for row in zip(caption_index_B.tolist(), totals.tolist())]
    table = SampleTable(
        terms=("verdict",),
        caption_index_B=caption_index_B,
        scores_BK=totals[:, None],
        total_B=totals,
        plan_tokens_B=totals,
        truncated_B=totals,
        boxes_B=totals,
        score_like_B=totals,
        # Of two processes this one scored the first half.
        record_B=np.asarray(records[: B // 2] + [None] * (B - B // 2)),
    )
    rows = jax.tree.map(jnp.asarray, random_rows(B, start))
    rollout = Rollout(rows, jnp.zeros((B, 5)), jnp.zeros((B, 9)), LogpConfig())
    return ScoredRollout(rollout, table, group_size=2, judge_seconds=1.0, reward_seconds=2.0)


def run(rounds: list[list[tuple[float, float]]], resample_rounds: int) -> SampledGroups:
    sampled: list[int] = []
    held: list[int] = []

    def sample(number: int) -> ScoredRollout:
        sampled.append(number)
        return scored(rounds[number], 3 * number)

    def advantages(scored: ScoredRollout) -> SampleAdvantages:
        held.append(len(scored.rewards_PG))
        return sample_advantages(PerModality(scored.rewards_PG, scored.rewards_PG), "mean")

    found = sample_groups(sample, advantages, resample_rounds)
    assert sampled == list(range(found.rounds))
    assert max(held) <= 6, "no more than one round is held besides the kept groups"
    assert np.isfinite(found.advantages.text).all() and len(found.scored) == 6
    return found


def test_one_round_is_enough() -> None:
    found = run([[GOOD, WORSE, GOOD]], resample_rounds=8)
    assert (found.rounds, found.zero_variance_frac, found.wasted_frac) == (1, 0, 0)
    np.testing.assert_array_equal(found.advantages.text, [-0.5, 0.5, 0.5, -0.5, -0.5, 0.5])


def test_groups_without_variance_are_replaced_in_order() -> None:
    # Kept: captions 1, 3 and 5; of 12 rows 6 are wasted. Caption 6 is never sampled.
    found = run([[FLAT, GOOD, FLAT], [WORSE, FLAT, GOOD], [GOOD] * 3], resample_rounds=8)
    assert found.rounds == 2 and found.zero_variance_frac == 3 / 6
    assert found.scored.table.caption_index_B.tolist() == [1, 1, 3, 3, 5, 5]
    np.testing.assert_array_equal(found.scored.table.total_B, [0, 1, 1, 0, 0, 1])
    np.testing.assert_array_equal(found.advantages.text, [-0.5, 0.5, 0.5, -0.5, -0.5, 0.5])
    assert not found.zero_variance_P.any() and found.wasted_frac == 0.5
    assert (found.scored.judge_seconds, found.scored.reward_seconds) == (2, 4)


def test_good_groups_that_are_not_needed_are_wasted() -> None:
    found = run([[GOOD, GOOD, FLAT], [GOOD] * 3], resample_rounds=1)
    assert found.scored.table.caption_index_B.tolist() == [0, 0, 1, 1, 3, 3]
    assert found.zero_variance_frac == 1 / 6 and found.wasted_frac == 0.5


def test_after_the_last_round_groups_with_zero_variance_fill_up() -> None:
    rounds = [[FLAT, LOST, FLAT], [FLAT] * 3, [FLAT, FLAT, GOOD]]
    found = run(rounds, resample_rounds=2)
    assert found.rounds == 3 and found.zero_variance_frac == 8 / 9
    # The first of them; their advantages are 0.
    assert found.scored.table.caption_index_B.tolist() == [0, 0, 1, 1, 8, 8]
    assert found.zero_variance_P.tolist() == [True, True, False]
    np.testing.assert_array_equal(found.advantages.text, [0, 0, 0, 0, -0.5, 0.5])
    assert found.row_mask_B.tolist() == [True, True, False, False, True, True]
    assert found.wasted_frac == pytest.approx(16 / 18)


def test_a_group_of_one_reward_has_zero_variance() -> None:
    found = run([[HALF, GOOD, GOOD]], resample_rounds=0)
    assert found.zero_variance_P.tolist() == [True, False, False]
    np.testing.assert_array_equal(found.advantages.text, [0, 0, -0.5, 0.5, -0.5, 0.5])
    assert found.wasted_frac == pytest.approx(2 / 6)


def test_no_reward_at_all() -> None:
    found = run([[LOST] * 3, [LOST] * 3], resample_rounds=1)
    assert found.wasted_frac == 1 and found.zero_variance_P.all() and not found.row_mask_B.any()


def test_rows_of_a_sample_stay_together() -> None:
    found = run([[FLAT, GOOD, FLAT], [WORSE, FLAT, GOOD]], resample_rounds=1)
    whole = [random_rows(6, start).prompt_len_B for start in (0, 3)]
    kept = np.concatenate([whole[0][2:4], whole[1][0:2], whole[1][4:6]])
    np.testing.assert_array_equal(found.scored.rollout.rows.prompt_len_B, kept)
    np.testing.assert_array_equal(found.scored.table.scores["verdict"], [0, 1, 1, 0, 0, 1])
    # This process scored captions 0 and 3 and half of 1 and 4.
    records = found.scored.records(2, found.advantages)
    names = [(r.caption, r.caption_index, r.sample_index, r.advantage, r.total) for r in records]
    assert names == [
        ("caption 1", 0, 0, -0.5, 0.0),
        ("caption 3", 1, 0, 0.5, 1.0),
        ("caption 3", 1, 1, -0.5, 0.0),
    ]
    assert found.scored.records(0) == found.scored.records(-1) == []


def test_failures_are_counted_before_groups_are_selected() -> None:
    """A judge that fails on most groups is seen, although only good groups are learned from."""
    found = run([[LOST, LOST, GOOD], [LOST, HALF, GOOD], [LOST, LOST, GOOD]], resample_rounds=8)
    assert np.isfinite(found.scored.table.total_B).all()
    drawn = found.drawn
    assert (drawn.samples, drawn.unscored, drawn.failed, drawn.total) == (18, 11, 11, 4)


def test_zeros_are_counted_before_groups_are_selected() -> None:
    """Of groups that nothing could score and groups of zeros the first fill up the batch."""
    found = run([[LOST] * 3, [(0.0, 0.0)] * 3], resample_rounds=1)
    assert not np.isfinite(found.scored.table.total_B).any()
    assert found.drawn.mean == 0
