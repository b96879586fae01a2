"""Multi-process runs: the main process, small collectives, error handling, exit.

Every process makes the same calls in the same order. Outside of compiled programs, processes
exchange at most a few numbers per row.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import jax
import numpy as np
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

from gotr1_jax.errors import GotR1Error, InputError, RunError, Stopped

_MESSAGE_BYTES = 600  # length of an error message that other processes receive
_OTHER = 1
_EXIT_DELAY = 2.0  # seconds
_KINDS: dict[int, type[GotR1Error]] = {2: InputError, 3: Stopped, 4: RunError}


def is_main_process() -> bool:
    """Whether this is process 0, which writes all files except a checkpoint's arrays."""
    # `jax.process_index` would start the devices; a single process need not start them here.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def gather(values: np.ndarray) -> np.ndarray:
    """All-gather: the arrays of the N processes, equal in shape and dtype, stacked: (N, ...).

    float64 and int64 are truncated to four bytes.
    """
    if jax.process_count() == 1:
        return np.asarray(values)[None]
    return np.asarray(multihost_utils.process_allgather(values))


def broadcast_from_main(flag: bool) -> bool:
    """The flag of process 0, in every process."""
    return bool(gather(np.asarray([flag], np.int32))[0, 0])


@contextmanager
def raise_on_all_processes() -> Iterator[None]:
    """If any process raises inside the block, all raise.

    The block must not wait for other processes. A failed process raises its own error; the others
    raise one of the same class that names the failed process.
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


def post_text(key: str, text: str) -> None:
    """Leaves a text for the other processes under a key; any thread may call it.

    Unlike a collective it needs nobody's answer. Does nothing in a single process.
    """
    client = global_state.client
    if client is not None:
        with suppress(Exception):  # the service may have ended: the others notice that themselves
            client.key_value_set(key, text, allow_overwrite=True)


def posted_text(key: str) -> str | None:
    """The text that a process left under a key; None if there is none."""
    client = global_state.client
    if client is None:
        return None
    try:
        return client.key_value_try_get(key)
    except Exception:  # of a class of jaxlib's: there is no such key, or no service
        return None


def check_same_on_all_processes(text: str | Iterable[str], what: str) -> None:
    """Raise RunError in every process unless all pass the same text or sequence of texts.

    `what` names the text in the message.
    """
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
            "same command, on the same files"
        )


def describe_lost_process(error: Exception) -> str | None:
    """The message for an error caused by the end of another process; None for other errors."""
    if not (isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1):
        return None
    first_line = str(error).strip().splitlines()[0][:200]
    if "RESOURCE_EXHAUSTED" in first_line:  # this process is out of memory
        return None
    return (
        f"process {jax.process_index()} lost the others: one has probably ended, see its messages "
        f"({first_line}); the same command on all hosts resumes from the last checkpoint"
    )


def exit_process(code: int) -> None:
    """Exit without waiting for the other processes; does nothing in a single process.

    The runtime ends the others within the heartbeat timeout.
    """
    if not jax.distributed.is_initialized():
        return
    if is_main_process():
        # The runtime of all ends with process 0: let the others print their errors first.
        time.sleep(_EXIT_DELAY)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _to_note(error: Exception | None) -> np.ndarray:
    note = np.zeros(1 + _MESSAGE_BYTES, np.uint8)
    if error is None:
        return note
    kinds = [number for number, kind in _KINDS.items() if isinstance(error, kind)]
    text = str(error) if kinds else f"{type(error).__name__}: {error}"
    data = " ".join(text.split()).encode("utf-8", "replace")[:_MESSAGE_BYTES]
    note[0] = kinds[0] if kinds else _OTHER
    note[1 : 1 + len(data)] = np.frombuffer(data, np.uint8)
    return note


def _from_note(process: int, note: np.ndarray) -> GotR1Error:
    text = note[1:].tobytes().rstrip(b"\0").decode("utf-8", "ignore")
    kind = _KINDS.get(int(note[0]), RunError)
    return kind(f"process {process}: {text}")
