"""Alarms: rewards that are all 0, a judge that fails too often."""

from __future__ import annotations

import math

import pytest

from gotr1_jax.errors import InputError
from gotr1_jax.grpo.alarms import FailureTracker, ZeroRewardAlarm
from gotr1_jax.grpo.config import RewardConfig


def test_zeros_in_a_row_are_reported_again_and_again():
    alarm = ZeroRewardAlarm(2)
    means = [0.0, 0.5, 0.0, 0.0, 0.0, 0.0, math.nan, 0.0, 1e-9, 0.0]
    reported = [step for step, mean in enumerate(means, 1) if alarm.add(mean) is not None]
    assert reported == [4, 6]
    line = ZeroRewardAlarm(1).add(0.0)
    assert line is not None and "every reward of the last 1 steps was 0" in line


def test_zero_alarm_can_be_switched_off():
    alarm = ZeroRewardAlarm(0)
    assert [alarm.add(0.0) for _ in range(3)] == [None] * 3


def test_failures_are_counted_over_the_last_steps():
    tracker = FailureTracker(limit=0.2, steps=3)
    assert [tracker.add(failed, 10) for failed in (10, 10)] == [None, None]  # too few steps
    line = tracker.add(0, 10)
    assert line is not None
    assert "20 of 30 samples of the last 3 steps (67%, more than the 20%" in line
    assert tracker.add(0, 10) is not None  # 10 of 30
    assert tracker.add(6, 10) is None  # 6 of 30: exactly at the limit
    assert tracker.add(1, 10) is not None  # 7 of 30
    assert FailureTracker(1.0, 1).add(10, 10) is None


@pytest.mark.parametrize("values", [{"failure_limit": 1.5}, {"failure_steps": 0}])
def test_impossible_limits_are_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        RewardConfig(**values).check()
