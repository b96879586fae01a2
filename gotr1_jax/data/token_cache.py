"""Image token ids of an image source, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gotr1_jax.data.sources import ImageSource
from gotr1_jax.errors import RunError

Encode = Callable[[np.ndarray], np.ndarray]
Progress = Callable[[int, int], None]

_SHARD = 4096


@dataclass(frozen=True)
class ImageTokens:
    """A cache folder for one tokenizer of images.

    encode: pixels uint8 (B, H, W, 3) -> ids (B, U); always called with `batch_size` images.
    codec_key: names the tokenizer's weights, for instance by their hash. Together with the
        source's key it names the folder, so other weights or images never meet old ids.
    """

    folder: Path
    codec_key: str
    encode: Encode
    batch_size: int = 64

    def ids(self, source: ImageSource, on_progress: Progress | None = None) -> np.ndarray:
        """Ids of every image of the source, int32 (N, U), from the cache where it has them.

        Shards are written to a temporary name and renamed, so an interrupted run goes on at the
        shard it was in; a damaged shard (zip checksum) is computed anew. `on_progress` gets
        (done, total) images. Raises RunError when the folder cannot be written.
        """
        key = f"{self.codec_key}\n{source.key}"
        folder = self.folder / hashlib.sha256(key.encode()).hexdigest()[:20]
        total = len(source)
        shards = []
        for start in range(0, total, _SHARD):
            stop = min(start + _SHARD, total)
            path = folder / f"ids_{start // _SHARD:05d}.npz"
            ids = _read(path, stop - start)
            if ids is None:
                ids = self._encode(source, start, stop, on_progress)
                _write(path, ids)
            shards.append(ids)
            if on_progress is not None:
                on_progress(stop, total)
        return np.concatenate(shards)

    def _encode(
        self, source: ImageSource, start: int, stop: int, on_progress: Progress | None
    ) -> np.ndarray:
        parts = []
        for first in range(start, stop, self.batch_size):
            # The last batch repeats its last image: one shape, one compilation.
            wanted = range(first, min(first + self.batch_size, stop))
            indices = [*wanted, *[wanted[-1]] * (self.batch_size - len(wanted))]
            pixels = np.stack([source.image(index) for index in indices])
            parts.append(np.asarray(self.encode(pixels), np.int32)[: len(wanted)])
            if on_progress is not None:
                on_progress(wanted[-1] + 1, len(source))
        return np.concatenate(parts)


def _read(path: Path, count: int) -> np.ndarray | None:
    """The ids of a shard, or None when it is absent, damaged, or of another length."""
    try:
        with np.load(path) as data:
            ids = data["ids"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return ids if ids.ndim == 2 and len(ids) == count else None


def _write(path: Path, ids: np.ndarray) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.savez(file, ids=ids)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise RunError(
            f"cannot write the image tokens to {path}: {error.strerror}; free some space, or "
            "name another cache folder"
        ) from error
