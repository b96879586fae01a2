"""Records with their images as token ids, on disk: what SFT reads.

A folder holds manifest.json and shard_00000.arrow, shard_00001.arrow, …: Arrow files that are
mapped into memory, not loaded. Shard k is made of records k·n .. (k+1)·n - 1 of the source, n =
`Manifest.shard_records`; each of its rows says which record it is. Columns: record (int64),
caption, plan, prompts (JSON, the texts of each kind), ids (uint16 or int32, a list of U).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gotr1_jax.data.config import PromptsConfig
from gotr1_jax.data.records import Record
from gotr1_jax.errors import InputError, RunError

MANIFEST = "manifest.json"
_FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards is made of; folders that differ in any of it are never mixed.

    Attributes:
      source: the names as they were given.
      files: `records.files_key` of the files that they meant.
      records: how many these hold.
      shard_records: records of one shard.
      caption, plan, image, prompts: columns.
      crop: the square of an image, with its seed where it is drawn.
      image_size: pixels a side.
      vq: digest of the image tokenizer's weights.
      tokens: ids of one image (U).
      codes: its vocabulary.
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
        """Names the shards by all that they hang on; files that moved are the same files."""
        values = {**dataclasses.asdict(self), "source": ()}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:20]

    @property
    def shards(self) -> int:
        """How many shards the whole has."""
        return -(-self.records // self.shard_records)

    def span(self, shard: int) -> tuple[int, int]:
        """First record of a shard, and the one after its last."""
        start = shard * self.shard_records
        return start, min(start + self.shard_records, self.records)


@dataclass(frozen=True)
class ShardResult:
    """What became of a shard's records: how many rows it has, how many records it lacks, and why
    the first of these."""

    rows: int
    unusable: int
    reason: str


def shard_path(folder: Path, shard: int) -> Path:
    """Where a shard lies."""
    return folder / f"shard_{shard:05d}.arrow"


def is_shards(path: Path) -> bool:
    """Whether a folder holds shards, whole or not."""
    return (path / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder; InputError where it has none that can be read."""
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        manifest = Manifest(**values)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no manifest of image tokens: {error}") from error
    if manifest.format != _FORMAT:
        raise InputError(f"{path} has the format {manifest.format}, this version reads {_FORMAT}")
    return manifest


def begin_folder(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of an empty folder, or check the one that is there.

    Several processes may do so at once. Raises InputError, naming what differs, where the folder
    was made of something else; RunError where it cannot be written.
    """
    if not is_shards(folder):
        text = json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False) + "\n"
        write_file(folder / MANIFEST, lambda part: part.write_text(text, encoding="utf-8"))
    check_same(folder, read_manifest(folder), manifest)


def check_same(folder: Path, found: Manifest, wanted: Manifest) -> None:
    """Raise InputError, naming the first difference, unless both describe the same shards.

    The names of the source may differ where the files are the same.
    """
    if found.files != wanted.files:
        raise InputError(
            f"the image tokens in {folder} were made of other files, which were "
            f"{', '.join(found.source)}; choose another folder"
        )
    for name, value in dataclasses.asdict(wanted).items():
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
    """Write a shard of records and their ids (U,); it appears whole or not at all.

    `reasons` has a line for each record that is not in it. Raises RunError where it cannot be
    written.
    """
    import pyarrow as pa

    kind = np.uint16 if manifest.codes <= 2**16 else np.int32
    ids = np.zeros((len(rows), manifest.tokens), kind)
    for i, (_, row) in enumerate(rows):
        ids[i] = row
    columns = {
        "record": pa.array([record.index for record, _ in rows], pa.int64()),
        "caption": pa.array([record.caption for record, _ in rows], pa.string()),
        "plan": pa.array([record.plan for record, _ in rows], pa.string()),
        "prompts": pa.array(
            [json.dumps(record.prompts, ensure_ascii=False) for record, _ in rows], pa.string()
        ),
        "ids": pa.FixedSizeListArray.from_arrays(pa.array(ids.reshape(-1)), manifest.tokens),
    }
    start, stop = manifest.span(shard)
    notes = {"records": f"{start} {stop}", "unusable": str(len(reasons)), "reason": ""}
    if reasons:
        notes["reason"] = reasons[0]
    batch = pa.record_batch(columns).replace_schema_metadata(notes)

    def write(part: Path) -> None:
        with pa.OSFile(str(part), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)

    write_file(shard_path(folder, shard), write)


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """`write(temporary path)`, flushed to the disk, then renamed; RunError where that fails."""
    # Processes of several hosts may share the folder, and their ids.
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise RunError(
            f"cannot write the image tokens to {path}: {error.strerror or error}; free some "
            "space, or name another folder"
        ) from error
    finally:
        part.unlink(missing_ok=True)


class Shard:
    """One shard, mapped into memory."""

    def __init__(self, folder: Path, shard: int, manifest: Manifest) -> None:
        """Raises InputError for a file that is damaged or not of this manifest."""
        import pyarrow as pa

        path = shard_path(folder, shard)
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
            raise InputError(f"{path} does not fit {MANIFEST} beside it; delete it")
        self._batch = batch
        self.ids = ids
        """(rows, U), in the file's own type."""
        self.result = ShardResult(len(batch), int(notes["unusable"]), notes["reason"])

    def __len__(self) -> int:
        return len(self._batch)

    def record(self, row: int) -> int:
        """The number of the record in the source."""
        return self._batch.column("record")[row].as_py()

    def text(self, row: int) -> tuple[str, str]:
        """(caption, plan)."""
        return self._batch.column("caption")[row].as_py(), self._batch.column("plan")[row].as_py()

    def prompts(self, row: int) -> list[list[str]]:
        """The texts of each kind of prompt, in the manifest's order."""
        return json.loads(self._batch.column("prompts")[row].as_py())


def missing_shards(folder: Path, manifest: Manifest) -> list[int]:
    """The shards that are not there yet."""
    return [k for k in range(manifest.shards) if not shard_path(folder, k).is_file()]


class TokenizedRecords:
    """All rows of a folder of shards, or some: a source for `pipeline.sft_batches`.

    Raises InputError where shards are missing or damaged.
    """

    def __init__(self, folder: Path, prompts: Sequence[PromptsConfig] = ()) -> None:
        self.manifest = read_manifest(folder)
        missing = missing_shards(folder, self.manifest)
        if missing:
            raise InputError(
                f"{folder} lacks {len(missing)} of {self.manifest.shards} shards, the first is "
                f"{shard_path(folder, missing[0]).name}; run gotr1 tokenize-images to the end"
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
        """Leave out the rows where `mask`, bool over the rows of now, is False."""
        self._rows = self._rows[mask]

    def _place(self, index: int) -> tuple[Shard, int]:
        row = int(self._rows[index])
        shard = int(np.searchsorted(self._ends, row, side="right")) - 1
        return self.shards[shard], row - int(self._ends[shard])

    def text(self, index: int) -> tuple[str, str]:
        """(caption, plan)."""
        shard, row = self._place(index)
        return shard.text(row)

    def draw_prompt(self, index: int, rng: np.random.Generator) -> str | None:
        """One of the row's prompts: a kind that it has, then as the kind says; None without any."""
        if not self._kinds:
            return None
        shard, row = self._place(index)
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
        places = [self._place(int(index)) for index in indices]
        return np.stack([shard.ids[row] for shard, row in places]).astype(np.int32)
