"""Records into shards of image tokens: restartable, and shared out over hosts.

`gotr1 tokenize-images` and `gotr1 train sft` both work through here.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from gotr1_jax.convert.image_tokenizer import ImageTokenizer
from gotr1_jax.data.config import RecordsConfig
from gotr1_jax.data.crop import square_pixels
from gotr1_jax.data.files import as_names
from gotr1_jax.data.records import Record, Records, Unusable, files_key, record_files
from gotr1_jax.data.shards import (
    Manifest,
    Shard,
    ShardResult,
    begin_folder,
    check_same,
    is_shards,
    read_manifest,
    shard_path,
    write_shard,
)
from gotr1_jax.errors import InputError
from gotr1_jax.io.progress import Progress
from gotr1_jax.sft.config import SftDataConfig
from gotr1_jax.sft.image_encoder import ImageEncoder, state_digest

# Images of one pass through the tokenizer, for each device.
BATCH = 16
# Threads that read and crop images.
_READERS = min(16, os.cpu_count() or 1)

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Host:
    """One of `hosts` that share the work; neighbouring shards are one host's."""

    index: int = 0
    hosts: int = 1

    def shards(self, manifest: Manifest) -> range:
        """Those that this host makes."""
        total = manifest.shards
        return range(total * self.index // self.hosts, total * (self.index + 1) // self.hosts)


class TokensProgress:
    """A progress line of records; there from the first call on, which tells how many there are."""

    def __init__(self) -> None:
        self._line: Progress | None = None

    def __enter__(self) -> TokensProgress:
        return self

    def __call__(self, done: int, total: int) -> None:
        if self._line is None:
            self._line = Progress("image tokens", total, done, unit="record")
        self._line.update(done)

    def __exit__(self, *_: object) -> None:
        if self._line is not None:
            self._line.close()


def given_shards(data: SftDataConfig) -> Path | None:
    """The folder of shards that a configuration names as its source; None: it names records."""
    names = as_names(data.source)
    return Path(names[0]) if len(names) == 1 and is_shards(Path(names[0])) else None


def tokenize_records(
    data: SftDataConfig,
    images: ImageTokenizer,
    host: Host,
    on_progress: OnProgress,
    folder: Path | None = None,
    batch: int = BATCH,
) -> Path:
    """Make those of a host's shards that are not there yet; returns their folder.

    Args:
        data: names the records.
        images: the tokenizer.
        host: its share of the work.
        on_progress: gets (done, total) records of this host.
        folder: where to; None: a folder in data.cache_dir, named by all that the shards hang on.
        batch: images at once on a device.

    Raises:
        InputError: records that cannot be read, too many that cannot be used, or a folder that
            was made of something else.
        RunError: a shard cannot be written.
    """
    files = record_files(data.source, data.records)
    manifest = _manifest(data, files, images)
    if folder is None:
        folder = Path(data.cache_dir) / f"records_{manifest.key}"
    records = None
    if is_shards(folder):
        found = read_manifest(folder)
        manifest = replace(manifest, records=found.records, source=found.source)
        check_same(folder, found, manifest)
    else:
        records = Records(files, data.records)
        manifest = replace(manifest, records=len(records))
        begin_folder(folder, manifest)
    maker = _Maker(folder, manifest, data.records, ImageEncoder(images.config, images.state))
    mine = host.shards(manifest)
    total = sum(stop - start for start, stop in map(manifest.span, mine))
    results: list[ShardResult] = []
    done = 0
    for shard in mine:
        result = finished_shard(folder, shard, manifest)
        if result is None:
            records = Records(files, data.records) if records is None else records
            advance = partial(_advance, on_progress, done, total)
            result = maker.make(records, shard, batch, advance)
        else:
            on_progress(done + result.rows + result.unusable, total)
        results.append(result)
        done += result.rows + result.unusable
        check_usable(results, total, data.records.unusable_limit)
    return folder


def finished_shard(folder: Path, shard: int, manifest: Manifest) -> ShardResult | None:
    """What became of a shard; None where it is not there, or damaged."""
    try:
        return Shard(folder, shard, manifest).result
    except InputError:
        return None


def check_usable(results: Iterable[ShardResult], total: int, limit: float) -> int:
    """How many records are unusable; InputError where they are more than the share of `total`."""
    bad = [result for result in results if result.unusable]
    count = sum(result.unusable for result in bad)
    if count > limit * total:
        raise InputError(
            f"{count} of {total} records cannot be used, more than the share {limit} "
            f"(data.records.unusable_limit); the first: {bad[0].reason}"
        )
    return count


def check_tokenizer(folder: Path, images: ImageTokenizer) -> None:
    """Raise InputError unless the shards in a folder were made with this image tokenizer."""
    if read_manifest(folder).vq != state_digest(images.state):
        raise InputError(
            f"the image tokens in {folder} were made with another image tokenizer; give the "
            "same vq, or make them anew with gotr1 tokenize-images"
        )


def _manifest(data: SftDataConfig, files: Sequence[Path], images: ImageTokenizer) -> Manifest:
    """What shards of these files are made of; how many records there are is not known yet."""
    columns, size = data.records, images.image_size
    seed = f", seed {columns.crop_seed}" if columns.crop == "random" else ""
    return Manifest(
        source=as_names(data.source),
        files=files_key(files),
        records=0,
        shard_records=columns.shard_records,
        caption=columns.caption,
        plan=columns.plan,
        image=columns.image,
        prompts=tuple(kind.key for kind in columns.prompts),
        crop=columns.crop + seed,
        image_size=size,
        vq=state_digest(images.state),
        tokens=(size // images.config.downsampling) ** 2,
        codes=images.config.codebook_size,
    )


def _advance(on_progress: OnProgress, before: int, total: int, done: int) -> None:
    on_progress(before + done, total)


@dataclass(frozen=True)
class _Maker:
    """Makes shards of one folder."""

    folder: Path
    manifest: Manifest
    config: RecordsConfig
    encoder: ImageEncoder

    def make(
        self, records: Records, shard: int, batch: int, on_progress: Callable[[int], None]
    ) -> ShardResult:
        """Read, encode and write the records of a shard."""
        path = shard_path(self.folder, shard)
        for part in path.parent.glob(f".{path.name}.*.part"):  # of a process that was killed
            part.unlink(missing_ok=True)
        start, stop = self.manifest.span(shard)
        rows: list[tuple[Record, np.ndarray]] = []
        reasons: list[str] = []
        waiting: list[tuple[Record, np.ndarray]] = []
        size = batch * self.encoder.devices

        def encode() -> None:
            # Always the same number of images: one program.
            pixels = [image for _, image in waiting]
            pixels += [pixels[-1]] * (size - len(pixels))
            ids = self.encoder(np.stack(pixels))
            rows.extend((record, ids[i]) for i, (record, _) in enumerate(waiting))
            waiting.clear()
            on_progress(len(rows) + len(reasons))

        for item, image in self._images(records.read(start, stop), 2 * size):
            if isinstance(item, Unusable):
                reasons.append(item.reason)
            else:
                waiting.append((item, image))
            if len(waiting) == size:
                encode()
        if waiting:
            encode()
        write_shard(self.folder, shard, self.manifest, rows, reasons)
        return ShardResult(len(rows), len(reasons), reasons[0] if reasons else "")

    def _images(
        self, items: Iterable[Record | Unusable], ahead: int
    ) -> Iterator[tuple[Record | Unusable, np.ndarray]]:
        """Records with their squares, in order; some are read ahead by other threads."""
        pending: deque[Future[tuple[Record | Unusable, np.ndarray]]] = deque()
        with ThreadPoolExecutor(_READERS) as pool:
            for item in items:
                pending.append(pool.submit(self._square, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _square(self, item: Record | Unusable) -> tuple[Record | Unusable, np.ndarray]:
        """The item, and its uint8 (size, size, 3), which an unusable one has not."""
        nothing = np.zeros(0, np.uint8)
        if isinstance(item, Unusable):
            return item, nothing
        try:
            image = item.load_image()
        except InputError as error:
            return Unusable(item.index, str(error)), nothing
        config, size = self.config, self.manifest.image_size
        return item, square_pixels(image, size, config.crop, config.crop_seed, item.index)
