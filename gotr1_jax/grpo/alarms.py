"""Alarms of a run: rewards that are all 0, a judge that fails too often."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.grpo.config import RewardConfig


class ZeroRewardAlarm:
    """A warning when all rewards were 0 for many steps in a row."""

    def __init__(self, steps: int) -> None:
        """steps: zero-reward steps until the warning, and until it is repeated; 0: never."""
        self._steps = steps
        self._zeros = 0

    def add(self, mean: float) -> str | None:
        """Takes in a step's mean reward; returns the warning, or None.

        Rewards are never negative, so a mean of 0 is all zeros. NaN (nothing could be scored) is
        not 0.
        """
        self._zeros = self._zeros + 1 if mean == 0 else 0
        if not self._steps or not self._zeros or self._zeros % self._steps:
            return None
        return (
            f"alarm: every reward of the last {self._zeros} steps was 0, so nothing was learned; "
            "look at the plans and images in samples/, and which term of reward/ is 0"
        )


class FailureTracker:
    """Ends training when a judge fails too often.

    A sample has failed if a term of it is NaN (`judge/failed_frac`). The share is over all samples
    of the last `steps` steps, from the first full window on.
    """

    def __init__(self, limit: float = 0.2, steps: int = 10) -> None:
        """limit: share of failed samples above which training stops, 0..1; 1: never."""
        if not 0 <= limit <= 1 or steps < 1:
            raise InputError(
                f"a failure limit of {limit} over {steps} steps is none; use 0 to 1 and 1 step or "
                "more"
            )
        self._limit = limit
        self._window: deque[tuple[int, int]] = deque(maxlen=steps)

    def add(self, failed: int, rows: int) -> str | None:
        """Take in a step's rows; a line that says why to stop, or None to go on."""
        if not 0 <= failed <= rows:
            raise ValueError(f"{failed} failed of {rows} rows")
        self._window.append((failed, rows))
        bad, total = (sum(column) for column in zip(*self._window))
        steps = self._window.maxlen
        if len(self._window) < (steps or 0) or bad <= self._limit * total:
            return None
        return (
            f"the judge could not score {bad} of {total} samples of the last {steps} steps "
            f"({bad / total:.0%}, more than the {self._limit:.0%} allowed): see the judge's words "
            "in samples/, and correct the judge or raise the limit"
        )


class RewardAlarms:
    """Both of a run: a line when all rewards are 0, and a reason to stop when a judge fails."""

    def __init__(self, config: RewardConfig) -> None:
        self._zero = ZeroRewardAlarm(config.alarm_steps)
        self._failures = FailureTracker(config.failure_limit, config.failure_steps)

    def check(self, total_B: np.ndarray, note: Callable[[str], None]) -> str | None:
        """Take in the totals of a step's rows (NaN: could not be scored).

        Returns why the run cannot go on, or None; `note` gets a line for a person.
        """
        scored_B = np.isfinite(total_B)
        mean = float(total_B[scored_B].mean()) if scored_B.any() else float("nan")
        if (line := self._zero.add(mean)) is not None:
            note(line)
        return self._failures.add(int((~scored_B).sum()), len(total_B))
