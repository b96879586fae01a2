"""Times gotr1_jax and `transformers` in alternating repetitions."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gotr1_jax.errors import InputError

REFERENCE = "transformers"
"""The only value of --against."""
NAMES = ("gotr1_jax", REFERENCE)


@dataclass(frozen=True)
class BenchResult:
    """One comparison.

    Attributes:
      what: `sample`, `sample+decode` or `update`.
      unit: of the rates.
      rate: ours, at the median time.
      seconds: ours, for every repetition.
      against_rate, against_seconds: those of `transformers`, or None.
      ratio, ratio_min, ratio_max: median and range over repetitions of their time / our time.
      same_ids: fraction of equal image tokens (greedy, same weights), or None.
      names: of ours and theirs.
      passes: forward passes of an image, ours and theirs, where they differ.
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
    names: tuple[str, str] = NAMES
    passes: tuple[float, float] | None = None

    @classmethod
    def of_times(
        cls, what: str, unit: str, amount: float, ours: list[float], theirs: list[float] | None
    ) -> BenchResult:
        """From the seconds of each repetition; `amount` units are done in one."""
        rate = amount / statistics.median(ours)
        if theirs is None:
            return cls(what, unit, rate, ours)
        against_rate = amount / statistics.median(theirs)
        return cls(what, unit, rate, ours, against_rate, theirs, *speedup(ours, theirs))

    def lines(self) -> list[str]:
        """Text for the terminal."""
        lines = [f"{self.what}: {self.names[0]} {self.rate:.4g} {self.unit}"]
        if self.ratio is not None:
            lines.append(f"{self.what}: {self.names[1]} {self.against_rate:.4g} {self.unit}")
            lines.append(
                f"{self.what}: {self.ratio:.2f} times as fast "
                f"({self.ratio_min:.2f} to {self.ratio_max:.2f} over {len(self.seconds)} turns)"
            )
        if self.passes is not None:
            ours, theirs = self.passes
            lines.append(
                f"{self.what}: {ours:.1f} passes an image, not {theirs:.0f}: "
                f"{theirs / ours:.2f} times fewer"
            )
        if self.same_ids is not None:
            lines.append(f"{self.what}: {100 * self.same_ids:.1f} % of the tokens are the same")
        return lines


def speedup(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Median, minimum and maximum over repetitions of their time / our time."""
    ratios = [b / a for a, b in zip(ours, theirs)]
    return statistics.median(ratios), min(ratios), max(ratios)


def check_reference(against: str | None) -> bool:
    """Whether `transformers` is timed too; InputError for any other name."""
    if against not in (None, REFERENCE):
        raise InputError(f"--against {against}: choose {REFERENCE}")
    return against is not None


def import_reference() -> tuple[Any, Any]:
    """The modules torch and transformers; InputError if one is missing."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise InputError(
            f"the comparison needs {error.name}; install the extra: pip install gotr1_jax[convert]"
        ) from error
    return torch, transformers


def timed(name: str, run: Callable[[], Any]) -> float:
    """Seconds of one call; they and the processor time are printed to standard error."""
    start, busy = time.perf_counter(), time.process_time()
    run()
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    print(f"{name}: {seconds:.2f} s, {busy:.2f} s of processors", file=sys.stderr, flush=True)
    return seconds


def compare(
    what: str, unit: str, amount: float, ours: Callable[[], Any],
    theirs: Callable[[], Any] | None, repeats: int, names: tuple[str, str] = NAMES,
) -> BenchResult:  # fmt: skip
    """Time both in turn, after one untimed call of each; `amount` units are done in one call."""
    runs = {names[0]: ours} | ({} if theirs is None else {names[1]: theirs})
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            when = f"turn {turn} of {repeats}" if turn else "warm-up"
            time_taken = timed(f"{what}: {name}, {when}", run)
            if turn:
                seconds[name].append(time_taken)
    result = BenchResult.of_times(what, unit, amount, seconds[names[0]], seconds.get(names[1]))
    return replace(result, names=names)
