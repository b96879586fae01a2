"""Samples on disk, for judging them later: those of a run and those of `gotr1 generate`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.images import open_image
from gotr1_jax.io.reading import list_folder, parse_json_object, read_json, read_lines
from gotr1_jax.plan import parse_plan
from gotr1_jax.rewards.base import JudgeRequest
from gotr1_jax.tokenizers.janus import without_boi

SAMPLES = "samples.jsonl"
RESULT = "result.json"
SAMPLES_FOLDER = "samples"


@dataclass(frozen=True)
class StoredSample:
    """A sample on disk: its name within the input, caption, plan and image file.

    `group` is equal for the samples of one caption of one step.
    """

    name: str
    caption: str
    plan_text: str
    image: Path
    group: str = ""

    def read_request(self) -> JudgeRequest:
        """What a judge gets; InputError where the image cannot be read."""
        pixels = np.asarray(open_image(self.image))
        return JudgeRequest(self.caption, parse_plan(self.plan_text), pixels)


def find_samples(path: Path) -> list[StoredSample]:
    """The samples of a run, of a folder or file of samples, or of generate's folder, in order.

    InputError where there are none, or one cannot be judged.
    """
    if path.is_file():
        found = _read_run_samples(path, path.parent, "") if path.name.endswith(".jsonl") else (
            _read_result(path, path.parent, "")
        )  # fmt: skip
    elif (path / SAMPLES).is_file():
        found = _read_run_samples(path / SAMPLES, path, "")
    elif files := _files_of_steps(path / SAMPLES_FOLDER):
        found = [s for f in files for s in _read_run_samples(f, f.parent, f"{f.parent.name}/")]
    elif (path / RESULT).is_file():
        found = _read_result(path / RESULT, path, "")
    elif path.is_dir():
        files = sorted(path.glob(f"[0-9]*/{RESULT}"))
        found = [s for f in files for s in _read_result(f, f.parent, f"{f.parent.name}/")]
        # Of images in a benchmark's layout, the results are in a folder of their own.
        for file in sorted(path.glob("plans/[0-9]*.json")):
            found += _read_result(file, path, f"{file.stem}/")
    else:
        raise InputError(f"nothing to judge at {path}: there is no such file or folder")
    if not found:
        raise InputError(
            f"nothing to judge in {path}: it is no run, holds no {SAMPLES} and no {RESULT} of "
            "gotr1 generate"
        )
    double, times = Counter(sample.name for sample in found).most_common(1)[0]
    if times > 1:
        raise InputError(
            f"several samples of {path} have the image {double}: a grid cannot be judged"
        )
    return found


def _files_of_steps(folder: Path) -> list[Path]:
    entries = list_folder(folder, "samples") if folder.is_dir() else []
    return [entry / SAMPLES for entry in entries if (entry / SAMPLES).is_file()]


def _read_run_samples(path: Path, folder: Path, prefix: str) -> list[StoredSample]:
    found = []
    for number, line in read_lines(path, "samples"):
        where = f"{path}, line {number}"
        value = parse_json_object(line, where)
        found.append(_make_sample(value, value, folder, prefix, where))
    return found


def _read_result(path: Path, folder: Path, prefix: str) -> list[StoredSample]:
    result = read_json(path)
    samples = result.get("samples") if isinstance(result, dict) else None
    if not isinstance(samples, list) or not all(isinstance(s, dict) for s in samples):
        raise InputError(f"{path} has no list of samples; it is no result of gotr1 generate")
    return [_make_sample(result, sample, folder, prefix, str(path)) for sample in samples]


def _make_sample(
    head: Mapping[str, Any], value: Mapping[str, Any], folder: Path, prefix: str, where: str
) -> StoredSample:
    caption = _text(head, "caption" if "caption" in head else "prompt", where)
    image = _text(value, "image", where)
    plan = without_boi(_text(value, "plan_text", where))
    # A step may have the same caption twice; generate's results have one caption each.
    group = f"{prefix}{value.get('caption_index', '')} {caption}"
    return StoredSample(prefix + Path(image).stem, caption, plan, folder / image, group)


def _text(value: Mapping[str, Any], key: str, where: str) -> str:
    text = value.get(key)
    if not isinstance(text, str):
        raise InputError(f"{where}: a sample has no {key}, so it cannot be judged")
    return text
