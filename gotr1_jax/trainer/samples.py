"""Samples of a step, to look at: images and `samples.jsonl`, written and read."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.images import encode_png, open_image
from gotr1_jax.io.files import plain_json
from gotr1_jax.io.reading import parse_json, read_text
from gotr1_jax.io.write_errors import raise_write_errors
from gotr1_jax.plan import Box
from gotr1_jax.rewards.base import (
    JudgeRequest,
    JudgeResult,
    boxes_from_json,
    boxes_to_json,
    result_from_json,
)
from gotr1_jax.trainer.run_dir import remove_folder, step_number
from gotr1_jax.trainer.tracking.trackers import TrackedImage

_RECORDS_NAME = "samples.jsonl"
_FOLLOWED = "eval_"
_KINDS = {
    "caption": str, "plan_text": str, "image": str,
    "caption_index": int, "sample_index": int,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SampleRecord:
    """One sample of a caption and what the judge said of it.

    Boxes are in 0..999 of the image's width and height, each with its object's name.

    Attributes:
      caption_index, sample_index: which caption of the step, which sample of that caption.
      planned: boxes of the plan.
      detections: boxes that the judge found in the image.
      scores: every reward term by name; NaN where it could not be scored. total: combined.
      advantage: of every token, or of the plan's where `image_advantage` is that of the image's.
      rationale: the judge's reasons, one line.
      raw_answers: a model's answers by term.
      watched: scores of terms that are never trained on.
      image: uint8 (H, W, 3).
    """

    caption: str
    caption_index: int = 0
    sample_index: int = 0
    plan_text: str
    planned: tuple[tuple[str, Box], ...]
    detections: tuple[tuple[str, Box], ...]
    scores: Mapping[str, float]
    total: float
    advantage: float = 0.0
    image_advantage: float | None = None
    rationale: str = ""
    raw_answers: Mapping[str, str] = field(default_factory=dict)
    watched: Mapping[str, float] = field(default_factory=dict)
    image: np.ndarray = field(repr=False)

    @classmethod
    def scored(cls, request: JudgeRequest, result: JudgeResult, total: float) -> SampleRecord:
        """The record of a sample that was judged."""
        return cls(
            caption=request.caption,
            plan_text=request.plan.text,
            planned=tuple(request.plan.boxes),
            image=request.image,
            total=total,
            **vars(result),
        )

    @property
    def image_name(self) -> str:
        return f"{self.caption_index:02d}_{self.sample_index:02d}.png"


def step_folder(samples_dir: Path, step: int) -> Path:
    """The folder of a step's samples, `step_000010`."""
    return samples_dir / f"step_{step:06d}"


def write_samples(
    samples_dir: Path | str, step: int, records: Sequence[SampleRecord], *, name: str | None = None
) -> Path:
    """Writes a step's samples, images and `samples.jsonl`; returns their folder.

    The folder is `step_000010`, or `name` for samples that belong to no step. It appears whole or
    not at all, and replaces one of the same name. Raises RunError when it cannot be written.
    """
    folder = Path(samples_dir) / name if name is not None else step_folder(Path(samples_dir), step)
    temporary = folder.with_name(f".{folder.name}.tmp{os.getpid()}")
    with raise_write_errors(folder):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            for record in records:
                (temporary / record.image_name).write_bytes(encode_png(record.image))
            lines = [json.dumps(_to_json(record)) for record in records]
            text = "".join(line + "\n" for line in lines)
            (temporary / _RECORDS_NAME).write_text(text, encoding="utf-8")
            remove_folder(folder)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def read_samples(folder: Path | str) -> list[SampleRecord]:
    """The records of one step's folder, in the order written; InputError if it is damaged."""
    folder = Path(folder)
    path = folder / _RECORDS_NAME
    try:
        lines = read_text(path).split("\n")
        values = (parse_json(line, path.name, allow_nan=True) for line in lines if line.strip())
        return [_from_json(value, folder) for value in values]
    except (InputError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"samples in {folder} cannot be read: {error}") from error


def sample_steps(samples_dir: Path | str) -> dict[int, Path]:
    """The steps that have samples, ascending, with their folders; empty if there are none."""
    numbered = [(step_number(f.name), f) for f in Path(samples_dir).glob("step_*")]
    return dict(sorted((number, folder) for number, folder in numbered if number is not None))


def followed_name(step: int) -> str:
    """The name of the held-out samples of a step, `eval_step_000010`."""
    return f"{_FOLLOWED}{step_folder(Path(), step).name}"


def followed_steps(samples_dir: Path | str) -> dict[int, Path]:
    """As `sample_steps`, of the held-out captions."""
    folders = Path(samples_dir).glob(f"{_FOLLOWED}step_*")
    numbered = [(step_number(f.name.removeprefix(_FOLLOWED)), f) for f in folders]
    return dict(sorted((number, folder) for number, folder in numbered if number is not None))


def drop_samples_after(samples_dir: Path | str, step: int) -> None:
    """Removes the samples of steps after `step`, from which a run is resumed, those of held-out
    captions too."""
    for folders in (sample_steps(samples_dir), followed_steps(samples_dir)):
        for later, folder in folders.items():
            if later > step:
                remove_folder(folder)


def sample_images(records: Sequence[SampleRecord], most: int) -> list[TrackedImage]:
    """At most so many samples for trackers: of every caption the first, then the second."""
    order = sorted(records, key=lambda record: (record.sample_index, record.caption_index))
    return [
        TrackedImage(
            f"samples/{Path(record.image_name).stem}",
            record.caption + ("" if math.isnan(record.total) else f" · total {record.total:.3f}"),
            record.image,
        )
        for record in order[:most]
    ]


def _to_json(record: SampleRecord) -> dict[str, Any]:
    boxes = {name: boxes_to_json(getattr(record, name)) for name in ("planned", "detections")}
    return plain_json(vars(record) | boxes | {"image": record.image_name})


def _from_json(line: Mapping[str, Any], folder: Path) -> SampleRecord:
    for name, kind in _KINDS.items():
        if not isinstance(line[name], kind) or isinstance(line[name], bool):
            raise InputError(f"{name} is {str(line[name])[:40]!r}")
    if Path(line["image"]).name != line["image"]:
        raise InputError(f"the image {line['image'][:200]!r} is no file of the folder")
    image = np.asarray(open_image(folder / line["image"]))
    second = line.get("image_advantage")  # None too in files of earlier versions
    return SampleRecord(
        caption=line["caption"],
        caption_index=line["caption_index"],
        sample_index=line["sample_index"],
        plan_text=line["plan_text"],
        planned=boxes_from_json(line["planned"]),
        total=_number(line["total"]),
        advantage=_number(line["advantage"]),
        image_advantage=None if second is None else _number(second),
        watched={str(name): _number(v) for name, v in line.get("watched", {}).items()},
        image=image,
        **vars(result_from_json(line)),
    )


def _number(value: float | None) -> float:
    if isinstance(value, str):
        raise TypeError(f"a number is the text {value[:40]!r}")
    return math.nan if value is None else float(value)
