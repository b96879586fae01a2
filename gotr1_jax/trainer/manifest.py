"""The manifest of a checkpoint's folder: the SHA-256 of every file in it."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gotr1_jax.errors import RunError
from gotr1_jax.io.files import atomic_write, sync

MANIFEST_NAME = "manifest.json"


def write_manifest(folder: Path, step: int, score: float | None) -> None:
    """Hashes all files under `folder`, flushes them to disk, then writes the manifest atomically.

    Raises OSError or RunError.
    """
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    hashes = _hash_all(folder, names)
    if not names or None in hashes.values():
        raise RunError(f"checkpoint {folder} was not saved: its files cannot be read back")
    for path in (*folder.rglob("*"), folder, folder.parent):
        sync(path)
    manifest = {"step": step, "score": score, "files": hashes}
    atomic_write(folder / MANIFEST_NAME, json.dumps(manifest, indent=1) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """`{"step", "score", "files": {path: SHA-256}}`."""
    return json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))


def manifest_problem(folder: Path, step: int) -> str | None:
    """Why a step cannot be restored, naming the file; None if all its files match."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return f"{path} is missing, so it was never finished"
    try:
        manifest = read_manifest(folder)
        files, saved_step = dict(manifest["files"]), manifest["step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{path} cannot be read ({error})"
    if saved_step != step:
        return f"{path} is of step {saved_step}"
    for name, found in _hash_all(folder, list(files)).items():
        if found is None:
            return f"{folder / name} is missing or cannot be read"
        if found != files[name]:
            return f"{folder / name} was damaged (its SHA-256 is not the manifest's)"
    return None


def _hash_all(folder: Path, names: list[str]) -> dict[str, str | None]:
    with ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(lambda name: _sha256(folder / name), names)))


def _sha256(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
