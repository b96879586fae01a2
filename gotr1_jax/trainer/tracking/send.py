"""Sends the steps of a run to its trackers, beside the training, which waits for none of them.

What has been sent is kept in the run directory (trackers.json): a run that goes on does so in the
tracker too, and no step comes there twice.
"""

from __future__ import annotations

import logging
import math
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gotr1_jax.config import to_plain
from gotr1_jax.errors import InputError
from gotr1_jax.io.files import flatten, plain_json, write_json_atomic
from gotr1_jax.io.reading import read_json_object
from gotr1_jax.trainer.config import JobConfig
from gotr1_jax.trainer.run_dir import RunDir
from gotr1_jax.trainer.tracking.trackers import (
    Outcome,
    TrackedImage,
    TrackedRun,
    Tracker,
    chosen_trackers,
)

_MOST_WAITING = 1000  # steps that a tracker may be behind
_FIRST_PAUSE, _LONGEST_PAUSE = 60.0, 3600.0  # seconds without a call after one that failed
_LAST_WAIT = 60.0  # seconds that the end of a run waits for its trackers
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Step:
    """What is sent of a step; a summary is that of the end, after the last step."""

    step: int
    values: Mapping[str, float]
    images: Sequence[TrackedImage]
    is_summary: bool


@dataclass
class _Sent:
    """What a tracker was sent: its run, the last step, and the step of the last summary."""

    id: str
    project: str
    server: str | None
    step: int = 0
    summary: int = 0


class Tracking:
    """The trackers of a run, in a thread of their own. Only process 0 has any.

    A tracker that fails is left alone for a while; a single warning says so.
    """

    def __init__(
        self,
        trackers: Mapping[str, type[Tracker]],
        run: TrackedRun,
        record: Path,
        *,
        continues: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the thread, which begins the run in a tracker with its first step.

        Args:
          trackers: by name.
          run: as trackers are told of it; `id` and `is_new` are filled in from the record.
          record: the file trackers.json.
          continues: False: the run begins again under other settings, as a new one there.
          clock: seconds.
        """
        stored = _read(record) if continues else {}
        self._record, self._stored = record, stored
        self._senders = [
            _Sender(name, tracker, run, stored.get(name), self._write, clock)
            for name, tracker in trackers.items()
        ]
        self._queue: queue.Queue[_Step | Outcome] = queue.Queue()
        self._thread: threading.Thread | None = None
        if self._senders:
            self._thread = threading.Thread(target=self._work, daemon=True, name="trackers")
            self._thread.start()

    def log(
        self, step: int, values: Mapping[str, Any], images: Sequence[TrackedImage] = ()
    ) -> None:
        """A step's metrics, as `MetricsWriter.write` takes them; returns at once."""
        self._put(step, values, images)

    def summarise(
        self, step: int, values: Mapping[str, Any], images: Sequence[TrackedImage] = ()
    ) -> None:
        """What summary.json holds, and images of the end; returns at once."""
        self._put(step, values, images, is_summary=True)

    def _put(
        self,
        step: int,
        values: Mapping[str, Any],
        images: Sequence[TrackedImage],
        is_summary: bool = False,
    ) -> None:
        if self._thread is not None:
            self._queue.put(_Step(step, _finite(values), tuple(images), is_summary))

    def close(self, outcome: Outcome = "done") -> None:
        """Ends the run in the trackers; waits a minute at most, and warns of what is not sent."""
        if self._thread is None:
            return
        self._queue.put(outcome)
        self._thread.join(_LAST_WAIT)
        if self._thread.is_alive():
            names = ", ".join(sender.name for sender in self._senders)
            _log.warning("%s: not all was sent in %.0f s; the run ends without it", names,
                         _LAST_WAIT)  # fmt: skip
        self._thread = None

    def _work(self) -> None:
        while isinstance(item := self._queue.get(), _Step):
            for sender in self._senders:
                sender.send(item)
        for sender in self._senders:
            sender.finish(item)

    def _write(self) -> None:
        sent = {s.name: s.sent for s in self._senders if s.sent is not None}
        found = {**self._stored, **sent}  # a tracker that is left out now may come again
        write_json_atomic(self._record, {name: vars(entry) for name, entry in found.items()})


class _Sender:
    """One tracker, guarded: whatever it raises is one warning."""

    def __init__(
        self,
        name: str,
        tracker: type[Tracker],
        run: TrackedRun,
        stored: _Sent | None,
        write: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self.name, self._make, self._write, self._clock = name, tracker, write, clock
        config = run.config
        self._place = config.project, config.server
        if stored is not None and (stored.project, stored.server) != self._place:
            stored = None  # a run of another place cannot go on here
        self.sent = stored
        self._run = replace(run, id=secrets.token_hex(4), is_new=True)
        if stored is not None:
            self._run = replace(run, id=stored.id, is_new=False)
        self._tracker: Tracker | None = None
        self._waiting: deque[_Step] = deque(maxlen=_MOST_WAITING)
        self._pause, self._quiet_until = _FIRST_PAUSE, -math.inf
        self._has_warned = False

    def send(self, item: _Step) -> None:
        """Sends a step, after those that still wait; keeps it where the tracker has a pause."""
        self._waiting.append(item)
        if self._clock() >= self._quiet_until:
            self._send_all()

    def _send_all(self) -> None:
        try:
            while self._waiting:
                if not self._is_due(self._waiting[0]):
                    self._waiting.popleft()
                    continue
                tracker, sent = self._begun()
                item = self._waiting.popleft()
                # Before it is sent: a killed process leaves a gap there, and no step twice.
                sent.step = max(sent.step, item.step)
                sent.summary = item.step if item.is_summary else sent.summary
                self._write()
                call = tracker.summarise if item.is_summary else tracker.log
                call(item.step, item.values, item.images)
                self._pause = _FIRST_PAUSE
        except (Exception, SystemExit) as error:
            self._failed(error)

    def _is_due(self, item: _Step) -> bool:
        if self.sent is None:
            return True
        return item.step > (self.sent.summary if item.is_summary else self.sent.step)

    def _begun(self) -> tuple[Tracker, _Sent]:
        """The tracker, begun at its first step, and what it was sent."""
        if self._tracker is None:
            self._tracker = self._make(self._run)
            if self.sent is None or self.sent.id != self._tracker.id:
                self.sent = _Sent(self._tracker.id, *self._place)
            self._run = replace(self._run, id=self._tracker.id, is_new=False)
            self._write()
        assert self.sent is not None
        return self._tracker, self.sent

    def _failed(self, error: BaseException) -> None:
        self._quiet_until = self._clock() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        if self._has_warned:
            return
        self._has_warned = True
        why = " ".join(str(error).split())[:300] or type(error).__name__
        _log.warning(
            "the tracker %s fails, and the training goes on without it (it is tried again from "
            "time to time; metrics.jsonl has every step): %s", self.name, why,
        )  # fmt: skip

    def finish(self, outcome: Outcome) -> None:
        """Sends what waits, and ends the run there."""
        if self._quiet_until <= self._clock() or self._tracker is not None:
            self._send_all()
        if self._tracker is None:
            return
        try:
            self._tracker.finish(outcome)
        except (Exception, SystemExit) as error:
            self._failed(error)


def make_tracking(config: JobConfig, run: RunDir, continues: bool) -> Tracking:
    """The trackers of a job in its run directory; none in other processes than the main one."""
    from gotr1_jax.parallel.processes import is_main_process  # which imports jax

    tracked = TrackedRun(
        name=config.tracker.run_name or run.root.resolve().name,
        folder=run.root,
        settings=_settings(config),
        config=config.tracker,
        id="",
        is_new=True,
    )
    trackers = chosen_trackers(config.report_to) if is_main_process() else {}
    return Tracking(trackers, tracked, run.trackers, continues=continues)


def check_trackers(config: JobConfig) -> None:
    """InputError where a tracker is known to take nothing, such as without a key."""
    for name, tracker in chosen_trackers(config.report_to).items():
        try:
            tracker.check(config.tracker)
        except InputError:
            raise
        except Exception as error:  # of the package: told when the first step is sent
            _log.debug("%s cannot be checked: %s", name, error)


def _settings(config: JobConfig) -> dict[str, Any]:
    """The values of a configuration by their dotted names; lists as text."""
    values = flatten(to_plain(config), ".")
    return {k: str(v) if isinstance(v, list | dict) else v for k, v in values.items()}


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among nested values, under names joined by slashes."""
    return {
        name: float(value)
        for name, value in flatten(plain_json(values), "/").items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _read(record: Path) -> dict[str, _Sent]:
    """What trackers were sent, by name; those whose entry is no use begin a new run there."""
    try:
        stored = read_json_object(record, missing_ok=True)
    except InputError as error:
        _log.warning("%s; trackers begin a new run", error)
        return {}
    found = {}
    for name, entry in stored.items():
        try:
            found[name] = _Sent(**entry)
            if not isinstance(found[name].id, str) or found[name].step + found[name].summary < 0:
                raise TypeError
        except TypeError:
            found.pop(name, None)
            _log.warning("%s: the entry of %s cannot be read; it begins a new run", record, name)
    return found
