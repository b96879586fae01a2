"""Names of data files with wildcards, and parquet files."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import is_stray_file, open_file
from gotr1_jax.io.storage import is_url, local_path

_MAGIC = re.compile(r"[*?[]")

Names = str | os.PathLike[str] | Sequence[str]
"""One name, or several."""


def list_names(source: Names) -> tuple[str, ...]:
    """The names in `source`, which may be a single one."""
    if isinstance(source, (str, os.PathLike)):
        return (os.fspath(source),)
    return tuple(source)


def expand_names(source: Names, what: str) -> tuple[Path, ...]:
    """The files of names, in the order of the names; a file may occur twice.

    A name with wildcards (*, ?, [a-z]; ** for any folders) gives all files that match, sorted; an
    existing file is taken as it is, whatever its name. `what` the files should hold is for the
    message. Raises InputError for a name without a file.
    """
    found: list[Path] = []
    for name in list_names(source):
        if is_url(name) and (wildcard := _MAGIC.search(name)):
            # Of a bucket the folder is fetched in which the wildcards begin.
            folder = name[: wildcard.start()].rpartition("/")[0]
            name = str(local_path(folder)) + name[len(folder) :]
        path = local_path(name)
        if path.is_dir():
            raise InputError(f"{what}: {name} is a folder; name files")
        if path.exists() or not glob.has_magic(name):
            found.append(path)
            continue
        matches = _matching(name)
        if not matches:
            raise InputError(f"{what}: no file fits {name!r} (looked from {Path.cwd()})")
        found += matches
    if not found:
        raise InputError(f"no file is named for {what}")
    return tuple(found)


def _matching(pattern: str) -> list[Path]:
    paths = sorted(map(Path, glob.glob(pattern, recursive=True)))
    return [path for path in paths if path.is_file() and not is_stray_file(path)]


@contextmanager
def open_parquet(path: Path, what: str) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`, of which only the footer is read yet.

    `what` the file should hold is for the message. Raises InputError for a file that is missing,
    not parquet, or damaged where the block reads it.
    """
    # Imported late: most commands read no parquet, and the library loads slowly.
    import pyarrow
    import pyarrow.parquet

    with open_file(path, what):
        pass  # The library reads it by name, faster, and would wait for a FIFO.
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    # An invalid text is a UnicodeDecodeError.
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {what} from {path}: {error}") from error
