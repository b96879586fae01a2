"""The tables of an ablation besides that of its variants, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gotr1_jax.ablate.results import (
    AblationResult,
    Change,
    CheckResult,
    MetricResult,
    OrderingResult,
    full_title,
)
from gotr1_jax.io.markdown import markdown_table


def further_tables(comparison: AblationResult) -> str:
    """Orderings, checks, metrics and hours; empty where there is nothing of them."""
    parts = [
        orderings_table(comparison.orderings),
        checks_table(comparison.checks),
        metrics_table(comparison.metrics),
        _hours(comparison),
    ]
    return "".join(f"\n{part}\n" for part in parts if part)


def orderings_table(orderings: Sequence[OrderingResult]) -> str:
    """A row a claim, a column a condition with the finding, the difference and its interval."""
    if not orderings:
        return ""
    conditions = list(dict.fromkeys(one.condition for one in orderings))
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for one in orderings:
        rows.setdefault((one.name, one.term), {})[one.condition] = _ordering_cell(one)
    table = markdown_table(
        ["ordering", "by", *(condition or "found" for condition in conditions)],
        [
            [name, term, *(cells.get(condition, "–") for condition in conditions)]
            for (name, term), cells in rows.items()
        ],
    )
    return (
        f"## Orderings\n\n{table}\n\nA claim holds, or does not, where the 95 % interval of the "
        "difference excludes 0 (bootstrap over the pairs of seeds and captions)."
    )


def _ordering_cell(one: OrderingResult) -> str:
    if one.difference is None:
        return "–"
    return f"{one.finding}: {change_cell(one.difference)}{_few(one.seeds)}"


def _few(seeds: Sequence[int]) -> str:
    return "" if len(seeds) > 1 else ", one seed"


def checks_table(checks: Sequence[CheckResult]) -> str:
    """Both judges side by side: a row a variant and term that it is trained on or judged by."""
    if not checks:
        return ""
    head = ["trained on", "term", "its judge", "gain", "check", "gain", "excess", "finding"]
    rows = [
        [
            full_title(c.condition, c.title),
            f"{c.term} (in the reward)" if c.trained else c.term,
            f"{c.before:.3f} to {c.after:.3f}",
            change_cell(c.gain),
            f"{c.check}: {c.check_before:.3f} to {c.check_after:.3f}",
            change_cell(c.check_gain),
            change_cell(c.excess),
            c.finding + _few(c.seeds),
        ]
        for c in checks
    ]
    return f"## Both judges\n\n{markdown_table(head, rows)}"


def metrics_table(metrics: Sequence[MetricResult]) -> str:
    """The first and the last tenth of training: the mean over seeds, and their range."""
    if not metrics:
        return ""
    rows = [
        [full_title(m.condition, m.title), m.name, _range(m.first), _range(m.last)] for m in metrics
    ]
    table = markdown_table(["trained on", "metric", "first tenth", "last tenth"], rows)
    return f"## During training\n\n{table}"


def _range(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    spread = f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else ""
    return f"{mean:.3g}{spread}"


def _hours(comparison: AblationResult) -> str:
    if not comparison.runs:
        return ""
    text = f"{comparison.finished} of {comparison.runs} runs are finished"
    if comparison.hours is None:
        return f"{text}."
    return (
        f"{text}; they took {comparison.hours:.1f} hours in all, each counted for itself, with "
        f"compilation and evaluations, {comparison.at_once} at once."
    )


def interval_cell(change: Change) -> str:
    """[low, high]"""
    return f"[{change.low:+.3f}, {change.high:+.3f}]"


def change_cell(change: Change | None) -> str:
    """The mean difference with its interval; a dash where there is none, or none is defined."""
    if change is None or math.isnan(change.mean):
        return "–"
    return f"{change.mean:+.3f} {interval_cell(change)}"
