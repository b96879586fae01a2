"""What a user names as data: files, and names with wildcards."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from gotr1_jax.errors import InputError

Names = str | os.PathLike[str] | Sequence[str]
"""One name, or several."""


def as_names(source: Names) -> tuple[str, ...]:
    """The names in `source`, which may be a single one."""
    if isinstance(source, (str, os.PathLike)):
        return (os.fspath(source),)
    return tuple(source)


def expand(source: Names, what: str) -> tuple[Path, ...]:
    """The files that names mean, in the order of the names; one may be meant twice.

    A name with wildcards (*, ?, [a-z]; ** for any folders) stands for all files that fit it,
    sorted. A file that is there is taken as it is, whatever its name. `what` says in an error what
    was looked for. Raises InputError for a name that means no file.
    """
    found = [path for name in as_names(source) for path in _files_of(name, what)]
    if not found:
        raise InputError(f"no file is named for {what}")
    return tuple(found)


def _files_of(name: str, what: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        raise InputError(f"{what}: {name} is a folder; name files")
    if path.exists() or not glob.has_magic(name):
        return [path]
    paths = [p for p in map(Path, glob.glob(name, recursive=True)) if p.is_file()]
    if not paths:
        raise InputError(f"{what}: no file fits {name!r} (looked from {Path.cwd()})")
    return sorted(paths)
