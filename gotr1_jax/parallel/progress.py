"""Progress of a long command."""

from __future__ import annotations

import math
import sys
import time
from typing import TextIO

from tqdm import tqdm


class Progress:
    """Steps done, rate, remaining time and a few values: a bar on a terminal, else plain lines.

    Only process 0 prints.
    """

    def __init__(
        self,
        label: str,
        total: int,
        start: int = 0,
        *,
        unit: str = "step",
        every_seconds: float = 10.0,
        stream: TextIO | None = None,
    ) -> None:
        """Starts the display.

        Args:
            label: name of the work.
            total: the last step.
            start: the step at which a resumed run starts.
            unit: of the steps, in the singular.
            every_seconds: time between two plain lines.
            stream: None is standard error.
        """
        from gotr1_jax.parallel.processes import is_main_process  # which imports jax

        self._stream = sys.stderr if stream is None else stream
        self._label, self._total, self._done = label, total, start
        self._unit = unit
        self._every = every_seconds
        self._last_line = -math.inf
        # Time and number of the first step; it compiles, so the rate excludes it.
        self._first: tuple[float, int] | None = None
        self._bar: tqdm | None = None
        self._shows = is_main_process()
        if self._shows and self._stream.isatty():
            self._bar = tqdm(
                total=total, initial=start, desc=label, unit=f" {unit}s", file=self._stream,
                dynamic_ncols=True,
            )  # fmt: skip

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, step: int, **values: float) -> None:
        """Shows that `step` is done, with `values` such as `reward=0.4`."""
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(shown, refresh=False)
            self._bar.update(step - self._done)
            self._done = step
            return
        ended = step >= self._total and step != self._done
        self._done = step
        now = time.monotonic()
        line = f"{self._label} {step}/{self._total}"
        if self._first is None:
            self._first = (now, step)
        elif now > self._first[0] and step > self._first[1]:
            rate = (step - self._first[1]) / (now - self._first[0])
            left = format_clock((self._total - step) / rate)
            line += f"  {format_rate(rate, self._unit)}  {left} left"
        if now - self._last_line >= self._every or ended:
            self._last_line = now
            self.note(f"{line}  {shown}".rstrip())

    def note(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif self._shows:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def format_rate(per_second: float, unit: str) -> str:
    """Units a second, or seconds a unit where those are more."""
    if per_second >= 1:
        return f"{per_second:.1f} {unit}s/s"
    return f"{1 / per_second:.1f} s/{unit}"


def format_clock(seconds: float) -> str:
    """0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
