"""Digests of large files by their whole content: what a model's weights are, whatever their name.

Sizes and times tell nothing of weights that were trained further and written to the same place,
and samples of a file may miss what changed. Files are hashed in pieces on all cores: about a
second for a gigabyte on one core, less than it takes to load them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gotr1_jax.io.reading import list_folder, open_file
from gotr1_jax.io.storage import partial_file

_PIECE = 2**26
_BLOCK = 2**20
# What a model is read from: weights, sizes, vocabulary, chat template.
_MODEL_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".safetensors", ".bin", ".pt", ".gz")
# Digests of this process, by file and what changes with its content: jobs ask more than once.
_known: dict[tuple[str, int, int, int, int, int], str] = {}


def model_digest(*places: Path | str | None) -> str:
    """16 hex digits of the files of a model, each place a file, a folder of files or None.

    Names of files within a folder count, its own path does not. InputError where a file cannot be
    read.
    """
    digest = hashlib.sha256()
    for place in places:
        digest.update(b"\0place\0")
        if place is None:
            continue
        path = Path(place)
        if path.is_dir():
            files = [p for p in list_folder(path) if p.suffix in _MODEL_SUFFIXES and p.is_file()]
            names = [file.name for file in files]
        else:
            files, names = [path], [""]
        for name, content in zip(names, _contents(files)):
            digest.update(f"{name}\0{content}\0".encode())
    return digest.hexdigest()[:16]


def identify_weights(setting: str, folder: Path) -> dict[str, str]:
    """{setting: what tells other weights than these}, to store with a run and to compare.

    The content of the folder's files counts; of those that lie in a bucket and were not read whole
    their versions there, which stand under another name. InputError where a file cannot be read.
    """
    files = [path for path in list_folder(folder) if path.is_file()]
    parts = {path: part for path in files if (part := partial_file(path)) is not None}
    if not parts or not all(part.version for part in parts.values()):
        return {setting: f"weights {model_digest(folder)}"}
    digest = hashlib.sha256()
    for path, part in sorted(parts.items()):
        digest.update(f"{path.name}\0{part.version}\0".encode())
    others = [path for path in files if path not in parts and path.suffix in _MODEL_SUFFIXES]
    digest.update(model_digest(*sorted(others)).encode())
    return {f"{setting} (its files in the bucket)": f"versions {digest.hexdigest()[:16]}"}


def _contents(files: Iterable[Path]) -> list[str]:
    """The SHA-256 over the digests of each file's pieces."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = []
        for file in files:
            with open_file(file) as stream:
                stat = os.fstat(stream.fileno())
            key = (
                str(file.resolve()), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns,
                stat.st_ctime_ns,
            )  # fmt: skip
            if key not in _known:
                starts = range(0, max(stat.st_size, 1), _PIECE)
                pieces = pool.map(lambda start, file=file: _piece(file, start), starts)
                _known[key] = hashlib.sha256(b"".join(pieces)).hexdigest()
            found.append(_known[key])
        return found


def _piece(file: Path, start: int) -> bytes:
    digest, left = hashlib.sha256(), _PIECE
    with open_file(file) as stream:
        stream.seek(start)
        while left and (block := stream.read(min(_BLOCK, left))):
            digest.update(block)
            left -= len(block)
    return digest.digest()
