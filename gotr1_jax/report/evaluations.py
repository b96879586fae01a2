"""Charts of the evaluations over the steps: watched terms against trained ones, and diversity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gotr1_jax.report.charts import LINE_COLOURS, Chart, ChartSpec, build_charts_of
from gotr1_jax.report.metrics import Metrics, all_values, is_number

TRAINED, WATCHED, DIVERSITY = "evaluation/", "watched/", "evaluation/diversity/"
TITLE = "Held-out evaluations"
_MOST = 10**12  # steps
# Two values are drawn on one scale unless the one is so many times as large.
_RATIO = 3.0


def is_of_evaluation(name: str) -> bool:
    """Whether a metric is of the held-out captions."""
    return name.startswith((TRAINED, WATCHED))


def evaluations(metrics: Metrics, summary: Mapping[str, Any]) -> Metrics:
    """The values of the evaluated steps, and those before and after training.

    What the run ended with is left out where those are the weights of an earlier step.
    """
    columns = {name: v for name, v in metrics.values.items() if is_of_evaluation(name)}
    rows: dict[int, dict[str, float]] = {}
    for i, step in enumerate(metrics.steps):
        found = {name: float(v[i]) for name, v in columns.items() if math.isfinite(v[i])}
        if found:
            rows[int(step)] = found
    last = summary.get("steps")
    ends = {"before": 0, "after": last}
    if _patience(summary).get("weights_of_step", last) != last:
        del ends["after"]
    for when, step in ends.items():
        if isinstance(step, int) and 0 <= step < _MOST:
            rows[step] = {**rows.get(step, {}), **_of_summary(summary, when)}
    rows = {step: values for step, values in rows.items() if values}
    names = dict.fromkeys(name for step in sorted(rows) for name in rows[step])
    steps = sorted(rows)
    values = {
        n: np.array([rows[step].get(n, math.nan) for step in steps], np.float64) for n in names
    }
    return Metrics(np.array(steps, np.int64), values)


def _of_summary(summary: Mapping[str, Any], when: str) -> dict[str, float]:
    """The values of summary.json, `when` before or after, under their names as metrics."""
    sections = ((TRAINED, summary), (WATCHED, summary.get("watched")))
    found: dict[str, float] = {}
    for prefix, section in (*sections, (DIVERSITY, summary.get("diversity"))):
        values = section.get(when) if isinstance(section, Mapping) else None
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if is_number(value):
                found[f"{prefix}{name}"] = float(value)
    return found


def evaluation_charts(metrics: Metrics, summary: Mapping[str, Any]) -> list[Chart]:
    """A chart for each watched term with the trained total, one of the trained terms, one of
    diversity; with the best step and the end where patience ended the run."""
    return draw_evaluations({"": (metrics, summary)}, _marks(summary))


def draw_evaluations(
    runs: Mapping[str, tuple[Metrics, Mapping[str, Any]]], marks: tuple[tuple[str, int], ...] = ()
) -> list[Chart]:
    """As `evaluation_charts`, of several runs: their metrics and summaries by name."""
    found = {label: evaluations(*run) for label, run in runs.items()}
    found = {label: own for label, own in found.items() if len(own.steps) > 1}
    evaluated = max((len(own.steps) for own in found.values()), default=0)
    return build_charts_of(_specs(all_values(found.values()), marks, evaluated), found)


def add_evaluations(
    sections: Mapping[str, list[Chart]], evaluated: list[Chart]
) -> dict[str, list[Chart]]:
    """The sections of a page, with that of the evaluations, where there are any, after the
    rewards."""
    first = {title: charts for title, charts in sections.items() if title == "Rewards"}
    return {**first, **({TITLE: evaluated} if evaluated else {}), **sections}


def _specs(
    values: Mapping[str, np.ndarray], marks: tuple[tuple[str, int], ...], evaluated: int
) -> list[ChartSpec]:
    """What the charts of these values show; `evaluated`: the number of evaluations of a run."""
    total = f"{TRAINED}total"
    specs = [
        ChartSpec(
            f"{name.removeprefix(WATCHED)}, watched",
            ((name.removeprefix(WATCHED), name), ("total, trained", total))
            if _on_one_scale(values, name, total)
            else (("", name),),
            subtitle="never trained on",
            marks=marks,
        )
        for name in values
        if name.startswith(WATCHED)
    ]
    terms = [n for n in values if n.startswith(TRAINED) and not n.startswith(DIVERSITY)]
    measures = [n for n in values if n.startswith(DIVERSITY)]
    if evaluated > 2:  # else the table shows them
        alike = [n for n in terms if _on_one_scale(values, n, total)]
        specs += _series_charts("trained terms", alike, TRAINED, marks)
        for name in terms:
            if name not in alike:
                specs += _series_charts(name.removeprefix(TRAINED), [name], TRAINED, marks)
    return specs + _series_charts("diversity of the samples", measures, DIVERSITY, marks)


def _series_charts(
    title: str, names: list[str], prefix: str, marks: tuple[tuple[str, int], ...]
) -> list[ChartSpec]:
    """One chart, or several where there are more lines than colours."""
    charts = []
    for start in range(0, len(names), LINE_COLOURS):
        part = names[start : start + LINE_COLOURS]
        series = tuple((name.removeprefix(prefix), name) for name in part)
        number = f" ({start // LINE_COLOURS + 1})" if len(names) > LINE_COLOURS else ""
        charts.append(ChartSpec(title + number, series, subtitle="held-out captions", marks=marks))
    return charts


def _on_one_scale(values: Mapping[str, np.ndarray], one: str, two: str) -> bool:
    """Whether both are scores from 0 to 1, or of about one size."""
    if two not in values:
        return False
    pair = [values[name] for name in (one, two)]
    if all(np.nanmin(v) >= 0 and np.nanmax(v) <= 1 for v in pair):
        return True
    sizes = [float(np.nanmax(np.abs(v))) for v in pair]
    return max(sizes) <= _RATIO * min(sizes)


def _marks(summary: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    """The steps of the best evaluation and of the end, where patience ended the run."""
    patience = _patience(summary)
    marks = (("best", patience.get("best_step")), ("end", patience.get("step")))
    return tuple((n, s) for n, s in marks if isinstance(s, int) and 0 <= s < _MOST)


def _patience(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    patience = summary.get("patience")
    return patience if isinstance(patience, Mapping) else {}


def early_end(summary: Mapping[str, Any]) -> str:
    """Why patience ended the run; empty where it did not."""
    why = _patience(summary).get("why")
    return why[:400] if isinstance(why, str) else ""
