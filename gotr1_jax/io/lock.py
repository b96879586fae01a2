"""Locks that keep two processes from writing one output; a kill releases them.

The operating system holds the lock for as long as the process lives (flock), so nothing is left to
clean up after a kill. The file also says who holds it, for the message to the others. On a file
system without locks (some object stores and network mounts) a warning is logged and nothing is
locked; where locks do not reach other hosts, only processes of one host are kept apart. A bucket
has no locks. What is written to its local copy is uploaded when the lock ends (`io.storage`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gotr1_jax.errors import InputError
from gotr1_jax.io.storage import writing
from gotr1_jax.io.write_errors import raise_write_errors

LOCK_NAME = ".lock"
_HELD = (errno.EAGAIN, errno.EACCES)
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_MOST_BYTES = 1000
_log = logging.getLogger(__name__)


@contextmanager
def folder_lock(folder: Path, option: str, part: str = "") -> Iterator[None]:
    """Holds `folder`, which is created if missing, while the block runs.

    Args:
      folder: that only one process may write.
      option: that names it, for messages: "--out".
      part: a name of the share of the folder that this process writes; others may write theirs.

    A folder that was created and is left empty is removed. Raises InputError if another process
    holds it, RunError if the folder or the lock cannot be written.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{option} {folder} is a file; choose a directory")
    with raise_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with writing(folder), _locked(folder / (LOCK_NAME + part), folder, option):
            yield
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()


@contextmanager
def target_lock(target: Path, option: str) -> Iterator[None]:
    """Holds a file, or a folder that is replaced whole, by a lock file beside it.

    The lock file is removed at the end. Errors as in `folder_lock`.
    """
    with raise_write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with writing(target), _locked(target.with_name(f".{target.name}{LOCK_NAME}"), target, option):
        yield


@contextmanager
def _locked(path: Path, target: Path, option: str) -> Iterator[None]:
    with raise_write_errors(target):
        file = _open_locked(path, target, option)
    try:
        _write_holder(file)
        yield
    finally:
        # Removed while it is still held: a process that waits for this file sees that it is gone.
        with contextlib.suppress(OSError):
            path.unlink()
        file.close()


def _open_locked(path: Path, target: Path, option: str) -> BinaryIO:
    """The open lock file, which this process holds."""
    while True:
        file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except FileNotFoundError:  # its holder ended just now, and removed it
            same = False
        except OSError as error:
            if error.errno in _HELD:
                holder = _read_holder(file)
                file.close()
                raise InputError(
                    f"{option} {target} is in use by {holder}; wait until it has ended, or choose "
                    "another one"
                ) from None
            if error.errno not in _UNSUPPORTED:
                file.close()
                raise
            _log.warning(
                "the file system of %s has no locks (%s): make sure that no other process writes "
                "to it", target, error.strerror,
            )  # fmt: skip
            return file
        if same:
            return file
        file.close()


def _write_holder(file: BinaryIO) -> None:
    """Says who holds the lock; only for messages, so a full disk is no error here."""
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    holder = {"host": socket.gethostname(), "process": os.getpid(), "since": since}
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(json.dumps(holder).encode())


def _read_holder(file: BinaryIO) -> str:
    try:
        file.seek(0)
        holder = json.loads(file.read(_MOST_BYTES))
        return "process {process} on {host} since {since}".format(**holder)
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return "another process"
