"""The line that says that nothing is learned."""

from __future__ import annotations

import math

from gotr1_jax.grpo.alarms import ZeroRewardAlarm


def test_zeros_in_a_row_are_said_again_and_again_and_nothing_else_is():
    alarm = ZeroRewardAlarm(2)
    means = [0.0, 0.5, 0.0, 0.0, 0.0, 0.0, math.nan, 0.0, 1e-9, 0.0]
    said = [step for step, mean in enumerate(means, 1) if alarm.add(mean) is not None]
    assert said == [4, 6]
    line = ZeroRewardAlarm(1).add(0.0)
    assert line is not None and "every reward of the last 1 steps was 0" in line


def test_it_can_be_left_out():
    alarm = ZeroRewardAlarm(0)
    assert [alarm.add(0.0) for _ in range(3)] == [None] * 3
