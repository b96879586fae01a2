"""Atomic writing of files and folders."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from gotr1_jax.errors import InputError
from gotr1_jax.io.lock import target_lock
from gotr1_jax.io.storage import writing
from gotr1_jax.io.write_errors import raise_write_errors

_PROBE_BYTES = 4096


def plain_json(value: Any) -> Any:
    """`value` with numpy scalars and arrays as Python values, and non-finite numbers as None."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    if hasattr(value, "tolist"):
        return plain_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def flatten(values: Mapping[Any, Any], separator: str) -> dict[str, Any]:
    """The values of nested sections by their names, joined; an empty section is a value."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            inner = flatten(value, separator)
            found |= {f"{name}{separator}{below}": one for below, one in inner.items()}
        else:
            found[f"{name}"] = value
    return found


def atomic_write(path: Path | str, data: bytes | str, *, parents: bool = False) -> None:
    """Write `data` (text as UTF-8) to a temporary file, flush it to disk, then rename it to `path`.

    Readers see the old or the complete new file. `parents` creates missing folders. Raises
    RunError if writing fails; the temporary file is then removed.
    """
    path = Path(path)
    # A random name, not the process id: processes on several hosts may write the same file.
    temporary = path.with_name(f".{path.name}.tmp{secrets.randbelow(10**12)}")
    with writing(path), raise_write_errors(path):
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


def write_json_atomic(path: Path | str, value: Any, *, parents: bool = False) -> None:
    """Writes `value` as strict JSON, as `atomic_write`; NaN and infinity become null."""
    text = json.dumps(plain_json(value), indent=2, allow_nan=False) + "\n"
    atomic_write(path, text, parents=parents)


def write_json(path: Path, value: Any, *, ascii_only: bool = True) -> None:
    """Writes `value` as JSON, not atomically: for files inside an `atomic_folder`. OSError."""
    text = json.dumps(value, indent=2, ensure_ascii=ascii_only)
    path.write_text(text + "\n", encoding="utf-8")


@contextmanager
def atomic_folder(target: Path, marker: str | None = None) -> Iterator[Path]:
    """A temporary folder next to `target`, renamed to it when the block ends without an error.

    An existing `target` is replaced; with a `marker` only if it is empty or holds a file of that
    name, otherwise an InputError is raised. RunError if the folder cannot be written. If the block
    raises, the temporary folder is removed and `target` is unchanged. Another process that writes
    `target` at the same time gets an InputError.
    """
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; choose a directory")
    unmarked = marker is not None and target.is_dir() and not (target / marker).is_file()
    if unmarked and any(target.iterdir()):
        raise InputError(f"{target} is not empty and holds no {marker}; choose another directory")
    # Random names, not process ids: processes on several hosts may write the same folder.
    number = secrets.randbelow(10**12)
    temporary = target.with_name(f".{target.name}.tmp{number}")
    old = target.with_name(f".{target.name}.old{number}")
    with target_lock(target, "the folder"):
        try:
            with raise_write_errors(target):
                temporary.mkdir(parents=True)
                yield temporary
                if target.exists():
                    target.rename(old)
                temporary.rename(target)
        finally:
            if old.exists() and not target.exists():
                old.rename(target)
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def write_all(file: io.RawIOBase | BinaryIO, data: bytes) -> None:
    """Writes all of `data` to an unbuffered file, in one write where the disk takes it; OSError.

    A disk that is almost full takes a part of it without an error; the write of the rest fails.
    """
    left = memoryview(data)
    while left:
        left = left[file.write(left) or 0 :]


def check_writable(folder: Path) -> None:
    """OSError if no file can be written to a folder, which must exist; leaves nothing there."""
    probe = folder / f".probe.tmp{secrets.randbelow(10**12)}"
    try:
        with open(probe, "wb") as file:
            file.write(bytes(_PROBE_BYTES))
    finally:
        with suppress(OSError):
            probe.unlink()


def sync(path: Path) -> None:
    """Flush a file's bytes or a directory's entries to disk; OSError if that fails.

    Without it a renamed file can be empty after a power cut.
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
