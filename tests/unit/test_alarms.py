"""Alarms: rewards that are all 0, a judge that fails too often."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from gotr1_jax.errors import InputError
from gotr1_jax.grpo.alarms import EqualRewardAlarm, FailureTracker, JudgedCounts, RewardAlarms
from gotr1_jax.grpo.config import RewardConfig
from gotr1_jax.grpo.rollout import SampleTable
from gotr1_jax.plan import parse_plan
from gotr1_jax.rewards.base import JudgeRequest, JudgeResult
from gotr1_jax.trainer.samples import SampleRecord

NAN = math.nan


def test_equal_rewards_in_a_row_are_reported_again_and_again():
    alarm = EqualRewardAlarm(2)
    values = [0.0, 0.5, 0.0, 0.0, 0.0, 0.0, NAN, 0.0, 1e-9, 0.0, -2.0, -2.0, NAN, NAN]
    reported = [step for step, value in enumerate(values, 1) if alarm.add(value) is not None]
    assert reported == [4, 6, 12]
    line = EqualRewardAlarm(1).add(0.0)
    assert line is not None and "every reward of the last 1 steps was 0" in line
    line = EqualRewardAlarm(3, equal=2, value=-2.0).add(-2.0)
    assert line is not None and "last 3 steps was -2" in line and "always the same" in line


def test_zero_alarm_can_be_switched_off():
    alarm = EqualRewardAlarm(0)
    assert [alarm.add(0.0) for _ in range(3)] == [None] * 3


def test_failures_are_counted_over_the_last_steps():
    def reports(*failed: int) -> list[bool]:
        tracker = FailureTracker(limit=0.2, steps=3)
        return [tracker.add(number, 10) is not None for number in failed]

    tracker = FailureTracker(limit=0.2, steps=3)
    assert [tracker.add(failed, 10) for failed in (10, 10)] == [None, None]  # too few steps
    line = tracker.add(0, 10, "status 400")
    assert line is not None
    assert "20 of 30 samples of the last 3 steps (67%, more than the 20%" in line
    assert line.endswith("most often: status 400")
    assert reports(10, 0, 0) == [False, False, True]
    assert reports(0, 0, 6, 0, 0) == [False] * 5  # 6 of 30: exactly at the limit
    assert reports(0, 0, 6, 0, 1) == [False] * 4 + [True]  # 7 of 30
    # A corrected judge is not stopped for what was before; one that is not, after a window.
    assert reports(9, 9, 9, 0, 0, 0) == [False, False, True, False, False, False]
    assert reports(9, 9, 9, 9, 9, 9) == [False, False, True] * 2
    assert FailureTracker(1.0, 1).add(10, 10) is None


def counts(*totals: float, reason: str = "") -> JudgedCounts:
    """Of a table of one term, scored in this process."""
    sample = JudgeRequest("a cat", parse_plan("a cat"), np.zeros((2, 2, 3), np.uint8))
    records = np.empty(len(totals), object)
    records[:] = [
        SampleRecord.scored(sample, JudgeResult({"pi": t}, rationale=reason), t) for t in totals
    ]
    total_B = np.asarray(totals, np.float32)
    zeros_B = np.zeros_like(total_B)
    return JudgedCounts.of(
        SampleTable(("pi",), zeros_B, total_B[:, None], total_B, *[zeros_B] * 4, records)
    )


def test_counts_of_all_samples_that_were_drawn():
    drawn = counts(1.0, NAN, 0.5, reason="sem 1 | pi failed: status\n400 | ri failed: x")
    drawn += counts(NAN, NAN, reason="pi failed: no answer within 120 s")
    drawn += counts(0.0)
    assert (drawn.samples, drawn.unscored, drawn.failed, drawn.mean) == (6, 3, 3, 0.5)
    assert drawn.cause == "pi failed: no answer within 120 s"
    assert counts(1.0).cause == "" and math.isnan(counts(NAN).mean)
    assert counts(NAN).cause == "the judge gives NaN and no reason"


def test_alarms_go_on_in_a_run_that_resumes():
    """Each process alone saw too few steps to report anything."""
    config = RewardConfig(failure_limit=0.2, failure_steps=3, alarm_steps=3)
    alarms = RewardAlarms(config)
    notes: list[str] = []
    for _ in range(2):
        assert alarms.check(counts(NAN, 0.0), notes.append) is None
    resumed = RewardAlarms(config, json.loads(json.dumps(alarms.state)))
    line = resumed.check(counts(NAN, 0.0, reason="why"), notes.append)
    assert line is not None and "3 of 6 samples" in line and "why" in line
    assert len(notes) == 1 and "last 3 steps" in notes[0]
    # A checkpoint of an earlier version has no state.
    assert RewardAlarms(config, None).check(counts(NAN, 0.0), notes.append) is None


@pytest.mark.parametrize("values", [{"failure_limit": 1.5}, {"failure_steps": 0}])
def test_impossible_limits_are_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        RewardConfig(**values)
