"""Goodput: which part of a run's time went into steps that count."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


class Goodput:
    """Seconds spent in steps, over seconds since this was first made, with weights loaded.

    The wall time goes on while a run is down: compiling, evaluating, saving, waiting to be
    started again and steps that were lost all lower the share. The first step of a process
    compiles; it counts as the second one does.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        now: Callable[[], float] = time.time,
    ) -> None:
        """clock: seconds that never go back; now: seconds since 1970, the same after a restart."""
        self._clock, self._now = clock, now
        self._started = now()
        self._productive = 0.0
        self._steps = 0
        self._begun: float | None = None

    def begin(self) -> None:
        """A step begins."""
        self._begun = self._clock()

    def end(self) -> float:
        """The work of a step is done, if it was not already; returns the share so far, 0..1."""
        if self._begun is not None:
            seconds, self._begun = self._clock() - self._begun, None
            self._productive += seconds * (0, 2, 1)[min(self._steps, 2)]
            self._steps += 1
        wall = self._now() - self._started
        return min(self._productive / wall, 1.0) if wall > 0 else 0.0

    def to_json(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"productive": self._productive, "started": self._started}

    def resume(self, saved: Mapping[str, float]) -> None:
        """Goes on from what `to_json` gave."""
        self._productive, self._started = saved["productive"], saved["started"]
