"""Records on disk with their images as token ids: what SFT reads.

A folder holds manifest.json and shard_00000.arrow, shard_00001.arrow, …: Arrow files that are
mapped into memory, not loaded. Shard k holds records k·n .. (k+1)·n - 1 of the source, n =
`Manifest.shard_records`, without the unusable ones. Columns: record (int64, its index), caption,
plan, prompts (JSON, the texts of each kind), ids (uint16 or int32, a list of U).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gotr1_jax.data.config import PromptsConfig
from gotr1_jax.data.records import Record
from gotr1_jax.errors import InputError
from gotr1_jax.io.files import atomic_write
from gotr1_jax.io.reading import open_file, parse_json, read_json

MANIFEST = "manifest.json"
_FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """Provenance of a folder of shards; shards that differ in any field are never mixed.

    Attributes:
      source: names as the user gave them.
      files: `records.fingerprint_files` of the files of these names.
      records: number of records in the files.
      shard_records: records of one shard.
      caption, plan, image, prompts: columns.
      crop: the square of an image, with the seed if it is random.
      image_size: pixels a side.
      vq: digest of the image tokenizer's weights.
      tokens: ids of one image (U).
      codes: size of the image vocabulary (I).
    """

    source: tuple[str, ...]
    files: str
    records: int
    shard_records: int
    caption: str
    plan: str
    image: str
    prompts: tuple[str, ...]
    crop: str
    image_size: int
    vq: str
    tokens: int
    codes: int
    format: int = _FORMAT

    @property
    def key(self) -> str:
        """A digest of everything but `source`: moved files keep their shards."""
        values = {**asdict(self), "source": ()}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:20]

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.records // self.shard_records)

    def span(self, shard: int) -> tuple[int, int]:
        """First record of a shard, and the end, exclusive."""
        start = shard * self.shard_records
        return start, min(start + self.shard_records, self.records)


@dataclass(frozen=True)
class ShardResult:
    """Rows of a shard, unusable records, and the reason of the first of these."""

    rows: int
    unusable: int
    reason: str


def shard_path(folder: Path, shard: int) -> Path:
    """The file of a shard."""
    return folder / f"shard_{shard:05d}.arrow"


def has_shards(path: Path) -> bool:
    """Whether a folder holds shards, complete or not."""
    return (path / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder; InputError if it has no readable one."""
    path = folder / MANIFEST
    values = read_json(path)
    try:
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        manifest = Manifest(**values)
    except (TypeError, AttributeError) as error:
        raise InputError(f"{path} is no manifest of image tokens: {error}") from error
    if manifest.format != _FORMAT:
        raise InputError(f"{path} has the format {manifest.format}, this version reads {_FORMAT}")
    return manifest


def begin_folder(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of an empty folder, or check the existing one.

    Several processes may do so at once. Raises InputError, naming the difference, for a folder
    made of something else; RunError if it cannot be written.
    """
    if not has_shards(folder):
        text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n"
        atomic_write(folder / MANIFEST, text, parents=True)
    check_same(folder, read_manifest(folder), manifest)


def check_same(folder: Path, found: Manifest, wanted: Manifest) -> None:
    """Raise InputError, naming the first difference, unless both describe the same shards.

    `source` may differ if the files are the same.
    """
    if found.files != wanted.files:
        raise InputError(
            f"the image tokens in {folder} were made of other files, which were "
            f"{', '.join(found.source)}; choose another folder"
        )
    for name, value in asdict(wanted).items():
        if name != "source" and getattr(found, name) != value:
            raise InputError(
                f"the image tokens in {folder} were made with {name} {getattr(found, name)!r}, "
                f"now it is {value!r}; set it back or choose another folder"
            )


def write_shard(
    folder: Path,
    shard: int,
    manifest: Manifest,
    rows: Sequence[tuple[Record, np.ndarray]],
    reasons: Sequence[str],
) -> None:
    """Write a shard of records and their ids (U,), atomically; RunError if that fails.

    `reasons` has a line for each unusable record of the shard.
    """
    import pyarrow as pa

    kind = np.uint16 if manifest.codes <= 2**16 else np.int32
    records = [record for record, _ in rows]
    ids = np.asarray([row for _, row in rows], kind).reshape(-1)
    prompts = [json.dumps(record.prompts, ensure_ascii=False) for record in records]
    columns = {
        "record": pa.array([record.index for record in records], pa.int64()),
        "caption": pa.array([record.caption for record in records], pa.string()),
        "plan": pa.array([record.plan for record in records], pa.string()),
        "prompts": pa.array(prompts, pa.string()),
        "ids": pa.FixedSizeListArray.from_arrays(pa.array(ids), manifest.tokens),
    }
    start, stop = manifest.span(shard)
    reason = reasons[0] if reasons else ""
    notes = {"records": f"{start} {stop}", "unusable": str(len(reasons)), "reason": reason}
    batch = pa.record_batch(columns).replace_schema_metadata(notes)
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_file(buffer, batch.schema) as writer:
        writer.write_batch(batch)
    atomic_write(shard_path(folder, shard), buffer.getvalue().to_pybytes(), parents=True)


class Shard:
    """One shard, mapped into memory."""

    def __init__(self, folder: Path, shard: int, manifest: Manifest) -> None:
        """Raises InputError for a file that is missing, damaged or of another manifest."""
        import pyarrow as pa

        path = shard_path(folder, shard)
        with open_file(path):
            pass  # The library reads it by name, and would wait for a FIFO.
        try:
            with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
                batch = reader.get_batch(0)
            notes = {k.decode(): v.decode() for k, v in (batch.schema.metadata or {}).items()}
            start, stop = manifest.span(shard)
            fits = notes["records"] == f"{start} {stop}"
            fits &= len(batch) + int(notes["unusable"]) == stop - start
            width = batch.schema.field("ids").type.list_size
            ids = batch.column("ids").flatten().to_numpy().reshape(len(batch), width)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error
        except (pa.ArrowException, KeyError, ValueError, AttributeError) as error:
            raise InputError(f"{path} is damaged ({error}); delete it, and make it anew") from error
        if not fits or width != manifest.tokens:
            raise InputError(f"{path} does not fit {MANIFEST} in its folder; delete it")
        _check_ids(path, ids, manifest.codes)
        self._batch = batch
        self.ids = ids
        """(rows, U), in the file's own type."""
        self.result = ShardResult(len(batch), int(notes["unusable"]), notes["reason"])

    def __len__(self) -> int:
        return len(self._batch)

    def record(self, row: int) -> int:
        """The index of the row's record in the source."""
        return self._batch.column("record")[row].as_py()

    def text(self, row: int) -> tuple[str, str]:
        """(caption, plan)."""
        return self._batch.column("caption")[row].as_py(), self._batch.column("plan")[row].as_py()

    def prompts(self, row: int) -> list[list[str]]:
        """The texts of each kind of prompt, in the manifest's order."""
        return parse_json(self._batch.column("prompts")[row].as_py(), "the prompts")


def _check_ids(path: Path, ids: np.ndarray, codes: int) -> None:
    """Raise InputError unless all `ids` are whole numbers from 0 to `codes` - 1."""
    if ids.dtype.kind not in "iu":
        raise InputError(f"{path} holds image tokens of the type {ids.dtype}, not whole numbers")
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < codes:
        wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise InputError(
            f"{path} holds the image token {wrong}; the image tokenizer has 0 to {codes - 1}: "
            "delete the folder and make it anew"
        )


class TokenizedRecords:
    """The rows of a folder of shards: the source of `pipeline.record_batches`.

    Raises InputError if shards are missing or damaged.
    """

    def __init__(self, folder: Path, prompts: Sequence[PromptsConfig] = ()) -> None:
        self.manifest = read_manifest(folder)
        paths = [shard_path(folder, shard) for shard in range(self.manifest.shards)]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise InputError(
                f"{folder} lacks {len(missing)} of {len(paths)} shards, the first is "
                f"{missing[0]}; run gotr1 tokenize-images to the end"
            )
        for kind in prompts:
            if kind.key not in self.manifest.prompts:
                raise InputError(
                    f"the image tokens in {folder} were made without the prompts {kind.key!r}; "
                    f"they have {', '.join(self.manifest.prompts) or 'none'}"
                )
        self.shards = [Shard(folder, k, self.manifest) for k in range(self.manifest.shards)]
        self._kinds = [(kind, self.manifest.prompts.index(kind.key)) for kind in prompts]
        self._ends = np.cumsum([0, *map(len, self.shards)])
        self._rows = np.arange(self._ends[-1])

    def __len__(self) -> int:
        return len(self._rows)

    def keep(self, mask: np.ndarray) -> None:
        """Drop the current rows where the bool `mask` is False."""
        self._rows = self._rows[mask]

    def _locate(self, index: int) -> tuple[Shard, int]:
        row = int(self._rows[index])
        shard = int(np.searchsorted(self._ends, row, side="right")) - 1
        return self.shards[shard], row - int(self._ends[shard])

    def text(self, index: int) -> tuple[str, str]:
        """(caption, plan)."""
        shard, row = self._locate(index)
        return shard.text(row)

    def draw_prompt(self, index: int, rng: np.random.Generator) -> str | None:
        """A random prompt of the row: first a kind, then by its `take`; None if it has none."""
        if not self._kinds:
            return None
        shard, row = self._locate(index)
        texts = shard.prompts(row)
        kinds = [(kind, texts[i]) for kind, i in self._kinds if texts[i]]
        if not kinds:
            return None
        kind, choices = kinds[rng.integers(len(kinds))]
        if kind.take == "one":
            return choices[rng.integers(len(choices))]
        count = len(choices) if kind.take == "all" else int(rng.integers(len(choices))) + 1
        return kind.joined_by.join(choices[:count])

    def image_ids(self, indices: np.ndarray) -> np.ndarray:
        """Image tokens of rows, int32 (B, U)."""
        rows = (self._locate(int(index)) for index in indices)
        return np.stack([shard.ids[row] for shard, row in rows]).astype(np.int32)
