"""What Orbax leaves of a failed save, beside the error that it raises: writing threads and output.

Of one failed write it logs a traceback in every thread that the write concerns, leaves the futures
of the other arrays to asyncio, which logs each when it is collected, and closes the event loop that
these futures report to, of which TensorStore then prints a traceback each; coroutines that were to
write other arrays are warned of. On a full disk these are hundreds of lines about the one that the
caller gets.
"""

from __future__ import annotations

import logging
import shutil
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from gotr1_jax.errors import GotR1Error, RunError
from gotr1_jax.io.write_errors import find_disk_error, write_failure

_LIBRARY = "orbax"
_UNFINISHED = ".orbax-checkpoint-tmp"
_USUAL = "Global object size logging disabled"
_REMOVALS = 20  # attempts, each after 0.1 s


def raise_only() -> None:
    """From now on Orbax's failed saves are raised and not printed; further calls do nothing."""
    logging.getLogger("absl").addFilter(_is_no_error_of_orbax)
    logging.getLogger("asyncio").addFilter(_is_no_future_of_orbax)
    warnings.filterwarnings("ignore", "coroutine 'async_serialize.*never awaited", RuntimeWarning)
    if not isinstance(sys.unraisablehook, _UnraisableHook):
        sys.unraisablehook = _UnraisableHook(sys.unraisablehook)


def wait_for_writes(seconds: float) -> None:
    """Waits until no thread of Orbax writes, for so long at most.

    A save is given up at its first error; until its other threads end they make their files anew.
    """
    end = time.monotonic() + seconds
    for thread in threading.enumerate():
        if type(thread).__module__.startswith(f"{_LIBRARY}."):
            # Not the `join` of Orbax, which raises the thread's error.
            threading.Thread.join(thread, max(0.0, end - time.monotonic()))


def _is_no_error_of_orbax(record: logging.LogRecord) -> bool:
    """False for a traceback, for a complaint about a file of an unfinished save, and for a line
    that each save in pieces would print."""
    if record.getMessage().startswith(_USUAL):
        return False
    is_failure = record.exc_info is not None or _UNFINISHED in record.getMessage()
    return record.levelno < logging.WARNING or _LIBRARY not in record.pathname or not is_failure


def _is_no_future_of_orbax(record: logging.LogRecord) -> bool:
    """False for a future whose error names a file of a checkpoint, or was raised in Orbax."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None or "never retrieved" not in record.getMessage():
        return True
    files = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
    return _LIBRARY not in str(error) and not any(_LIBRARY in file for file in files)


class _UnraisableHook:
    """`sys.unraisablehook` without the errors of futures whose event loop is closed."""

    def __init__(self, before: Any) -> None:
        self._before = before

    def __call__(self, unraisable: Any) -> None:
        # From TensorStore, which is no Python code, there is no object that the error belongs to.
        error, owner = unraisable.exc_value, unraisable.object
        closed = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        if not (closed and owner is None):
            self._before(unraisable)


def remove_written(folder: Path) -> None:
    """Removes a folder of a failed save, into which TensorStore's threads may still write."""
    for _ in range(_REMOVALS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def save_failure(folder: Path, error: BaseException) -> GotR1Error:
    """The one-line error of a checkpoint that was not saved."""
    if isinstance(error, GotR1Error):
        return error
    found = error if isinstance(error, OSError) else find_disk_error(error)
    if found is not None:
        return write_failure(folder, found)
    text = " ".join(str(error).split())
    return RunError(f"checkpoint {folder} was not saved: {type(error).__name__}: {text[:300]}")
