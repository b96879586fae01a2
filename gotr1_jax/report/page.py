"""report.html: one self-contained page that shows what a run's policy learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gotr1_jax.errors import InputError
from gotr1_jax.io.files import atomic_write
from gotr1_jax.report.charts import Chart, format_decimals, format_signed
from gotr1_jax.report.evaluations import add_evaluations, early_end, evaluation_charts
from gotr1_jax.report.galleries import held_out_gallery, training_gallery
from gotr1_jax.report.gallery import GalleryData
from gotr1_jax.report.load import RunData, load_run
from gotr1_jax.report.provenance import describe_provenance
from gotr1_jax.report.scores import JudgeTable, judge_tables
from gotr1_jax.report.sections import build_charts, entropy_targets
from gotr1_jax.report.shell import render_shell
from gotr1_jax.report.terms import NEVER_TRAINED_ON, TOTAL, is_usual
from gotr1_jax.report.training import is_supervised, render_training
from gotr1_jax.trainer.run_dir import RunDir

MAX_RECORDS = 2560  # training samples on the page; a sample takes about 10 KB
_MOST = 10**12  # steps and captions, beyond which a number is not meant


@dataclass(frozen=True)
class TermRow:
    """A row of the table before / after; positions are shares (0..1) of the bar's width, None
    where there is no value; is_gain is None where there is none before or after."""

    name: str
    meaning: str
    before: str
    after: str
    change: str
    is_gain: bool | None
    before_at: float | None
    after_at: float | None


def build_table(
    summary: Mapping[str, Any], meanings: Mapping[str, str] | None = None
) -> tuple[TermRow, ...]:
    """The rows of the table; empty when the run has no evaluation before and after.

    `meanings`: of `RunData`. The bars of scores between 0 and 2 have one scale, any other its own.
    """
    meanings = meanings or {}
    before, after = summary.get("before"), summary.get("after")
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return ()
    names = [n for n in dict.fromkeys([TOTAL, *meanings, *before]) if n in before and n in after]
    numbers = {n: (_number(before[n]), _number(after[n])) for n in names}
    watched = _watched_means(summary)
    numbers |= {name: pair for name, pair in watched.items() if name not in numbers}
    usual = [v for pair in numbers.values() if is_usual(pair) for v in pair if math.isfinite(v)]
    full = max([1.0, *usual])
    rows = []
    for name, (old, new) in numbers.items():
        gain = new - old
        pair = [0.0, *(v for v in (old, new) if math.isfinite(v))]
        low, high = (0.0, full) if is_usual((old, new)) else (min(pair), max(pair))
        rows.append(
            TermRow(
                name=name,
                meaning=meanings.get(name, NEVER_TRAINED_ON if name in watched else ""),
                before=format_decimals(old),
                after=format_decimals(new),
                change=format_signed(gain),
                is_gain=None if math.isnan(gain) else gain >= 0,
                before_at=_position(old, low, high),
                after_at=_position(new, low, high),
            )
        )
    return tuple(rows)


def _watched_means(summary: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Before and after of each watched term."""
    watched = summary.get("watched")
    if not isinstance(watched, Mapping):
        return {}
    before, after = watched.get("before"), watched.get("after")
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return {}
    return {n: (_number(before.get(n)), _number(value)) for n, value in after.items()}


def headline(summary: Mapping[str, Any]) -> str:
    """One sentence: the total before and after, its gain and the interval of the gain."""
    rows = build_table(summary)
    if not rows or rows[0].name != "total":
        return ""
    old, new = _number(summary["before"]["total"]), _number(summary["after"]["total"])
    # The samples of only a few of these captions are kept.
    number = summary.get("captions")
    captions = (
        f"{number} held-out captions"
        if isinstance(number, int) and number < _MOST
        else "held-out captions"
    )
    text = f"The total on {captions} went from {rows[0].before} to {rows[0].after}"
    if 0 < old < math.inf and math.isfinite(new):
        text += f" ({format_signed(100 * (new / old - 1), 0)} %)"
    interval = summary.get("total_gain_ci95")
    if isinstance(interval, Sequence) and len(interval) == 2:
        low, high = (format_signed(_number(v)) for v in interval)
        text += f"; 95 % interval of the gain [{low}, {high}] (paired bootstrap)"
    return text + "."


def facts(run: RunData) -> list[tuple[str, str]]:
    """Small facts for the top of the page: (label, value)."""
    found: list[tuple[str, str]] = []
    steps = run.summary.get("steps")
    if steps is None and len(run.metrics.steps):
        steps = int(run.metrics.steps[-1])
    if isinstance(steps, int) and steps < _MOST:
        found.append(("steps", str(steps)))
    seconds = _number(run.summary.get("seconds"))
    if 0 <= seconds < 1e9:
        minutes, rest = divmod(round(seconds), 60)
        found.append(("time", f"{minutes} min {rest} s" if minutes else f"{rest} s"))
    if why := early_end(run.summary):
        found.append(("ended early:", why))
    if not run.is_finished:
        found.append(("state:", "not finished: no summary.json yet"))
    return found


def tables_of_judges(run: RunData) -> tuple[JudgeTable, ...]:
    """The means of each later judge before, after and during training, next to the run's own."""
    training = [sample for samples in run.steps.values() for sample in samples]
    followed = {f"held-out, step {step}": samples for step, samples in run.followed.items()}
    parts = {"before": run.before, "after": run.after, **followed, "while training": training}
    return judge_tables(run.judges, parts)


def sections_of(run: RunData) -> dict[str, list[Chart]]:
    """The charts by section; the evaluations come after the rewards."""
    sections = build_charts(run.metrics, entropy_targets(run.config_text), run.meanings)
    return add_evaluations(sections, evaluation_charts(run.metrics, run.summary))


def render_page(run: RunData) -> bytes:
    """The page's HTML, UTF-8."""
    galleries = GalleryData({"held_out": held_out_gallery(run), "training": training_gallery(run)})
    return render_shell(
        "page.html.j2",
        run.name,
        galleries=galleries,
        run=run,
        provenance=describe_provenance(run.starts, run.config_text),
        headline=headline(run.summary),
        facts=facts(run),
        table=build_table(run.summary, run.meanings),
        sections=sections_of(run),
        judges=tables_of_judges(run),
    )


def write_report(
    run_dir: Path | str, scores: Sequence[Path] | None = None, out: Path | None = None
) -> Path:
    """Writes the page of a run and returns its path.

    The page needs no other file and makes no request. An unfinished or damaged run is shown as far
    as it can be read.

    Args:
        run_dir: the run directory.
        scores: files that `gotr1 judge` wrote about the run; None takes its scores*.jsonl and
            lists on the page those that cannot be used.
        out: the page; None: report.html in the run directory.

    Raises:
        InputError: `run_dir` is no run directory, or a file of `scores` is broken or of another
            run.
        RunError: the page cannot be written.
    """
    root = Path(run_dir)
    path = RunDir(root).report if out is None else out
    if path.is_dir():
        raise InputError(f"{path} is a directory; name a file")
    run = load_run(root, MAX_RECORDS, scores)
    supervised = is_supervised(run)
    atomic_write(path, render_training(root, run, facts(run)) if supervised else render_page(run))
    return path


def _number(value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else math.nan  # type: ignore[arg-type]


def _position(value: float, low: float, high: float) -> float | None:
    if not math.isfinite(value):
        return None
    return round(min(max((value - low) / ((high - low) or 1.0), 0.0), 1.0), 4)
