"""Failed writes as one-line errors."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gotr1_jax.errors import RunError

FULL = (errno.ENOSPC, errno.EDQUOT)
# What a file system does to a run, and no mistake of a program.
_DISK = (*FULL, errno.EROFS, errno.EIO, errno.ESTALE, errno.EFBIG, errno.ENOTCONN)
# How libraries report a full disk where they raise no OSError.
_FULL_WORDS = ("no space left", "disk quota", "disk is full")


def write_failure(
    path: Path | str, error: OSError, advice: str = "free some space or choose another directory"
) -> RunError:
    """The error of a failed write; `advice` is added if the disk is full."""
    if error.errno in FULL:
        return RunError(f"disk full: {path} was not written; {advice} ({_reason(error)})")
    return RunError(f"cannot write {path}: {_reason(error)}")


def find_write_failure(error: BaseException, path: Path) -> RunError | None:
    """`write_failure` of the failed disk at the root of any error; None where there is none.

    `path` is named where the error names no file.
    """
    found = find_disk_error(error)
    if found is None:
        return None
    named = isinstance(found.filename, str | Path)
    return write_failure(Path(found.filename) if named else path, found)


def find_disk_error(error: BaseException) -> OSError | None:
    """The failed disk at the root of any error; None where there is none.

    Libraries wrap an OSError in errors of their own, or keep only its text.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop(0)
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, OSError) and found.errno in _DISK:
            return found
        if any(words in str(found).lower() for words in _FULL_WORDS):
            return OSError(errno.ENOSPC, "No space left on device")
        waiting += getattr(found, "exceptions", ())
        waiting += [found.__cause__, found.__context__]
    return None


def _reason(error: OSError) -> str:
    return error.strerror or (os.strerror(error.errno) if error.errno else str(error))


@contextmanager
def raise_write_errors(path: Path | str, *advice: str) -> Iterator[None]:
    """Raise an OSError of the block as the RunError of `write_failure`."""
    try:
        yield
    except OSError as error:
        raise write_failure(path, error, *advice) from error
