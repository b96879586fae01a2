"""Metrics of a run: `metrics.jsonl`, and TensorBoard events where they are wanted."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gotr1_jax.errors import InputError
from gotr1_jax.images import encode_png
from gotr1_jax.io.files import atomic_write, plain_json, write_all
from gotr1_jax.io.reading import MAX_LINE, open_file, parse_json_object
from gotr1_jax.io.write_errors import write_failure
from gotr1_jax.trainer.run_dir import RunDir
from gotr1_jax.trainer.tracking.trackers import TrackedImage

_MOST_STEPS = 10**12
_log = logging.getLogger(__name__)


def is_timing(name: str) -> bool:
    """Whether a metric measures time or memory, which differ between identical runs."""
    machine = name.startswith(("time/", "memory/"))
    return machine or name in ("judge/seconds", "samples_per_second")


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The readable lines of a `metrics.jsonl`, null as NaN; InputError as of `metric_lines`."""
    found = [values for _, values in metric_lines(Path(path))]
    return [_from_null(values) for values in found if values is not None]


def metric_lines(path: Path) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Text and values of each line of a `metrics.jsonl`; None where it holds no step's values.

    A killed process can leave part of a line, and a full disk or an editor anything. Raises
    InputError if the file cannot be read at all.
    """
    with open_file(path, "metrics") as file:
        # Line by line: the file of a long run is larger than what is read whole.
        while raw := file.readline(MAX_LINE):
            if text := raw.decode("utf-8", "replace").strip():
                yield text, _parse(text)


class MetricsWriter:
    """Writes one line per step to `metrics.jsonl`, and the same values as TensorBoard events.

    Only process 0 writes; in the others all methods do nothing.
    """

    def __init__(self, run: RunDir, start_step: int = 0, *, tensorboard: bool = True) -> None:
        """Opens both for a run that resumes after `start_step` (0: a new run).

        tensorboard: False: no events.

        Lines of later steps are removed; the run writes them again. So are lines that cannot be
        read, with a warning. InputError if the file cannot be read at all.
        """
        from gotr1_jax.parallel.processes import is_main_process  # which imports jax

        self._path, self._writes = run.metrics, is_main_process()
        self._events: Any = None
        if not self._writes:
            return
        try:
            run.root.mkdir(parents=True, exist_ok=True)
            kept = self._kept_lines(start_step)
            atomic_write(self._path, "".join(line + "\n" for line in kept))
            # Unbuffered and in append mode: each line is one write, so readers see full lines only.
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
            if tensorboard:
                self._open_events(run, start_step)
        except OSError as error:
            raise write_failure(self._path, error) from error

    def _open_events(self, run: RunDir, start_step: int) -> None:
        # Imported here: it imports torch if that is installed, which takes seconds.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        run.tensorboard.mkdir(parents=True, exist_ok=True)
        # The synchronous writer: the queued one deadlocks when the disk is full.
        self._events = EventsWriter(str(run.tensorboard / "events"), f".{os.getpid()}.{start_step}")
        self._add_event(start_step + 1, session_log=SessionLog(status=SessionLog.START))

    def _kept_lines(self, start_step: int) -> list[str]:
        """The lines up to `start_step`; a warning says what is missing."""
        lines = list(metric_lines(self._path)) if self._path.exists() else []
        kept = [text for text, values in lines if values and values["step"] <= start_step]
        lost = sum(values is None for _, values in lines)
        if lost:
            _log.warning("%s: %d lines that cannot be read are left out", self._path, lost)
        if start_step and not kept:
            _log.warning(
                "%s has no line of the %d steps before: the report will begin after them",
                self._path, start_step,
            )  # fmt: skip
        return kept

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds the values of a step: numbers or arrays of one number; NaN is written as null.

        The line is on disk when this returns. Raises RunError when the disk is full.
        """
        if not self._writes:
            return
        numbers = plain_json({"step": step, **values})
        line = (json.dumps(numbers, allow_nan=False) + "\n").encode()
        known = {k: v for k, v in numbers.items() if k != "step" and v is not None}
        try:
            write_all(self._file, line)
            os.fsync(self._file.fileno())
            self._add_values(step, [{"tag": k, "simple_value": v} for k, v in known.items()])
        except OSError as error:
            raise write_failure(self._path, error) from error

    def show(self, step: int, images: Sequence[TrackedImage]) -> None:
        """Adds images of a step to the events; RunError when the disk is full."""
        values = []
        for image in images if self._writes and self._events is not None else ():
            height, width, colours = image.pixels.shape
            size = {"height": height, "width": width, "colorspace": colours}
            png = encode_png(image.pixels)
            values.append({"tag": image.title, "image": {**size, "encoded_image_string": png}})
        try:
            self._add_values(step, values)
        except OSError as error:
            raise write_failure(self._path, error) from error

    def close(self) -> None:
        """Closes both files; RunError when the last events cannot be written."""
        if not self._writes:
            return
        self._file.close()
        if self._events is None:
            return
        try:
            self._events.close()
        except OSError as error:
            raise write_failure(self._path, error) from error

    def _add_values(self, step: int, values: Sequence[Mapping[str, Any]]) -> None:
        """Events of a step; each value as the fields of a `Summary.Value`."""
        if self._events is None or not values:
            return
        from tensorboardX.proto.summary_pb2 import Summary

        self._add_event(step, summary=Summary(value=[Summary.Value(**value) for value in values]))

    def _add_event(self, step: int, **what: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events.write_event(Event(wall_time=time.time(), step=step, **what))
        self._events.flush()


def _parse(line: str) -> dict[str, Any] | None:
    try:
        values = parse_json_object(line, "a line", allow_nan=True)
    except InputError:
        return None
    step = values.get("step")
    is_step = isinstance(step, int) and not isinstance(step, bool) and 0 <= step < _MOST_STEPS
    return values if is_step else None


def _from_null(line: dict[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in line.items()}
