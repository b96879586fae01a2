"""Image token ids of an image source, computed once and cached on disk."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gotr1_jax.data.pipeline import ImageSource
from gotr1_jax.errors import InputError
from gotr1_jax.io.files import atomic_write
from gotr1_jax.io.reading import open_file

_SHARD = 4096


@dataclass(frozen=True)
class ImageTokenCache:
    """A cache folder for one image tokenizer.

    Attributes:
      folder: where each source gets a folder of its own.
      codec_key: names the tokenizer's weights, for instance by their hash. With the source's key
        it names the source's folder, so other weights or images never read these ids.
      encode: pixels uint8 (B, H, W, 3) -> ids (B, U); always called with `batch_size` images.
    """

    folder: Path
    codec_key: str
    encode: Callable[[np.ndarray], np.ndarray]
    batch_size: int = 64

    def ids(
        self, source: ImageSource, on_progress: Callable[[int, int], None] = lambda *_: None
    ) -> np.ndarray:
        """Ids of every image of the source, int32 (N, U), from the cache where it has them.

        An interrupted run continues at its last shard; a damaged shard (zip checksum) is computed
        again. `on_progress` gets (done, total) images. Raises RunError if a shard cannot be
        written.
        """
        key = f"{self.codec_key}\n{source.key}"
        folder = self.folder / hashlib.sha256(key.encode()).hexdigest()[:20]
        total = len(source)
        shards = []
        for start in range(0, total, _SHARD):
            images = range(start, min(start + _SHARD, total))
            path = folder / f"ids_{start // _SHARD:05d}.npz"
            ids = _read(path, len(images))
            if ids is None:
                ids = self._encode(source, images, on_progress)
                buffer = io.BytesIO()
                np.savez(buffer, ids=ids)
                atomic_write(path, buffer.getvalue(), parents=True)
            shards.append(ids)
            on_progress(images.stop, total)
        return np.concatenate(shards)

    def _encode(
        self, source: ImageSource, images: range, on_progress: Callable[[int, int], None]
    ) -> np.ndarray:
        parts = []
        for first in range(0, len(images), self.batch_size):
            batch = images[first : first + self.batch_size]
            # The last batch repeats its last image: one shape, one compilation.
            indices = [*batch, *[batch[-1]] * (self.batch_size - len(batch))]
            pixels = np.stack([source.image(index) for index in indices])
            parts.append(np.asarray(self.encode(pixels), np.int32)[: len(batch)])
            on_progress(batch[-1] + 1, len(source))
        return np.concatenate(parts)


def _read(path: Path, count: int) -> np.ndarray | None:
    """The ids of a shard; None if it is missing, damaged, or of another length."""
    if not path.exists():
        return None
    try:
        with open_file(path) as file, np.load(file) as data:
            ids = data["ids"]
    except (InputError, OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    return ids if ids.dtype == np.int32 and ids.ndim == 2 and len(ids) == count else None
