"""Reading a run directory, of a run that is complete, unfinished or damaged."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import parse_json, read_bytes
from gotr1_jax.report.cards import MAX_SIDE, shrink
from gotr1_jax.report.metrics import Metrics, read_metrics
from gotr1_jax.report.provenance import read_starts
from gotr1_jax.report.scores import (
    ReportSample,
    ScoreLine,
    check_scores,
    join_results,
    judge_names,
    read_scores,
)
from gotr1_jax.report.terms import read_meanings
from gotr1_jax.trainer.run_dir import RunDir
from gotr1_jax.trainer.samples import (
    SampleRecord,
    followed_name,
    followed_steps,
    read_samples,
    sample_steps,
)

EVALUATIONS = ("eval_before", "eval_after")  # folders of samples
SCORES = "scores*.jsonl"  # of `gotr1 judge`, in the run directory


@dataclass(frozen=True)
class RunData:
    """Everything that the page shows; parts that the run does not have are empty.

    Attributes:
        name: the directory's name.
        summary: summary.json.
        config_text: config.yaml, unparsed.
        before, after: samples of the evaluation before and after training.
        followed: samples of the held-out captions by step, ascending.
        steps: samples of the chosen training steps, ascending.
        starts: the entries of provenance.json.
        num_sampled_steps: steps that have samples, chosen or not.
        meanings: meaning of the total and of each reward term, in the page's order.
        judges: the identities of judges that scored samples after training.
        problems: one line for each unreadable part.
        is_finished: whether the run has its summary, or (SFT of earlier versions) its model.
    """

    name: str
    summary: Mapping[str, Any]
    config_text: str
    metrics: Metrics
    before: tuple[ReportSample, ...]
    after: tuple[ReportSample, ...]
    steps: Mapping[int, tuple[ReportSample, ...]]
    num_sampled_steps: int
    judges: tuple[str, ...]
    problems: tuple[str, ...]
    meanings: Mapping[str, str] = field(default_factory=dict)
    is_finished: bool = False
    followed: Mapping[int, tuple[ReportSample, ...]] = field(default_factory=dict)
    starts: tuple[Mapping[str, Any], ...] = ()


def load_run(
    root: Path, max_records: int, scores: Sequence[Path] | None = None, max_followed: int = 1280
) -> RunData:
    """Reads the run at `root`.

    Args:
        root: a run directory; every file in it may be missing or broken.
        max_records: about how many training samples to take. Beyond it steps are left out,
            evenly, except the first and the last. Steps with scores may add as many again.
        scores: files that `gotr1 judge` wrote; None takes those in the run directory, where an
            unusable one becomes a line of `problems`.
        max_followed: as `max_records`, of the held-out captions between the evaluations.

    Raises:
        InputError: there is no such directory, or nothing of a run in it, or a file of `scores`
            is broken or of another run.
    """
    run = _find_run(root)
    problems: list[str] = []
    folders = sample_steps(run.samples)
    files = _read_score_files(root, scores, problems)
    judged = {line.folder for lines in files.values() for line in lines}
    steps = _read_steps(folders, max_records, judged, problems)
    records = {name: _read_folder(run.samples / name, problems) for name in EVALUATIONS}
    records |= {folders[step].name: found for step, found in steps.items()}
    # Beside the evaluations, whose captions are the same.
    followed = _read_steps(followed_steps(run.samples), max_followed, judged, problems)
    records |= {followed_name(step): found for step, found in followed.items()}
    by_image = {(f, r.image_name): r for f, found in records.items() for r in found}
    names = [f.name for f in run.samples.iterdir()] if run.samples.is_dir() else []
    lines: list[ScoreLine] = []
    for path, own in files.items():
        try:
            check_scores(path, own, names, by_image)
            lines += own
        except InputError as error:
            if scores is not None:
                raise
            problems.append(str(error))
    judges = judge_names(lines)
    meanings = read_meanings(run.terms, problems)
    starts = read_starts(run.provenance, problems)
    samples = join_results(records, lines, judges)
    return RunData(
        name=root.resolve().name,
        summary=_read_summary(run.summary, problems),
        config_text=_read_text(run.config, problems),
        metrics=read_metrics(run.metrics, problems),
        before=samples[EVALUATIONS[0]],
        after=samples[EVALUATIONS[1]],
        followed={step: samples[followed_name(step)] for step in followed},
        steps={step: samples[folders[step].name] for step in steps},
        num_sampled_steps=len(folders),
        judges=judges,
        problems=tuple(problems),
        meanings=meanings,
        starts=starts,
        is_finished=run.summary.is_file()
        or (not run.inputs.is_file() and (root / "model" / "config.json").is_file()),
    )


def _find_run(root: Path) -> RunDir:
    """The paths of a run; InputError where there is none."""
    run = RunDir(root)
    if not root.is_dir():
        raise InputError(f"no run directory at {root}")
    if not (run.config.exists() or run.metrics.exists() or run.samples.is_dir()):
        raise InputError(
            f"{root} is no run directory: it has no config.yaml, metrics.jsonl or samples/"
        )
    return run


def _read_score_files(
    root: Path, scores: Sequence[Path] | None, problems: list[str]
) -> dict[Path, list[ScoreLine]]:
    if scores is not None:
        return {path: read_scores(path) for path in scores}
    files: dict[Path, list[ScoreLine]] = {}
    for path in sorted(root.glob(SCORES)):
        try:
            files[path] = read_scores(path)
        except InputError as error:
            problems.append(str(error))
    return files


def choose_evenly(count: int, keep: int) -> list[int]:
    """At most max(2, keep) of 0..count-1, evenly spaced, with the first and the last."""
    keep = min(count, max(2, keep))
    return [round(i * (count - 1) / max(1, keep - 1)) for i in range(keep)]


def _read_text(path: Path, problems: list[str]) -> str:
    if not os.path.lexists(path):
        return ""
    try:
        return read_bytes(path).decode("utf-8", errors="replace")
    except InputError as error:
        problems.append(str(error))
        return ""


def _read_summary(path: Path, problems: list[str]) -> Mapping[str, Any]:
    text = _read_text(path, problems)
    if not text:
        return {}
    try:
        summary = parse_json(text, path.name, allow_nan=True)
    except InputError as error:
        problems.append(str(error))
        return {}
    if not isinstance(summary, dict):
        problems.append(f"{path.name} is not a JSON object")
        return {}
    return summary


def _read_folder(folder: Path, problems: list[str]) -> tuple[SampleRecord, ...]:
    if not folder.is_dir():
        return ()
    try:
        # Thousands of large images would not fit into memory.
        return tuple(replace(r, image=shrink(r.image, MAX_SIDE)) for r in read_samples(folder))
    except InputError as error:
        problems.append(str(error))
        return ()


def _read_steps(
    folders: Mapping[int, Path], max_records: int, judged: Set[str], problems: list[str]
) -> dict[int, tuple[SampleRecord, ...]]:
    if not folders:
        return {}
    order = list(folders)
    # The first step gives the number of samples a step.
    first = _read_folder(folders[order[0]], problems)
    keep = max_records // max(1, len(first))
    chosen = {order[i] for i in choose_evenly(len(order), keep)}
    scored = [step for step in order if folders[step].name in judged]
    chosen |= {scored[i] for i in choose_evenly(len(scored), keep)}
    read = {
        s: first if s == order[0] else _read_folder(folders[s], problems) for s in sorted(chosen)
    }
    return {step: records for step, records in read.items() if records}
