"""Records into shards of image tokens: restartable, and shared between hosts.

`gotr1 tokenize-images` and `gotr1 train sft` both use it.
"""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gotr1_jax.convert.image_tokenizer import ImageTokenizer
from gotr1_jax.data.config import RecordsConfig
from gotr1_jax.data.files import list_names
from gotr1_jax.data.records import (
    Record,
    Records,
    Unusable,
    check_usable_share,
    crop_square,
    find_record_files,
    fingerprint_files,
)
from gotr1_jax.data.shards import (
    Manifest,
    Shard,
    ShardResult,
    begin_folder,
    check_same,
    has_shards,
    read_manifest,
    shard_path,
    write_shard,
)
from gotr1_jax.errors import InputError
from gotr1_jax.io.storage import local_path
from gotr1_jax.parallel.progress import Progress
from gotr1_jax.sft.config import SftDataConfig
from gotr1_jax.sft.image_encoder import ImageEncoder, state_digest

# Images of one forward pass of the tokenizer on each device.
BATCH = 16
# Threads that read and crop images.
_READERS = min(16, os.cpu_count() or 1)

OnProgress = Callable[[int, int], None]
# A record and the square of its image, uint8 (size, size, 3).
_Loaded = tuple[Record, np.ndarray]


@dataclass(frozen=True)
class HostShare:
    """The share of one of `hosts` that work on the same shards."""

    index: int = 0
    hosts: int = 1

    def shards(self, manifest: Manifest) -> range:
        """The shards that this host makes, consecutive ones."""
        total = manifest.shards
        return range(total * self.index // self.hosts, total * (self.index + 1) // self.hosts)


@contextmanager
def show_progress() -> Iterator[OnProgress]:
    """A progress line of records, which appears at the first call with (done, total)."""
    with ExitStack() as stack:
        line: Progress | None = None

        def on_progress(done: int, total: int) -> None:
            nonlocal line
            if line is None:
                line = stack.enter_context(Progress("image tokens", total, done, unit="record"))
            line.update(done)

        yield on_progress


def given_shards(data: SftDataConfig) -> Path | None:
    """The folder of shards that a configuration names as its source; None if it names records."""
    names = list_names(data.source)
    if len(names) != 1 or glob.has_magic(names[0]):
        return None
    folder = local_path(names[0])
    return folder if has_shards(folder) else None


def tokenize_records(
    data: SftDataConfig,
    vq: ImageTokenizer,
    share: HostShare,
    on_progress: OnProgress,
    folder: Path | None = None,
    batch: int = BATCH,
) -> Path:
    """Make the missing shards of a host's share; returns their folder.

    Args:
        data: names the records.
        vq: the image tokenizer.
        share: of this host.
        on_progress: gets (done, total) records of this host.
        folder: output; None: a folder in data.cache_dir, named by the manifest's key.
        batch: images of one forward pass on each device.

    Raises:
        InputError: records that cannot be read, too many unusable ones, or a folder that was made
            of something else.
        RunError: a shard cannot be written.
    """
    files = find_record_files(data.source, data.records)
    manifest = _manifest(data, files, vq)
    if folder is None:
        folder = Path(data.cache_dir) / f"records_{manifest.key}"
    records = None
    if has_shards(folder):
        found = read_manifest(folder)
        manifest = replace(manifest, records=found.records, source=found.source)
        check_same(folder, found, manifest)
    else:
        records = Records(files, data.records)
        manifest = replace(manifest, records=len(records))
        begin_folder(folder, manifest)
    maker = _ShardMaker(folder, manifest, data.records, ImageEncoder(vq.config, vq.state), batch)
    shards = share.shards(manifest)
    total = sum(stop - start for start, stop in map(manifest.span, shards))
    results: list[ShardResult] = []
    done = 0

    def advance_from(start: int) -> Callable[[int], None]:
        return lambda made: on_progress(start + made, total)

    for shard in shards:
        result = finished_shard(folder, shard, manifest)
        if result is None:
            records = Records(files, data.records) if records is None else records
            result = maker.make(records, shard, advance_from(done))
        else:
            on_progress(done + result.rows + result.unusable, total)
        results.append(result)
        done += result.rows + result.unusable
        check_usable(results, total, data.records.unusable_limit)
    return folder


def finished_shard(folder: Path, shard: int, manifest: Manifest) -> ShardResult | None:
    """The result of a shard; None if it is missing or damaged."""
    try:
        return Shard(folder, shard, manifest).result
    except InputError:
        return None


def check_usable(results: Iterable[ShardResult], total: int, limit: float) -> int:
    """The number of unusable records; InputError if they exceed the share `limit` of `total`."""
    bad = [result for result in results if result.unusable]
    count = sum(result.unusable for result in bad)
    check_usable_share(count, total, limit, bad[0].reason if bad else "")
    return count


def check_tokenizer(folder: Path, vq: ImageTokenizer) -> None:
    """Raise InputError unless a folder's shards were made with this image tokenizer."""
    if read_manifest(folder).vq != state_digest(vq.state):
        raise InputError(
            f"the image tokens in {folder} were made with another image tokenizer; give the "
            "same vq, or make them anew with gotr1 tokenize-images"
        )


def _manifest(data: SftDataConfig, files: Sequence[Path], vq: ImageTokenizer) -> Manifest:
    """The manifest of shards of these files; `records` is not known yet and 0."""
    columns, size = data.records, vq.image_size
    seed = f", seed {columns.crop_seed}" if columns.crop == "random" else ""
    return Manifest(
        source=list_names(data.source),
        files=fingerprint_files(files),
        records=0,
        shard_records=columns.shard_records,
        caption=columns.caption,
        plan=columns.plan,
        image=columns.image,
        prompts=tuple(kind.key for kind in columns.prompts),
        crop=columns.crop + seed,
        image_size=size,
        vq=state_digest(vq.state),
        tokens=(size // vq.config.downsampling) ** 2,
        codes=vq.config.codebook_size,
    )


@dataclass(frozen=True)
class _ShardMaker:
    """Makes shards of one folder."""

    folder: Path
    manifest: Manifest
    config: RecordsConfig
    encoder: ImageEncoder
    batch: int  # images of one forward pass on each device

    def make(self, records: Records, shard: int, on_progress: Callable[[int], None]) -> ShardResult:
        """Read, encode and write the records of a shard."""
        path = shard_path(self.folder, shard)
        for part in path.parent.glob(f".{path.name}.*"):  # of a killed process
            part.unlink(missing_ok=True)
        rows: list[tuple[Record, np.ndarray]] = []
        reasons: list[str] = []
        waiting: list[_Loaded] = []
        size = self.batch * self.encoder.devices

        def encode() -> None:
            # Always the same number of images: one compilation.
            pixels = [image for _, image in waiting]
            pixels += [pixels[-1]] * (size - len(pixels))
            ids = self.encoder(np.stack(pixels))
            rows.extend((record, ids[i]) for i, (record, _) in enumerate(waiting))
            waiting.clear()
            on_progress(len(rows) + len(reasons))

        for item in self._load(records.read(*self.manifest.span(shard)), 2 * size):
            if isinstance(item, Unusable):
                reasons.append(item.reason)
            else:
                waiting.append(item)
            if len(waiting) == size:
                encode()
        if waiting:
            encode()
        write_shard(self.folder, shard, self.manifest, rows, reasons)
        return ShardResult(len(rows), len(reasons), reasons[0] if reasons else "")

    def _load(self, items: Iterable[Record | Unusable], ahead: int) -> Iterator[_Loaded | Unusable]:
        """Records with their squares, in order; threads load up to `ahead` of them in advance."""
        pending: deque[Future[_Loaded | Unusable]] = deque()
        with ThreadPoolExecutor(_READERS) as pool:
            for item in items:
                pending.append(pool.submit(self._load_square, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _load_square(self, item: Record | Unusable) -> _Loaded | Unusable:
        if isinstance(item, Unusable):
            return item
        try:
            image = item.load_image()
        except InputError as error:
            return Unusable(item.index, str(error))
        config, size = self.config, self.manifest.image_size
        return item, crop_square(image, size, config.crop, config.crop_seed, item.index)
