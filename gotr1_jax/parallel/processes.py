"""Several processes of one run: who writes, what small things they tell each other, how they end.

Every process makes the same calls in the same order. Between them no more than a few numbers a
row travel outside of compiled programs.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

from gotr1_jax.errors import GotR1Error, InputError, RunError, Stopped

# Bytes of an error's text that the other processes get to see, behind one for its kind.
_TEXT = 600
_OTHER = 1
_LAST_WORDS = 2.0  # seconds
_KINDS: dict[int, type[GotR1Error]] = {2: InputError, 3: Stopped, 4: RunError}


def is_main_process() -> bool:
    """Whether this is process 0, which alone writes what is not a checkpoint's arrays."""
    # A process alone may have touched no device yet, and need not here.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def gather(values: np.ndarray) -> np.ndarray:
    """(N, ...): what each of the N processes gave, arrays of one shape and dtype, by process.

    float64 and int64 do not survive: give arrays of four bytes or fewer an element.
    """
    if jax.process_count() == 1:
        return np.asarray(values)[None]
    return np.asarray(multihost_utils.process_allgather(values))


def broadcast_from_main(flag: bool) -> bool:
    """The flag of process 0."""
    return bool(gather(np.asarray([flag], np.int32))[0, 0])


@contextmanager
def raise_on_all_processes() -> Iterator[None]:
    """After the block all processes know how it ended in each: an error in one is one in all.

    The block must hold nothing that waits for other processes. Its own error is raised where it
    happened; the others raise one of its kind that names the process.
    """
    if jax.process_count() == 1:
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    notes = gather(_to_note(error))
    if error is not None:
        raise error
    failed = np.flatnonzero(notes[:, 0])
    if len(failed):
        raise _from_note(int(failed[0]), notes[failed[0]])


def check_same_on_all_processes(text: str | Iterable[str], what: str) -> None:
    """Raise RunError, in every process, unless all give the same text, or the same texts in the
    same order; `what` they stand for."""
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256()
    for part in (text,) if isinstance(text, str) else text:
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    digests = gather(np.frombuffer(digest.digest(), np.uint8))
    other = np.flatnonzero((digests != digests[0]).any(axis=1))
    if len(other):
        raise RunError(
            f"process {other[0]} has another {what} than process 0; start all processes with the "
            "same command, on files that are the same"
        )


def describe_lost_process(error: Exception) -> str | None:
    """What to say of an error that is no mistake of ours: another process ended. Else None."""
    if not (isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1):
        return None
    first_line = str(error).strip().splitlines()[0][:200]
    if "RESOURCE_EXHAUSTED" in first_line:  # our own memory
        return None
    return (
        f"process {jax.process_index()} cannot go on with the others: one has probably ended, see "
        f"what it said ({first_line}); the same command everywhere goes on from the last checkpoint"
    )


def exit_process(code: int) -> None:
    """End this process where it is one of several, without waiting for the others; else nothing.

    The others, if they have not met the same error, are ended by the runtime within the heartbeat.
    """
    if not jax.distributed.is_initialized():
        return
    if is_main_process():
        # With process 0 the runtime of all ends: let the others say what they have to say.
        time.sleep(_LAST_WORDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _to_note(error: Exception | None) -> np.ndarray:
    note = np.zeros(1 + _TEXT, np.uint8)
    if error is None:
        return note
    kinds = [number for number, kind in _KINDS.items() if isinstance(error, kind)]
    text = str(error) if kinds else f"{type(error).__name__}: {error}"
    data = " ".join(text.split()).encode("utf-8", "replace")[:_TEXT]
    note[0] = kinds[0] if kinds else _OTHER
    note[1 : 1 + len(data)] = np.frombuffer(data, np.uint8)
    return note


def _from_note(process: int, note: np.ndarray) -> GotR1Error:
    text = note[1:].tobytes().rstrip(b"\0").decode("utf-8", "ignore")
    kind = _KINDS.get(int(note[0]), RunError)
    return kind(f"process {process}: {text}")
