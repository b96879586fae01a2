"""Alarms of a run: rewards that are all the same, and a judge that fails too often."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gotr1_jax.grpo.reward_config import RewardConfig
from gotr1_jax.grpo.rollout import SampleTable
from gotr1_jax.rewards.base import commonest_cause


class EqualRewardAlarm:
    """Warns every `steps` consecutive steps whose rewards are all one value; 0 steps: never.

    Attributes:
        value: of the rewards of the last step; NaN where they differed.
        equal: steps in a row up to the last whose rewards were all `value`.
    """

    def __init__(self, steps: int, equal: int = 0, value: float = 0.0) -> None:
        """equal, value: of the steps before."""
        self._steps = steps
        self.equal, self.value = equal, value

    def add(self, value: float) -> str | None:
        """Count a step by the one value that all its rewards have; returns the warning if due.

        NaN: they differ, or no sample could be scored.
        """
        again = self.equal + 1 if value == self.value else 1
        self.equal, self.value = (0 if math.isnan(value) else again), value
        if not self._steps or not self.equal or self.equal % self._steps:
            return None
        return (
            f"alarm: every reward of the last {self.equal} steps was {value:g}, so nothing was "
            f"learned; look at the plans and images in samples/, and which term of reward/ is "
            f"{'0' if value == 0 else 'always the same'}"
        )


class FailureTracker:
    """Reports when more than a share `limit` of the samples of `steps` steps could not be scored.

    The window is the last `steps` steps; there is no report before it is full, and after a report
    it is empty: who has corrected the judge and resumes is not stopped for what was before. A
    limit of 1 never reports.
    """

    def __init__(self, limit: float, steps: int, window: Iterable[Sequence[int]] = ()) -> None:
        """window: failed and all samples of each of the steps before."""
        self._limit = limit
        self.window = deque(((int(bad), int(rows)) for bad, rows in window), maxlen=steps)

    def add(self, failed: int, rows: int, cause: str = "") -> str | None:
        """Count a step's samples; returns why the run must stop, with `cause`, or None."""
        self.window.append((failed, rows))
        bad, total = (sum(column) for column in zip(*self.window))
        steps = self.window.maxlen
        if len(self.window) < (steps or 0) or bad <= self._limit * total:
            return None
        self.window.clear()
        return (
            f"the judge could not score {bad} of {total} samples of the last {steps} steps "
            f"({bad / total:.0%}, more than the {self._limit:.0%} allowed): see the judge's "
            "answers in samples/, and correct the judge or raise the limit"
            + (f"; most often: {cause}" if cause else "")
        )


@dataclass(frozen=True)
class JudgedCounts:
    """Counts over samples that were drawn, before any of them is selected.

    Attributes:
        samples: all of them.
        failed: those without some term's score. unscored: those without a total.
        total: the sum of the totals there are. low, high: the least and the largest of them;
            inf and -inf without any.
        reasons: what the judge said of those without a total, as far as this process scored them,
            and how often.
    """

    samples: int
    failed: int
    unscored: int
    total: float
    reasons: Counter[str]
    low: float = math.inf
    high: float = -math.inf

    @classmethod
    def of(cls, table: SampleTable) -> JudgedCounts:
        """The counts of a table."""
        unscored_B = ~np.isfinite(table.total_B)
        records = (record for record in table.record_B[unscored_B] if record is not None)
        reasons = Counter(_reason(record.rationale) for record in records)
        return cls(
            samples=len(unscored_B),
            failed=int((unscored_B | np.isnan(table.scores_BK).any(axis=1)).sum()),
            unscored=int(unscored_B.sum()),
            total=float(table.total_B[~unscored_B].sum()),
            reasons=reasons,
            low=float(table.total_B.min(initial=math.inf, where=~unscored_B)),
            high=float(table.total_B.max(initial=-math.inf, where=~unscored_B)),
        )

    def __add__(self, other: JudgedCounts) -> JudgedCounts:
        mine, theirs = vars(self), vars(other)
        sums = {name: mine[name] + theirs[name] for name in mine}
        ends = {"low": min(self.low, other.low), "high": max(self.high, other.high)}
        return JudgedCounts(**{**sums, **ends})

    @property
    def equal_total(self) -> float:
        """The total that all samples with one have; NaN where they differ, or there is none."""
        return self.low if self.low == self.high else math.nan

    @property
    def mean(self) -> float:
        """The mean total; NaN where no sample could be scored."""
        scored = self.samples - self.unscored
        return self.total / scored if scored else math.nan

    @property
    def cause(self) -> str:
        """Why most of the samples without a total have none, in the judge's words."""
        return commonest_cause(self.reasons) if self.unscored else ""


def _reason(rationale: str) -> str:
    """The part of a rationale that says why a score is missing, on one line."""
    parts = rationale.split(" | ")  # a part a term
    failed = [part for part in parts if " failed: " in part]
    return " ".join((failed[0] if failed else rationale).split())


class RewardAlarms:
    """Both alarms of a run; `state` goes on in a run that resumes."""

    def __init__(self, config: RewardConfig, state: Mapping[str, Any] | None = None) -> None:
        """state: of a checkpoint; None where it has none, as those of earlier versions."""
        state = {"zero_steps": 0, "failures": ()} if state is None else state
        # Of earlier versions, whose rewards were 0 in these steps.
        value = float(state.get("equal_value", 0.0))
        self._equal = EqualRewardAlarm(config.alarm_steps, int(state["zero_steps"]), value)
        self._failures = FailureTracker(
            config.failure_limit, config.failure_steps, state["failures"]
        )

    @property
    def state(self) -> dict[str, Any]:
        """JSON values for a checkpoint."""
        return {
            "zero_steps": self._equal.equal,
            "equal_value": self._equal.value if self._equal.equal else 0.0,
            "failures": [list(counts) for counts in self._failures.window],
        }

    def check(self, drawn: JudgedCounts, note: Callable[[str], None]) -> str | None:
        """Check the samples of a step.

        Returns why the run must stop, or None; `note` gets the warning of rewards that are
        all the same.
        """
        if (line := self._equal.add(drawn.equal_total)) is not None:
            note(line)
        return self._failures.add(drawn.unscored, drawn.samples, drawn.cause)
