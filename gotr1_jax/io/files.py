"""Files that appear whole or not at all, strict JSON, and one line for a failed write."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gotr1_jax.errors import RunError


def write_failure(path: Path, error: OSError) -> RunError:
    """The one line for a write that failed; a full disk is named as such."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"disk full: {path} was not written; free some space or choose another run directory"
        )
    return RunError(f"cannot write {path}: {error.strerror or error}")


@contextmanager
def clear_write_errors(path: Path) -> Iterator[None]:
    """Turns an OSError inside the block into the RunError of `write_failure`."""
    try:
        yield
    except OSError as error:
        raise write_failure(path, error) from error


def atomic_write(path: Path | str, data: bytes | str) -> None:
    """Writes `data` (text as UTF-8) under a temporary name, flushes it to disk, then renames.

    A reader sees the old file or the whole new one. Raises RunError when it cannot be written;
    nothing of the new file is then left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    with clear_write_errors(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Returns when a file's bytes, or a directory's names, are on disk; OSError if they cannot be.

    Without it a power cut can leave a new name over an empty file.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a directory.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def write_json_atomic(path: Path | str, value: Any) -> None:
    """Writes `value` as strict JSON, atomically; NaN and infinity become null."""
    atomic_write(path, json.dumps(plain_json(value), indent=2, allow_nan=False) + "\n")


def plain_json(value: Any) -> Any:
    """`value` with numpy scalars and arrays as Python's own, and non-finite numbers as None."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    if hasattr(value, "tolist"):
        return plain_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
