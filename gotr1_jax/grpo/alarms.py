"""Alarms of a run: rewards that are all 0, and a judge that fails too often."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from gotr1_jax.grpo.config import RewardConfig


class ZeroRewardAlarm:
    """Warns every `steps` consecutive steps whose rewards are all 0; 0 steps: never."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._zeros = 0

    def add(self, mean: float) -> str | None:
        """Count a step by its mean reward; returns the warning when it is due.

        No reward is negative, so a mean of 0 means all are 0. NaN (no sample could be scored)
        does not count as 0.
        """
        self._zeros = self._zeros + 1 if mean == 0 else 0
        if not self._steps or not self._zeros or self._zeros % self._steps:
            return None
        return (
            f"alarm: every reward of the last {self._zeros} steps was 0, so nothing was learned; "
            "look at the plans and images in samples/, and which term of reward/ is 0"
        )


class FailureTracker:
    """Reports when more than a share `limit` of the samples of `steps` steps could not be scored.

    The window is the last `steps` steps; there is no report before it is full. A limit of 1 never
    reports.
    """

    def __init__(self, limit: float, steps: int) -> None:
        self._limit = limit
        self._window: deque[tuple[int, int]] = deque(maxlen=steps)

    def add(self, failed: int, rows: int) -> str | None:
        """Count a step's samples; returns why the run must stop, or None."""
        self._window.append((failed, rows))
        bad, total = (sum(column) for column in zip(*self._window))
        steps = self._window.maxlen
        if len(self._window) < (steps or 0) or bad <= self._limit * total:
            return None
        return (
            f"the judge could not score {bad} of {total} samples of the last {steps} steps "
            f"({bad / total:.0%}, more than the {self._limit:.0%} allowed): see the judge's "
            "answers in samples/, and correct the judge or raise the limit"
        )


class RewardAlarms:
    """Both alarms of a run."""

    def __init__(self, config: RewardConfig) -> None:
        self._zero = ZeroRewardAlarm(config.alarm_steps)
        self._failures = FailureTracker(config.failure_limit, config.failure_steps)

    def check(self, total_B: np.ndarray, note: Callable[[str], None]) -> str | None:
        """Check the combined rewards of a step (NaN: could not be scored).

        Returns why the run must stop, or None; `note` gets the warning of rewards that are all 0.
        """
        scored_B = np.isfinite(total_B)
        mean = float(total_B[scored_B].mean()) if scored_B.any() else float("nan")
        if (line := self._zero.add(mean)) is not None:
            note(line)
        return self._failures.add(int((~scored_B).sum()), len(total_B))
