"""Metrics of a run: `metrics.jsonl` and TensorBoard events."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gotr1_jax.errors import InputError
from gotr1_jax.io.files import atomic_write, plain_json, write_failure
from gotr1_jax.parallel.processes import is_main_process
from gotr1_jax.trainer.run_dir import RunDir


def is_timing(name: str) -> bool:
    """Whether a metric measures the machine, so that it differs between identical runs."""
    machine = name.startswith(("time/", "memory/"))
    return machine or name in ("judge/seconds", "samples_per_second")


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, null as NaN; a truncated last line is left out.

    Raises InputError if the file cannot be read.
    """
    try:
        return [_from_null(json.loads(line)) for line in _whole_lines(Path(path))]
    except (OSError, ValueError) as error:
        raise InputError(f"metrics {path} cannot be read: {error}") from error


class MetricsWriter:
    """Writes one line a step to `metrics.jsonl`, and the same values as TensorBoard events.

    Of several processes only process 0 writes; in the others it does nothing.
    """

    def __init__(self, run: RunDir, start_step: int = 0) -> None:
        """Opens both for a run that resumes after `start_step` (0: a new run).

        Lines of later steps are removed, since the run writes them again.
        """
        self._path, self._writes = run.metrics, is_main_process()
        if not self._writes:
            return
        # Imported late: it imports torch where that is installed, seconds that only a run pays.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        try:
            run.tensorboard.mkdir(parents=True, exist_ok=True)
            kept = []
            if self._path.exists():
                kept = [s for s in _whole_lines(self._path) if json.loads(s)["step"] <= start_step]
            atomic_write(self._path, "".join(line + "\n" for line in kept))
            # Unbuffered and in append mode: a line is one write, seen whole or not at all.
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
            # The synchronous writer: the queued one waits for ever once its thread met a full disk.
            self._events = EventsWriter(
                str(run.tensorboard / "events"), f".{os.getpid()}.{start_step}"
            )
            self._add_event(start_step + 1, session_log=SessionLog(status=SessionLog.START))
        except OSError as error:
            raise write_failure(self._path, error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"metrics {self._path} cannot be read: {error}") from error

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds the values of a step: numbers or arrays of one number; NaN is written as null.

        The line is flushed to disk, so it survives a power cut that a checkpoint survives.
        Raises RunError when the disk is full.
        """
        if not self._writes:
            return
        from tensorboardX.proto.summary_pb2 import Summary

        numbers = plain_json({"step": step, **values})
        line = (json.dumps(numbers, allow_nan=False) + "\n").encode()
        summary = Summary(
            value=[
                Summary.Value(tag=name, simple_value=value)
                for name, value in numbers.items()
                if name != "step" and value is not None
            ]
        )
        try:
            self._file.write(line)
            os.fsync(self._file.fileno())
            self._add_event(step, summary=summary)
        except OSError as error:
            raise write_failure(self._path, error) from error

    def close(self) -> None:
        """Closes both files; RunError when the disk is too full for what is left to write."""
        if not self._writes:
            return
        self._file.close()
        try:
            self._events.close()
        except OSError as error:
            raise write_failure(self._path, error) from error

    def _add_event(self, step: int, **what: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events.write_event(Event(wall_time=time.time(), step=step, **what))
        self._events.flush()


def _whole_lines(path: Path) -> list[str]:
    """Lines that end in a newline: one that does not was cut short by a kill."""
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def _from_null(line: dict[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in line.items()}
