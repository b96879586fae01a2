"""The step loop of a run: when it saves and when it stops."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gotr1_jax.errors import RunError, Stopped
from gotr1_jax.io.reading import read_text
from gotr1_jax.parallel.processes import gather, raise_on_all_processes
from gotr1_jax.trainer.checkpoint import Checkpoints
from gotr1_jax.trainer.config import CheckpointConfig
from gotr1_jax.trainer.goodput import Goodput
from gotr1_jax.trainer.stopping import StopSignals

_META = "goodput"
_STATM = Path("/proc/self/statm")


class Loop:
    """The steps of a run. Every process makes the same calls.

    A step is saved every `every` steps and `every_minutes`, when it is the last, when it was
    evaluated (with `keep_best`), on a stop signal, and before the run ends with a failure.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        config: CheckpointConfig,
        last: int,
        signals: StopSignals,
        *,
        clock: Callable[[], float] = time.monotonic,
        goodput: Goodput | None = None,
    ) -> None:
        """last: number of the run's last step; clock: seconds, for every_minutes."""
        self._checkpoints, self._config, self._last = checkpoints, config, last
        self._signals = signals
        self._clock = clock
        self._saved_at = clock()
        self._goodput = Goodput() if goodput is None else goodput
        signals.before_abandoning = checkpoints.settle

    def resume(self, meta: Mapping[str, Any]) -> None:
        """Restores the time spent so far from a checkpoint's meta."""
        if _META in meta:
            self._goodput.resume(meta[_META])

    def steps(self, first: int) -> Iterator[int]:
        """The steps after `first`, up to the last."""
        for step in range(first + 1, self._last + 1):
            if step > self._last:  # it may be lowered in between
                return
            self._goodput.begin()
            yield step

    def finish_at(self, step: int) -> None:
        """The last step is `step`, the current one or one before."""
        self._last = step

    def end_productive(self) -> None:
        """Ends the productive part of the step, as `metrics` does."""
        self._goodput.end()

    def metrics(self) -> dict[str, float]:
        """`time/goodput`, 0..1, and memory in use. Ends the productive part of the step."""
        return {"time/goodput": self._goodput.end(), **memory_metrics()}

    def end_step(
        self,
        step: int,
        state: Any,
        meta: Mapping[str, Any],
        *,
        score: float | None = None,
        measure: str = "",
        failure: str | None = None,
    ) -> None:
        """Saves the step if it is due and ends the run if it must end.

        Args:
            step: the finished step.
            state: the pytree of arrays after it.
            meta: see `Checkpoints.save`.
            score: held-out score of `state` if it was evaluated; NaN counts as None.
            measure: names what the score was measured under.
            failure: why the run must end; `state` is good and is saved first.

        Raises:
            Stopped: after a stop signal, once the step is saved.
            RunError: a save failed; or `failure`, once the step is saved.
        """
        with raise_on_all_processes():
            self._checkpoints.check()
        late = self._config.every_minutes * 60
        stop, due = _any_process(self._signals.asked, 0 < late <= self._clock() - self._saved_at)
        if score is not None and not (self._config.keep_best and math.isfinite(score)):
            score = None
        due |= step % self._config.every == 0 or step == self._last
        due |= stop or failure is not None or score is not None
        if due:
            jax.block_until_ready(state)
        self._goodput.end()
        if not due:
            return
        if stop:
            self._signals.step_done()
        record = {**meta, _META: self._goodput.to_json()}
        with raise_on_all_processes():
            self._checkpoints.save(step, state, record, score, measure)
        self._saved_at = self._clock()
        if stop or failure is not None or step == self._last:
            # Wait until its manifest is written.
            with raise_on_all_processes():
                self._checkpoints.wait()
        if failure is not None:
            raise RunError(f"stopped at step {step}, which is saved: {failure}")
        if stop:
            raise Stopped(
                f"stopped at step {step}, which is saved; the same command, with --resume auto, "
                "resumes from it"
            )


def _any_process(*flags: bool) -> tuple[bool, ...]:
    """Logical or of each flag over all processes, whose clocks and signals differ."""
    return tuple(bool(flag) for flag in gather(np.asarray(flags, np.int32)).max(axis=0))


def memory_metrics() -> dict[str, float]:
    """`memory/host_bytes`: resident memory of this process without mapped files (Linux only).
    `memory/device_bytes`: in use on its fullest device (not on CPU backends).
    """
    values = {}
    if _STATM.exists():
        resident, shared = (int(pages) for pages in read_text(_STATM).split()[1:3])
        values["memory/host_bytes"] = float((resident - shared) * os.sysconf("SC_PAGE_SIZE"))
    known = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if known:
        values["memory/device_bytes"] = float(max(stats["bytes_in_use"] for stats in known))
    return values
