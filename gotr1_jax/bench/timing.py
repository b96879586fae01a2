"""Two sides timed turn by turn, and what came out."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

AGAINST = "transformers"
"""The one other side that there is."""


@dataclass(frozen=True)
class BenchResult:
    """One comparison.

    Attributes:
      what: `sample`, `sample+decode` or `update`.
      unit: of the rates.
      rate: ours, at the median time.
      seconds: ours, every repetition.
      against_rate, against_seconds: the same of the other side, or None.
      ratio, ratio_min, ratio_max: median and spread over repetitions of their time / our time.
      same_ids: fraction of equal image tokens (greedy, same weights), or None.
    """

    what: str
    unit: str
    rate: float
    seconds: list[float]
    against_rate: float | None = None
    against_seconds: list[float] | None = None
    ratio: float | None = None
    ratio_min: float | None = None
    ratio_max: float | None = None
    same_ids: float | None = None

    def lines(self) -> list[str]:
        """For a person."""
        lines = [f"{self.what}: gotr1_jax {self.rate:.4g} {self.unit}"]
        if self.ratio is not None:
            lines.append(f"{self.what}: {AGAINST} {self.against_rate:.4g} {self.unit}")
            lines.append(
                f"{self.what}: {self.ratio:.2f} times as fast "
                f"({self.ratio_min:.2f} to {self.ratio_max:.2f} over {len(self.seconds)} turns)"
            )
        if self.same_ids is not None:
            lines.append(f"{self.what}: {100 * self.same_ids:.1f} % of the tokens are the same")
        return lines


def compare(
    what: str, unit: str, amount: float, ours: Callable[[], Any],
    theirs: Callable[[], Any] | None, repeats: int,
) -> BenchResult:  # fmt: skip
    """Time both turn by turn, after one warm-up each; `amount` is what one call gets done."""
    mine: list[float] = []
    other: list[float] = []
    for turn in range(repeats + 1):
        for name, run, times in (("gotr1_jax", ours, mine), (AGAINST, theirs, other)):
            if run is None:
                continue
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
            if turn:
                times.append(seconds)
            when = f"turn {turn} of {repeats}" if turn else "warm-up"
            print(f"{what}: {name}, {when}: {seconds:.1f} s", file=sys.stderr, flush=True)
    rate = amount / statistics.median(mine)
    if theirs is None:
        return BenchResult(what, unit, rate, mine)
    ratios = [b / a for a, b in zip(mine, other)]
    return BenchResult(
        what, unit, rate, mine, amount / statistics.median(other), other,
        statistics.median(ratios), min(ratios), max(ratios),
    )  # fmt: skip
