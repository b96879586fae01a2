"""Parquet files, read a row group at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gotr1_jax.errors import InputError


@contextmanager
def open_parquet(path: Path, what: str) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`; nothing but its footer is read yet.

    `what` says in an error what the file was to hold. Raises InputError for a file that is not
    there, is no parquet, or is damaged where it is read inside the block.
    """
    # Imported late: most commands read no parquet, and the library takes a while to load.
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(f"cannot read {what} from {path}: {error.strerror}") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"cannot read {what} from {path}: {error}") from error
