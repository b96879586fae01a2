"""Stop signals: SIGTERM (sent by Slurm, GKE and TPU VMs before preemption), SIGUSR1 (which `srun`
forwards to its tasks; a SIGTERM would kill them) and SIGINT."""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from gotr1_jax.errors import Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_LEAST_GRACE = 0.5  # seconds, for what ends by itself at once
_log = logging.getLogger(__name__)


class StopSignals:
    """Inside this context the first signal requests a stop; a later SIGINT exits at once.

    Outside of `finishing_steps` there is nothing to save and a signal raises Stopped. Inside, it
    only sets `asked`, and the current step is finished. If that takes longer than the grace
    period, the process exits with Stopped's exit code. A SIGINT after the first signal exits with
    128 + its number; other later signals have no effect, whatever is being tidied up then.

    A thread watches for signals, because Python's handlers wait while the main thread compiles or
    computes. Signals that were ignored at start stay ignored. Does nothing outside the main thread.
    With several processes this replaces JAX's preemption service, which also handles SIGTERM;
    `Loop` makes all processes stop at the same step.
    """

    def __init__(self, grace_seconds: float | None = None) -> None:
        """grace_seconds: how long a step may still take after the signal; None: no limit."""
        self._grace = grace_seconds
        self._asked: int | None = None
        self._raised = False  # Stopped is raised once
        self._deferred = False
        self._deadline: float | None = None
        self._leaving = threading.Lock()
        self._old: dict[int, Any] = {}
        # Called before a step is abandoned, in the watching thread.
        self.before_abandoning: Callable[[], None] = lambda: None

    @property
    def asked(self) -> bool:
        """Whether a signal requested a stop."""
        return self._asked is not None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._old_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
            self._thread.start()
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        os.close(self._writer)
        self._thread.join()
        os.close(self._reader)

    @contextmanager
    def finishing_steps(self) -> Iterator[None]:
        """Inside, signals wait for the end of the step; the caller checks `asked`."""
        # Python drops an exception that a handler raises inside a destructor.
        self.check()
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.check()

    def check(self) -> None:
        """Raises Stopped if a signal requested it."""
        if self._asked is not None:
            self._raised = True
            name = signal.Signals(self._asked).name
            raise Stopped(f"stopped by {name}; the same command resumes from the last checkpoint")

    def step_done(self) -> None:
        """The current step is complete and will be saved: the grace period no longer applies."""
        with self._leaving:
            self._deadline = None
            self._grace = None

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._asked is None:
            self._asked = number
        if not self._deferred and not self._raised:
            self.check()

    def _watch(self) -> None:
        stopping = False
        while True:
            with self._leaving:
                left = None if self._deadline is None else self._deadline - time.monotonic()
                if left is not None and left <= 0:
                    self._abandon()
            if not select.select([self._reader], [], [], left)[0]:
                continue
            numbers = os.read(self._reader, 64)
            if not numbers:
                return
            for number in numbers:
                if number not in self._old:
                    continue
                if stopping:
                    if number == signal.SIGINT:
                        _log.warning("SIGINT again: ended at once; the last checkpoint is kept")
                        os._exit(128 + number)
                    continue
                stopping = True
                self._request_stop(number)

    def _request_stop(self, number: int) -> None:
        name = signal.Signals(number).name
        with self._leaving:
            limit = ""
            if self._grace is not None:
                self._deadline = time.monotonic() + max(self._grace, _LEAST_GRACE)
                limit = f", or in {self._grace:g} s without it"
        _log.warning("%s: the run ends after this step%s; Ctrl-C ends it at once", name, limit)
        self._asked = number

    def _abandon(self) -> None:
        _log.warning(
            "the step took longer than checkpoint.grace_seconds: it is abandoned; the same command "
            "resumes from the last checkpoint"
        )
        self.before_abandoning()
        os._exit(Stopped.exit_code)
