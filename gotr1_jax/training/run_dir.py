"""The directory of a run: where everything lies, and writing that never leaves half a file.

    config.yaml  metrics.jsonl  checkpoints/  samples/step_000010/  report.html  summary.json

TensorBoard's event files lie in `tensorboard/`.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gotr1_jax.errors import InputError, RunError
from gotr1_jax.plan import Box

CONFIG_NAME = "config.yaml"
METRICS_NAME = "metrics.jsonl"
CHECKPOINTS_NAME = "checkpoints"
SAMPLES_NAME = "samples"
TENSORBOARD_NAME = "tensorboard"
REPORT_NAME = "report.html"
SUMMARY_NAME = "summary.json"
_RECORDS_NAME = "samples.jsonl"
# What a killed process leaves of a file or folder that it did not get to rename.
_LEFTOVER = re.compile(r"\..+\.(tmp|old)\d+")


def write_failure(path: Path, error: OSError) -> RunError:
    """The one line for a write that failed; a full disk is named as such."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"disk full: {path} was not written; free some space or choose another run directory"
        )
    return RunError(f"cannot write {path}: {error.strerror or error}")


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_failure(path, error) from error


def atomic_write(path: Path | str, data: bytes | str) -> None:
    """Writes `data` (text as UTF-8) under a temporary name, flushes it to disk, then renames.

    A reader sees the old file or the whole new one. Raises RunError when it cannot be written;
    nothing of the new file is then left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    with _clear_errors(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Returns when a file's bytes, or a directory's names, are on disk; OSError if they cannot be.

    Without it a power cut can leave a new name over an empty file.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a directory.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def write_json_atomic(path: Path | str, value: Any) -> None:
    """Writes `value` as strict JSON, atomically; NaN and infinity become null."""
    atomic_write(path, json.dumps(plain_json(value), indent=2, allow_nan=False) + "\n")


def plain_json(value: Any) -> Any:
    """`value` with numpy scalars and arrays as Python's own, and non-finite numbers as None."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    if hasattr(value, "tolist"):
        return plain_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@dataclass(frozen=True)
class RunDir:
    """The paths of a run under `root`."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / CONFIG_NAME

    @property
    def metrics(self) -> Path:
        return self.root / METRICS_NAME

    @property
    def checkpoints(self) -> Path:
        return self.root / CHECKPOINTS_NAME

    @property
    def samples(self) -> Path:
        return self.root / SAMPLES_NAME

    @property
    def tensorboard(self) -> Path:
        return self.root / TENSORBOARD_NAME

    @property
    def report(self) -> Path:
        return self.root / REPORT_NAME

    @property
    def summary(self) -> Path:
        return self.root / SUMMARY_NAME


def create_run_dir(root: Path | str, config_text: str, *, may_exist: bool) -> RunDir:
    """Makes the directories of a run; a new one also gets its resolved configuration.

    A run that is there keeps the configuration that it has: the job calls `store_config` once
    its checkpoint was restored under the new one. What a killed process left half-written in it
    is removed.

    Args:
        root: the run's directory; its parents are made.
        config_text: the resolved configuration, YAML.
        may_exist: whether a run that is already there may be gone on with. Otherwise its being
            there is an InputError, so that a second run never mixes with a first.
    """
    run = RunDir(Path(root))
    if run.root.exists() and not run.root.is_dir():
        raise InputError(f"run directory {run.root} is a file; choose another path")
    if run.config.exists() and not may_exist:
        raise InputError(
            f"{run.root} already holds a run; choose another directory, or resume it with"
            " --resume auto"
        )
    with _clear_errors(run.root):
        for folder in (run.checkpoints, run.samples, run.tensorboard):
            folder.mkdir(parents=True, exist_ok=True)
        for path in (*run.root.iterdir(), *run.samples.iterdir()):
            if _LEFTOVER.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not run.config.exists():
        store_config(run, config_text)
    return run


def store_config(run: RunDir, config_text: str) -> None:
    """Stores the resolved configuration, YAML, that the run goes on with."""
    atomic_write(run.config, config_text)


@dataclass(frozen=True, kw_only=True)
class SampleRecord:
    """One sample of one caption, as a person wants to look at it.

    `planned` are the boxes of the plan and `located` those the judge found in the picture, each
    with its object's name, in 0..999 of the picture's width and height. `scores` holds every
    reward term by name, `total` their combination; NaN where the judge could not tell.
    """

    caption: str
    caption_index: int  # which caption of the step
    sample_index: int  # which sample of the caption
    plan_text: str
    planned: tuple[tuple[str, Box], ...]
    located: tuple[tuple[str, Box], ...]
    scores: Mapping[str, float]
    total: float
    advantage: float
    image: np.ndarray = field(repr=False)  # uint8 (H, W, 3)
    words: str = ""  # the judge's reasons, one line
    said: Mapping[str, str] = field(default_factory=dict)  # its own words for each term

    @property
    def image_name(self) -> str:
        return f"{self.caption_index:02d}_{self.sample_index:02d}.png"


def step_folder(samples_dir: Path, step: int) -> Path:
    """The folder of a step's samples, `step_000010`."""
    return samples_dir / f"step_{step:06d}"


def write_samples(
    samples_dir: Path | str, step: int, records: Sequence[SampleRecord], *, name: str | None = None
) -> Path:
    """Writes a step's samples, pictures and `samples.jsonl`; returns their folder.

    The folder is `step_000010`, or `name` for samples that belong to no step.

    The folder appears whole or not at all; one of the same step that a resumed run writes again
    is replaced. Raises RunError when it cannot be written.
    """
    folder = Path(samples_dir) / name if name is not None else step_folder(Path(samples_dir), step)
    temporary = folder.with_name(f".{folder.name}.tmp{os.getpid()}")
    with _clear_errors(folder):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            for record in records:
                (temporary / record.image_name).write_bytes(_png(record.image))
            lines = [json.dumps(_to_json(record)) for record in records]
            text = "".join(line + "\n" for line in lines)
            (temporary / _RECORDS_NAME).write_text(text, encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def read_samples(folder: Path | str) -> list[SampleRecord]:
    """The records of one step's folder, in the order written; InputError if it is damaged."""
    folder = Path(folder)
    path = folder / _RECORDS_NAME
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [_from_json(json.loads(line), folder) for line in lines]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"samples in {folder} cannot be read: {error}") from error


def sample_steps(samples_dir: Path | str) -> dict[int, Path]:
    """The steps that have samples, ascending, with their folders; empty if there are none."""
    folders = Path(samples_dir).glob("step_*")
    steps = {int(f.name.removeprefix("step_")): f for f in folders if f.name[5:].isdigit()}
    return dict(sorted(steps.items()))


def drop_samples_after(samples_dir: Path | str, step: int) -> None:
    """Removes the samples of later steps than the one a run goes on from."""
    for later, folder in sample_steps(samples_dir).items():
        if later > step:
            shutil.rmtree(folder, ignore_errors=True)


def _png(image: np.ndarray) -> bytes:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"a sample's image is uint8 (H, W, 3), not {image.dtype} {image.shape}")
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG")
    return stream.getvalue()


def _to_json(record: SampleRecord) -> dict[str, Any]:
    return plain_json(
        {
            "caption": record.caption,
            "caption_index": record.caption_index,
            "sample_index": record.sample_index,
            "plan_text": record.plan_text,
            "planned": [_named_box(*item) for item in record.planned],
            "located": [_named_box(*item) for item in record.located],
            "scores": record.scores,
            "total": record.total,
            "advantage": record.advantage,
            "words": record.words,
            "said": record.said,
            "image": record.image_name,
        }
    )


def _from_json(line: Mapping[str, Any], folder: Path) -> SampleRecord:
    with Image.open(folder / line["image"]) as picture:
        image = np.asarray(picture.convert("RGB"))
    return SampleRecord(
        caption=line["caption"],
        caption_index=line["caption_index"],
        sample_index=line["sample_index"],
        plan_text=line["plan_text"],
        planned=tuple((item["name"], Box(*item["box"])) for item in line["planned"]),
        located=tuple((item["name"], Box(*item["box"])) for item in line["located"]),
        scores={name: _number(score) for name, score in line["scores"].items()},
        total=_number(line["total"]),
        advantage=_number(line["advantage"]),
        image=image,
        words=line["words"],
        said=dict(line.get("said", {})),  # runs before it was stored lack it
    )


def _named_box(name: str, box: Box) -> dict[str, Any]:
    return {"name": name, "box": [box.x1, box.y1, box.x2, box.y2]}


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
