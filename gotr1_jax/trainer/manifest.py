"""The manifest of a checkpoint's folder: the SHA-256 of every file in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from gotr1_jax.errors import InputError, RunError
from gotr1_jax.io.files import atomic_write, sync
from gotr1_jax.io.reading import open_file, read_json_object
from gotr1_jax.io.storage import fetch

MANIFEST_NAME = "manifest.json"
PARTS = ("state", "meta")  # of a checkpoint, folders


def write_manifest(
    folder: Path,
    step: int,
    score: float | None,
    measure: str = "",
    others: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Hashes all files under `folder`, flushes them to disk, then writes the manifest atomically.

    others: the SHA-256 of files that other processes have written elsewhere, by name. Raises
    OSError or RunError.
    """
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    hashes = hash_files(folder, names)
    if not names:
        raise RunError(f"checkpoint {folder} was not saved: it has no files")
    for path in (*folder.rglob("*"), folder, folder.parent):
        sync(path)
    manifest = {"step": step, "score": score, "measure": measure, "files": {**hashes, **others}}
    atomic_write(folder / MANIFEST_NAME, json.dumps(manifest, indent=1) + "\n")


def hash_files(folder: Path, names: list[str]) -> dict[str, str]:
    """The SHA-256 of files below `folder`, by name; RunError where one cannot be read."""
    hashes = {name: found for name, found in _hash_all(folder, names).items() if found is not None}
    if len(hashes) < len(names):
        raise RunError(f"checkpoint {folder} was not saved: its files cannot be read back")
    return hashes


def read_manifest(folder: Path) -> dict[str, Any]:
    """`{"step", "score", "measure", "files": {path: SHA-256}}`; InputError for anything else.

    All paths are those of files below `folder`; the score is a finite number or None. Earlier
    versions wrote no measure.
    """
    path = folder / MANIFEST_NAME
    manifest = read_json_object(path)
    step, score, files = (manifest.get(key) for key in ("step", "score", "files"))
    if not isinstance(step, int) or isinstance(step, bool):
        raise InputError(f"{path} has no step")
    if score is not None and (not isinstance(score, int | float) or isinstance(score, bool)):
        raise InputError(f"{path} has a score that is no number")
    if not isinstance(files, dict) or not files:
        raise InputError(f"{path} names no files")
    for name, digest in files.items():
        place = PurePosixPath(name)
        if (
            place.is_absolute()
            or ".." in place.parts
            or "\0" in name
            or not isinstance(digest, str)
        ):
            raise InputError(f"{path} names {name[:200]!r}, which is no file of the checkpoint")
    return manifest


def manifest_problem(
    folder: Path, step: int, fetch_some: Callable[[list[str]], list[str]] | None = None
) -> str | None:
    """Why a step cannot be restored, naming the file; None if its files match.

    fetch_some: fetches some of the files that it is given by name, and returns their names; only
    these are looked at. None: all.
    """
    if fetch_some is None:
        fetch(folder)  # of a run in a bucket
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return f"{path} is missing, so it was never finished"
    try:
        manifest = read_manifest(folder)
    except InputError as error:
        return f"{path} cannot be read ({error})"
    files = manifest["files"]
    if manifest["step"] != step:
        return f"{path} is of step {manifest['step']}"
    names = list(files) if fetch_some is None else fetch_some(list(files))
    for name, found in _hash_all(folder, names).items():
        if found is None:
            return f"{folder / name} is missing or cannot be read"
        if found != files[name]:
            return f"{folder / name} was damaged (its SHA-256 is not the manifest's)"
    for part in PARTS:
        if not any(name.startswith(f"{part}/") for name in files):
            return f"{path} names no file of {part}/"
    return None


@contextmanager
def raise_read_errors(folder: Path) -> Iterator[None]:
    """What fails in reading a checkpoint, as a RunError in one line.

    Its manifest may name fewer files than it needs; those are not verified.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        text = " ".join(str(error).split())[:300]
        raise RunError(
            f"checkpoint {folder} cannot be read: {type(error).__name__}: {text}; remove it to go "
            "on from the one before"
        ) from error


def _hash_all(folder: Path, names: list[str]) -> dict[str, str | None]:
    with ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(lambda name: _sha256(folder / name), names)))


def _sha256(path: Path) -> str | None:
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (InputError, OSError):
        return None
