"""Files that appear whole or not at all, strict JSON, lines of text, one line for an error."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gotr1_jax.errors import InputError, RunError


def write_failure(
    path: Path, error: OSError, advice: str = "free some space or choose another directory"
) -> RunError:
    """The one line for a write that failed; `advice` follows when the disk is full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(f"disk full: {path} was not written; {advice}")
    return RunError(f"cannot write {path}: {error.strerror or error}")


@contextmanager
def clear_write_errors(path: Path, *advice: str) -> Iterator[None]:
    """Turns an OSError inside the block into the RunError of `write_failure`."""
    try:
        yield
    except OSError as error:
        raise write_failure(path, error, *advice) from error


def atomic_write(path: Path | str, data: bytes | str, *, parents: bool = False) -> None:
    """Writes `data` (text as UTF-8) under a temporary name, flushes it to disk, then renames.

    A reader sees the old file or the whole new one. `parents` creates missing folders. Raises
    RunError when it cannot be written; nothing of the new file is then left behind.
    """
    path = Path(path)
    # Not the process id: processes of several hosts may write the same file.
    temporary = path.with_name(f".{path.name}.tmp{secrets.randbelow(10**12)}")
    with clear_write_errors(path):
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
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


def read_lines(path: Path, what: str) -> Iterator[tuple[int, str]]:
    """(number from 1, text without blanks around it) of the lines of a UTF-8 file that are not
    blank; `what` the file should hold. Raises InputError for a file that cannot be read."""
    number = 0
    try:
        # Not splitlines(): it also cuts at characters that may occur inside a caption.
        with open(path, encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, line.strip()
    except OSError as error:
        raise InputError(f"cannot read {what} from {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (after line {number}); save it as UTF-8"
        ) from error
