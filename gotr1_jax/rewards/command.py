"""Scores for samples that were drawn before: `gotr1 judge`.

Reads a run, a folder or file of its samples, or what `gotr1 generate` wrote; writes one JSON line
a sample: `sample` (its name), `judge`, `caption`, `plan_text`, `image`, boxes (`planned` and
`detections`), `scores` by term (null where it could not be scored), `rationale` (the judge's
reasons in one line) and `raw_answers` (a model's answers by term). Lines are collected in
OUT.partial; a command that was stopped continues from there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
import typing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from gotr1_jax.config import from_dict, load_config, parse_overrides
from gotr1_jax.errors import InputError, RunError
from gotr1_jax.parallel.config import MeshConfig
from gotr1_jax.plan import parse_plan
from gotr1_jax.rewards.base import (
    Judge,
    JudgeRequest,
    boxes_to_json,
    rename_old_keys,
    result_to_json,
)
from gotr1_jax.rewards.composite import request_key
from gotr1_jax.rewards.factory import JudgeConfig, make_judge
from gotr1_jax.tokenizers.janus import SPECIAL_STRINGS

if TYPE_CHECKING:
    from jax.sharding import Mesh

BATCH = 64
SAMPLES = "samples.jsonl"
RESULT = "result.json"
SAMPLES_NAME = "samples"
PARTIAL = ".partial"


@dataclass(frozen=True)
class JudgeJob:
    """The configuration of the command: whom to ask, and on which devices a model judges."""

    judge: JudgeConfig
    mesh: MeshConfig = field(default_factory=MeshConfig)


@dataclass(frozen=True)
class Drawn:
    """A sample on disk: its name within the input, caption, plan and the file of its image."""

    name: str
    caption: str
    plan_text: str
    image: Path

    def request(self) -> JudgeRequest:
        """What a judge is asked; InputError where the image cannot be read."""
        try:
            with Image.open(self.image) as raw_image:
                pixels = np.asarray(raw_image.convert("RGB"))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"the image {self.image} cannot be read: {error}") from error
        return JudgeRequest(self.caption, parse_plan(self.plan_text), pixels)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 judge`; those of the judge are the fields of `JudgeConfig`."""
    parser.add_argument(
        "--input", type=Path, required=True, metavar="PATH",
        help="a run, a folder or samples.jsonl of its samples, or generate's folder",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="scores, one JSON line a sample"
    )
    parser.add_argument("--batch", type=int, default=BATCH, help=f"samples at once ({BATCH})")
    add_judge_options(parser)


def add_judge_options(parser: argparse.ArgumentParser) -> None:
    """--config, and an option for each field of `JudgeJob`."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE",
        help="YAML file with sections judge and mesh; the options below override it",
    )  # fmt: skip
    group = parser.add_argument_group("the judge and its devices, values read as YAML")
    for name in option_names():
        group.add_argument(f"--{name}", metavar="VALUE")


def read_judge_options(options: argparse.Namespace) -> JudgeJob:
    """What those options say; InputError for what cannot be."""
    given = [(n, v) for n in option_names() if (v := getattr(options, n)) is not None]
    words = [word for name, value in given for word in (f"--{name}", value)]
    if options.config is not None:
        return load_config(JudgeJob, options.config, words)
    return from_dict(JudgeJob, {"judge": {}, **_nested(parse_overrides(words))})


def run(options: argparse.Namespace) -> None:
    """Does what the parsed command line says."""
    if options.batch < 1:
        raise InputError(f"--batch is {options.batch}; use 1 or more")
    if options.out.is_dir():
        raise InputError(f"--out {options.out} is a folder; name a file")
    job = read_judge_options(options)
    samples = find_samples(options.input)
    judge = make_judge(job.judge, mesh=device_mesh(job))
    lines = judge_samples(judge, samples, options.out, options.batch)
    print(_summary(judge, lines))
    print(options.out)
    if all(score is None for line in lines for score in line["scores"].values()):
        raise RunError(
            f"the judge could not score any of {len(lines)} samples: see the words in {options.out}"
        )


def device_mesh(job: JudgeJob) -> Mesh | None:
    """All devices, as the configuration lays them out; None where no model judges here."""
    if not any(part.kind in ("qwen2_5_vl", "hps") for part in (job.judge, *job.judge.also)):
        return None
    from gotr1_jax.parallel.mesh import make_mesh
    from gotr1_jax.parallel.startup import start_devices

    start_devices(job.mesh.cpu_devices)
    return make_mesh(job.mesh.data, job.mesh.fsdp, job.mesh.tensor)


def judge_samples(
    judge: Judge, samples: Sequence[Drawn], out: Path, batch: int = BATCH
) -> list[dict[str, Any]]:
    """Judge what has no score yet and write `out`; returns its lines, in the samples' order.

    Lines of `out` and of out.partial are taken over where the judge and the sample's content
    are the same and no score is missing.

    Raises:
        InputError: a file holds scores of another judge or of samples that are not in the input,
            or an image cannot be read.
        RunError: a file cannot be written, or the judge failed for good.
    """
    from gotr1_jax.io.files import atomic_write, clear_write_errors
    from gotr1_jax.io.progress import Progress

    partial = out.with_name(out.name + PARTIAL)
    stored = _stored(judge, {sample.name for sample in samples}, (out, partial))
    lines: list[dict[str, Any]] = []
    with clear_write_errors(partial):
        out.parent.mkdir(parents=True, exist_ok=True)
        with (
            open(partial, "a", encoding="utf-8") as file,
            Progress("judge", len(samples), unit="sample") as progress,
        ):
            file.write("\n")  # ends a line that was cut off
            for start in range(0, len(samples), batch):
                requests = [sample.request() for sample in samples[start : start + batch]]
                group = _judge_group(judge, samples[start : start + batch], requests, stored)
                text = "".join(json.dumps(line) + "\n" for line in group if _is_new(line, stored))
                file.write(text)
                file.flush()
                lines += group
                progress.update(len(lines))
    atomic_write(out, "".join(json.dumps(line) + "\n" for line in lines))
    partial.unlink(missing_ok=True)
    return lines


def _judge_group(
    judge: Judge,
    samples: Sequence[Drawn],
    requests: Sequence[JudgeRequest],
    stored: Mapping[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    """A line for each sample, a stored one where it still holds."""
    keys = [request_key(request, judge) for request in requests]
    held = [stored.get(s.name, {}).get("key") == key for s, key in zip(samples, keys)]
    fresh = [request for request, known in zip(requests, held) if not known]
    results = iter(judge.judge(fresh) if fresh else ())
    return [
        stored[sample.name] if known else {
            "sample": sample.name,
            "key": key,
            "judge": judge.identity,
            "caption": sample.caption,
            "plan_text": sample.plan_text,
            "image": str(sample.image),
            "planned": boxes_to_json(request.plan.boxes),
            **result_to_json(next(results)),
        }
        for sample, request, key, known in zip(samples, requests, keys, held)
    ]  # fmt: skip


def _is_new(line: dict[str, Any], stored: Mapping[str, dict[str, Any]]) -> bool:
    return stored.get(line["sample"]) is not line


def _stored(judge: Judge, names: set[str], files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Complete lines of an earlier command by their sample's name; see `judge_samples`."""
    found: dict[str, dict[str, Any]] = {}
    for path in files:
        if not path.exists():
            continue
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
        for number, line in enumerate(text.split("\n"), start=1):
            try:
                value = rename_old_keys(json.loads(line))
                name, who = value["sample"], value["judge"]
                whole = None not in value["scores"].values() and isinstance(value["key"], str)
            except (ValueError, KeyError, TypeError, AttributeError):
                if path.suffix == PARTIAL or not line.strip():
                    continue  # a stopped command's last line
                raise InputError(
                    f"{path}, line {number} is no line of scores; choose another --out"
                ) from None
            if who != judge.identity or name not in names:
                what = "of another judge" if name in names else "of samples that are not in --input"
                raise InputError(f"{path} holds scores {what}; choose another --out")
            if whole:
                found[name] = value
    return found


def find_samples(path: Path) -> list[Drawn]:
    """The samples below a run, a samples folder or file, or generate's folder, in their order.

    InputError where there is none, or one cannot be judged.
    """
    if path.is_file():
        found = _read_run_samples(path, path.parent, "") if path.name.endswith(".jsonl") else (
            _read_result(path, path.parent, "")
        )  # fmt: skip
    elif (path / SAMPLES).is_file():
        found = _read_run_samples(path / SAMPLES, path, "")
    elif (path / SAMPLES_NAME).is_dir() and any((path / SAMPLES_NAME).glob(f"*/{SAMPLES}")):
        files = sorted((path / SAMPLES_NAME).glob(f"*/{SAMPLES}"))
        found = [s for f in files for s in _read_run_samples(f, f.parent, f"{f.parent.name}/")]
    elif (path / RESULT).is_file():
        found = _read_result(path / RESULT, path, "")
    elif path.is_dir():
        files = sorted(path.glob(f"[0-9]*/{RESULT}"))
        found = [s for f in files for s in _read_result(f, f.parent, f"{f.parent.name}/")]
        # Beside images laid out for a benchmark, results lie in a folder of their own.
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


def _read_run_samples(path: Path, folder: Path, prefix: str) -> list[Drawn]:
    found = []
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if line.strip():
            value = _parse(line, f"{path}, line {number}")
            found.append(_drawn(value, value, folder, prefix, f"{path}, line {number}"))
    return found


def _read_result(path: Path, folder: Path, prefix: str) -> list[Drawn]:
    result = _parse(_read_text(path), str(path))
    samples = result.get("samples")
    if not isinstance(samples, list) or not all(isinstance(s, dict) for s in samples):
        raise InputError(f"{path} has no list of samples; it is no result of gotr1 generate")
    return [_drawn(result, sample, folder, prefix, str(path)) for sample in samples]


def _drawn(
    head: Mapping[str, Any], value: Mapping[str, Any], folder: Path, prefix: str, where: str
) -> Drawn:
    caption = _text(head, "caption" if "caption" in head else "prompt", where)
    image = _text(value, "image", where)
    # generate's plans end with the token that begins the image.
    plan = _text(value, "plan_text", where).rstrip().removesuffix(SPECIAL_STRINGS["boi"])
    return Drawn(prefix + Path(image).stem, caption, plan, folder / image)


def _text(value: Mapping[str, Any], key: str, where: str) -> str:
    text = value.get(key)
    if not isinstance(text, str):
        raise InputError(f"{where}: a sample has no {key}, so it cannot be judged")
    return text


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{where} is {type(value).__name__}, not an object with keys")
    return value


def _summary(judge: Judge, lines: Sequence[Mapping[str, Any]]) -> str:
    """A small table: each term's mean over the samples that have it, and how many have none."""
    rows = ["term     mean   failed"]
    for term in judge.terms:
        scores = [line["scores"].get(term) for line in lines]
        told = [score for score in scores if score is not None]
        mean = f"{sum(told) / len(told):.3f}" if told else "-"
        rows.append(f"{term:<8} {mean:<6} {len(scores) - len(told)} of {len(scores)}")
    return "\n".join(rows)


def option_names(schema: type = JudgeJob, prefix: str = "") -> Iterator[str]:
    """The dotted names of all single values of a schema, those of optional parts too."""
    for name, kind in typing.get_type_hints(schema).items():
        inner = [k for k in typing.get_args(kind) if k is not types.NoneType]
        part = inner[0] if typing.get_origin(kind) is types.UnionType else kind
        if dataclasses.is_dataclass(part) and isinstance(part, type):
            yield from option_names(part, f"{prefix}{name}.")
        elif not any(dataclasses.is_dataclass(k) for k in inner):
            yield f"{prefix}{name}"


def _nested(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """[("a.b", 1)] -> {"a": {"b": 1}}."""
    values: dict[str, Any] = {}
    for key, value in pairs:
        *parents, last = key.split(".")
        at = values
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = value
    return values
