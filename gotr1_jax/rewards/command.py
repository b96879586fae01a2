"""Scores for samples on disk: `gotr1 judge`.

Reads a run, a folder or file of its samples, or what `gotr1 generate` wrote; writes one JSON line
a sample: `sample` (its name), `judge`, `caption`, `plan_text`, `image`, boxes (`planned` and
`detections`), `scores` by term (null where it could not be scored), `rationale` (the judge's
reasons in one line) and `raw_answers` (a model's answers by term). Lines are collected in
OUT.partial; a command that was stopped continues from there.

With --calibrate it compares the judge with labels instead (`rewards.calibration`).
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gotr1_jax.config import (
    CheckedConfig,
    field_kinds,
    from_dict,
    load_config,
    read_value,
    sections_of,
)
from gotr1_jax.config_reference import field_help
from gotr1_jax.errors import InputError, RunError
from gotr1_jax.io.lock import target_lock
from gotr1_jax.limits import RowCount
from gotr1_jax.parallel.config import MeshConfig
from gotr1_jax.rewards.base import Judge
from gotr1_jax.rewards.calibration import command as calibration
from gotr1_jax.rewards.calibration.labels import read_labels
from gotr1_jax.rewards.check import SAMPLES, try_function
from gotr1_jax.rewards.factory import make_judge, needs_devices
from gotr1_jax.rewards.judge_config import CacheConfig, JudgeConfig
from gotr1_jax.rewards.judging import BATCH, judge_samples, read_requests
from gotr1_jax.rewards.scorer_configs import RewardServerConfig
from gotr1_jax.rewards.stored_samples import find_samples
from gotr1_jax.rewards.terms import TermConfig
from gotr1_jax.vlm_engine.config import HttpConfig

if TYPE_CHECKING:
    from jax.sharding import Mesh


@dataclass(frozen=True)
class JudgeJob(CheckedConfig):
    """The configuration of the command: the judge, and the devices of a model that judges here."""

    judge: JudgeConfig
    # Terms with a source of their own, written as in reward.terms.
    terms: Mapping[str, TermConfig] = field(default_factory=dict)
    mesh: MeshConfig = field(default_factory=MeshConfig)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 judge`; those of the judge are the fields of `JudgeConfig`."""
    parser.add_argument(
        "--input", type=Path, metavar="PATH",
        help="a run, a folder or samples.jsonl of its samples, or generate's folder",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="scores, one JSON line a sample")
    parser.add_argument(
        "--check", metavar="[NAME=]FILE.py:FUNCTION",
        help="try a function of your own as a reward: on samples of the embedded model, or of "
        "--input; no --out",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=int, metavar="N",
        help=f"samples at once ({BATCH}; of a server at most twice judge.http.concurrency); a "
        "command that is stopped loses the scores of one batch at most",
    )  # fmt: skip
    calibration.add_arguments(parser)
    add_judge_options(parser)


def add_judge_options(parser: argparse.ArgumentParser) -> None:
    """--config, and an option for each field of `JudgeJob`."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE",
        help="YAML file with sections judge, terms and mesh; the options below override it",
    )  # fmt: skip
    group = parser.add_argument_group("the judge and its devices, lists as a,b")
    add_field_options(group, JudgeJob, option_names())


def add_field_options(group: argparse._ArgumentGroup, schema: type, names: Iterable[str]) -> None:
    """An option for each of these dotted fields; by an old name it is read, and not shown."""
    meanings = field_help(schema)
    for name in names:
        group.add_argument(f"--{name}", metavar="VALUE", help=meanings[name])
        for old in old_names(schema, name):
            group.add_argument(f"--{old}", dest=name, help=argparse.SUPPRESS)


def read_judge_options(options: argparse.Namespace) -> JudgeJob:
    """The job of the parsed options; InputError for values that cannot be used."""
    given = [(n, v) for n in option_names() if (v := getattr(options, n)) is not None]
    if options.config is not None:
        return load_config(JudgeJob, options.config, [f"--{name}={value}" for name, value in given])
    return from_dict(JudgeJob, {"judge": {}}, overrides=given)


def run(options: argparse.Namespace) -> None:
    """Runs `gotr1 judge` with the parsed command line."""
    read_value(RowCount | None, options.batch, "--batch")
    calibration.check_options(options)
    if options.check is not None:
        return _check(options)
    if (options.input is None) == (options.calibrate is None):
        raise InputError("give --input (samples to score) or --calibrate (labels), one of the two")
    if options.out is None:
        raise InputError("give --out, where to write")
    if options.calibrate is not None:
        return run_calibration(options)
    if options.out.is_dir():
        raise InputError(f"--out {options.out} is a folder; name a file")
    job = read_judge_options(options)
    samples = find_samples(options.input)
    judge = make_judge(job.judge, mesh=device_mesh(job), terms=job.terms)
    batch = options.batch or default_batch(job.judge, job.terms)
    with target_lock(options.out, "--out"):
        lines = judge_samples(judge, samples, options.out, batch)
    print(_summary(judge, lines))
    print(options.out)
    if all(score is None for line in lines for score in line["scores"].values()):
        raise RunError(
            f"the judge could not score any of {len(lines)} samples: {options.out} says why"
        )


def run_calibration(options: argparse.Namespace) -> None:
    """Runs `gotr1 judge --calibrate`."""
    job, repeats = read_judge_options(options), options.repeats or 1
    labels = read_labels(options.calibrate)
    thresholds = calibration.read_thresholds(options.threshold)
    # Kept answers would be the same for sure, and cost nothing.
    config = replace(job.judge, cache=CacheConfig()) if repeats > 1 else job.judge
    judge = make_judge(config, mesh=device_mesh(job), terms=job.terms)
    batch = options.batch or default_batch(config, job.terms)
    with target_lock(options.out, "--out"):
        calibration.calibrate(judge, labels, thresholds, options.out, repeats, batch)


def _check(options: argparse.Namespace) -> None:
    """`--check`: prints what was found; RunError where there are mistakes."""
    name, sign, function = options.check.partition("=")
    if not sign or not name.isidentifier():
        name, function = options.check.rpartition(":")[2], options.check
    requests = read_requests(find_samples(options.input or SAMPLES))
    report = try_function(function, [name], requests)
    for line in report.lines:
        print(line)
    for mistake in report.mistakes:
        print(f"mistake: {mistake}")
    if report.mistakes:
        raise RunError(f"{function} cannot be used as it is; mistakes: {len(report.mistakes)}")
    print(f"no mistake found on {len(requests)} samples")


def default_batch(config: JudgeConfig, terms: Mapping[str, TermConfig] | None = None) -> int:
    """Samples at once: of a slow server no more than keep it busy, as they are lost together."""
    used = [getattr(part, part.kind, None) for part in (config, *config.also)]
    used += [term.http for term in (terms or {}).values()]
    sizes = [2 * server.concurrency for server in used if isinstance(server, HttpConfig)]
    sizes += [
        2 * server.concurrency * server.batch_size
        for server in used
        if isinstance(server, RewardServerConfig)
    ]
    return min([BATCH, *sizes])


def device_mesh(job: JudgeJob) -> Mesh | None:
    """The configured mesh of all devices; None where no model judges in this process."""
    if not needs_devices(job.judge, job.terms):
        return None
    from gotr1_jax.models.attention import choose_attention
    from gotr1_jax.parallel.mesh import job_mesh
    from gotr1_jax.parallel.startup import start_devices

    start_devices(job.mesh.cpu_devices)
    mesh = job_mesh(job.mesh)
    choose_attention(job.mesh.attention, mesh.devices.flat[0].platform)
    return mesh


def _summary(judge: Judge, lines: Sequence[Mapping[str, Any]]) -> str:
    """A small table: each term's mean over the samples that have it, and how many have none."""
    width = max(8, *map(len, judge.terms))
    rows = [f"{'term':<{width}} mean   failed"]
    for term in judge.terms:
        scores = [line["scores"].get(term) for line in lines]
        scored = [score for score in scores if score is not None]
        mean = f"{sum(scored) / len(scored):.3f}" if scored else "-"
        rows.append(f"{term:<{width}} {mean:<6} {len(scores) - len(scored)} of {len(scores)}")
    return "\n".join(rows)


def option_names(schema: type = JudgeJob, prefix: str = "") -> Iterator[str]:
    """The dotted names of all single values of a schema, those of optional parts too."""
    hints = typing.get_type_hints(schema)
    for name in field_kinds(schema):
        kind = hints[name]
        inner = [k for k in typing.get_args(kind) if k is not types.NoneType]
        part = inner[0] if typing.get_origin(kind) is types.UnionType else kind
        if dataclasses.is_dataclass(part) and isinstance(part, type):
            yield from option_names(part, f"{prefix}{name}.")
        elif not any(dataclasses.is_dataclass(k) for k in inner):
            yield f"{prefix}{name}"


def old_names(schema: type, dotted: str) -> list[str]:
    """The dotted names that a field had before, by `renamed_keys` of the schemas on its path."""
    key, dot, rest = dotted.partition(".")
    renamed = getattr(schema, "renamed_keys", {})
    keys = [key, *(old for old, new in renamed.items() if new == key)]
    rests = [rest]
    if dot:
        section = next(sections_of(field_kinds(schema)[key]))
        rests += old_names(section, rest)
    return [f"{k}{dot}{r}" for k in keys for r in rests][1:]
