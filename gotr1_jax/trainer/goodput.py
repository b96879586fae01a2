"""Goodput: the fraction of a run's wall time that was spent in steps that were kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


class Goodput:
    """Seconds spent in steps / wall-clock seconds since the run's first start, restarts included.

    Compilation, evaluation, saving, downtime and lost steps lower it. The first step of a process
    compiles, so it counts as long as the second.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        now: Callable[[], float] = time.time,
    ) -> None:
        """clock: monotonic seconds; now: seconds since 1970, which survive a restart."""
        self._clock, self._now = clock, now
        self._started = now()
        self._productive = 0.0
        self._steps = 0
        self._begun: float | None = None

    def begin(self) -> None:
        """Start of a step."""
        self._begun = self._clock()

    def end(self) -> float:
        """End of a step's productive part (later calls in a step are ignored); goodput, 0..1."""
        if self._begun is not None:
            seconds, self._begun = self._clock() - self._begun, None
            self._productive += seconds * (0, 2, 1)[min(self._steps, 2)]
            self._steps += 1
        wall = self._now() - self._started
        return min(self._productive / wall, 1.0) if wall > 0 else 0.0

    def to_json(self) -> dict[str, float]:
        """For the checkpoint's meta."""
        return {"productive": self._productive, "started": self._started}

    def resume(self, saved: Mapping[str, float]) -> None:
        """Inverse of `to_json`."""
        self._productive, self._started = saved["productive"], saved["started"]
