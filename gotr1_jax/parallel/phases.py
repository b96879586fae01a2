"""What a long command is doing just now: one live line, with rate and remaining time.

    with phase("judge", len(samples), "sample") as judging:
        ...
        judging.update(done)

Phases may stand inside each other; the line names them all. On a terminal the line is renewed every
second and goes when its phase ends; elsewhere a phase that takes long is a line every half minute.
What is over before the line is next renewed is not shown. While XLA compiles, the line says so.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

from gotr1_jax.parallel.progress import format_clock, format_rate

_TICK, _BETWEEN_LINES = 1.0, 30.0  # seconds
# JAX's names of what it measures: lowering ends where the backend's compilation begins.
_LOWERED, _COMPILED = "/jaxpr_to_mlir_module_duration", "/backend_compile_duration"


class Phase:
    """A part of the work. total: how many `unit`s it has, None where that is not counted."""

    def __init__(self, name: str, total: int | None, unit: str, started: float) -> None:
        self.name, self.total, self.unit, self.started = name, total, unit, started
        self.done = 0

    def update(self, done: int) -> None:
        """So many units are done."""
        self.done = done

    def text(self, now: float, before: float | None) -> str:
        """As it is shown. before: the seconds of a unit (of the whole without a total) the last
        time, where there was one."""
        passed = max(now - self.started, 1e-9)
        parts = [self.name, format_clock(passed)]
        if self.total:
            number = f"{self.done}/{self.total}" if self.done else f"{self.total}"
            parts[0] += f" {number} {self.unit}{'s' * (self.total != 1)}"
        left = None
        if self.total and self.done:
            rate = self.done / passed
            left = (self.total - self.done) / rate
            parts.append(format_rate(rate, self.unit))
        elif before is not None:
            left = max(before * (self.total or 1) - passed, 0.0)
        if left is not None:
            parts.append(f"{'' if self.done else 'about '}{format_clock(left)} left")
        return "  ".join(parts)


class PhaseLine:
    """The live line of a process; its main phases in the order in which they were entered."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, stream: TextIO | None = None
    ) -> None:
        """clock: seconds; stream: None is standard error, as it is when a line is written."""
        self._clock, self._stream = clock, stream
        self._phases: list[Phase] = []
        self._seconds: dict[str, float] = {}  # of a unit of each phase that has ended
        self._compiling: float | None = None  # since when
        self._bar: tqdm | None = None
        self._last_line = clock()
        self._lock = threading.RLock()

    @contextmanager
    def enter(self, name: str, total: int | None, unit: str) -> Iterator[Phase]:
        """A phase that lasts as long as the block."""
        entered = Phase(name, total, unit, self._clock())
        with self._lock:
            if not self._phases:
                self._last_line = self._clock()
            self._phases.append(entered)
        try:
            yield entered
        finally:
            with self._lock:
                if entered in self._phases:
                    del self._phases[self._phases.index(entered) :]
                self._seconds[name] = (self._clock() - entered.started) / (total or 1)
                if self._bar is not None:
                    self._bar.close()  # which erases it
                    self._bar = None

    def text(self) -> str:
        """The line as it is now; empty without a phase."""
        with self._lock:
            if not self._phases:
                return ""
            now, inner = self._clock(), self._phases[-1]
            names = "".join(f"{outer.name}: " for outer in self._phases[:-1])
            text = names + inner.text(now, self._seconds.get(inner.name))
            if self._compiling is not None:
                text += f"  compiling for {format_clock(now - self._compiling)}"
            return text

    def tick(self) -> None:
        """Shows the line where it is due; a thread calls it every second."""
        with self._lock:
            if not self._phases:
                return
            stream = sys.stderr if self._stream is None else self._stream
            if stream.isatty():
                if self._bar is None:
                    self._bar = tqdm(
                        bar_format="{desc}", leave=False, file=stream, dynamic_ncols=True
                    )
                self._bar.set_description_str(self.text())
            elif self._clock() - self._last_line >= _BETWEEN_LINES:
                self._last_line = self._clock()
                print(self.text(), file=stream, flush=True)

    def on_duration(self, event: str, duration_secs: float, **_: Any) -> None:
        """JAX's listener: what it has measured says when a compilation begins and ends."""
        del duration_secs
        with self._lock:
            if event.endswith(_LOWERED):
                self._compiling = self._clock()
            elif event.endswith(_COMPILED):
                self._compiling = None


_LINE = PhaseLine()
_started = threading.Lock()


@contextmanager
def phase(name: str, total: int | None = None, unit: str = "sample") -> Iterator[Phase]:
    """A phase of this process's work, shown by the main process alone; `unit` in the singular."""
    from gotr1_jax.parallel.processes import is_main_process  # which imports jax

    if is_main_process() and _started.acquire(blocking=False):
        import jax

        jax.monitoring.register_event_duration_secs_listener(_LINE.on_duration)
        threading.Thread(target=_tick_for_ever, daemon=True, name="progress").start()
    with _LINE.enter(name, total, unit) as entered:
        yield entered


def _tick_for_ever() -> None:
    while True:
        time.sleep(_TICK)
        try:
            _LINE.tick()
        except (OSError, ValueError):
            return  # the output is closed: the process ends, or nobody reads
