"""The comparison of an ablation's variants: a table, its numbers and a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gotr1_jax.ablate.results import AblationResult, TermResult, VariantResult, full_title
from gotr1_jax.ablate.tables import change_cell, further_tables, interval_cell
from gotr1_jax.io.files import atomic_write, write_json_atomic
from gotr1_jax.io.markdown import markdown_table
from gotr1_jax.report.axes import nice_ticks
from gotr1_jax.report.shell import make_environment

# Of the plot, in SVG units.
_PANEL, _GAP, _ROW, _TOP = 128, 34, 24, 46
_LETTER, _LEGEND = 6.5, 660  # of a title, about; of the line below the panels


@dataclass(frozen=True)
class _PlotMark:
    """A variant in one panel of the plot; x in SVG units from the panel's left edge."""

    y: float
    before: float
    after: float
    low: float
    high: float
    text: str
    tone: str  # "better" or "worse" where the interval excludes 0, else "same"


def write_ablation(root: Path, comparison: AblationResult) -> None:
    """ablation.md, ablation.json, ablation.svg in `root`; RunError when they cannot be written."""
    write_json_atomic(root / "ablation.json", asdict(comparison))
    atomic_write(root / "ablation.md", report(comparison))
    shown = [replace(r, title=full_title(r.condition, r.title)) for r in _in_columns(comparison)]
    atomic_write(root / "ablation.svg", plot(shown))


def report(comparison: AblationResult) -> str:
    """Markdown: the table of each condition, then orderings, checks, metrics and hours."""
    by_condition: dict[str, list[VariantResult]] = {}
    for result in _in_columns(comparison):
        by_condition.setdefault(result.condition, []).append(result)
    parts = [
        (f"## {condition}\n\n" if condition else "") + table(results)
        for condition, results in by_condition.items()
    ]
    return "\n".join(parts) + further_tables(comparison)


def _in_columns(comparison: AblationResult) -> list[VariantResult]:
    """The variants with the terms that are to be shown."""
    if not comparison.columns:
        return list(comparison.variants)
    return [
        replace(r, terms={name: r.terms[name] for name in comparison.columns if name in r.terms})
        for r in comparison.variants
    ]


def table(results: Sequence[VariantResult]) -> str:
    """Markdown: a row a variant, a row for each state that training started from, then the
    differences to the first variant."""
    names = _terms(results)
    rows: list[list[str]] = []
    last = [""] * len(names)
    for result in results:
        terms = [result.terms.get(name) for name in names]
        start = ["–" if term is None else f"{term.before:.3f}" for term in terms]
        if any(cell not in ("–", above) for cell, above in zip(start, last)):
            rows.append(["*start*", *start, "", ""])
            last = start
        cells = ["–" if t is None else f"{t.after:.3f} {interval_cell(t.gain)}" for t in terms]
        seeds = ", ".join(map(str, result.seeds))
        rows.append([result.title, *cells, seeds, f"{result.minutes:.1f}"])
    text = markdown_table(["trained on", *names, "seeds", "min a run"], rows) + "\n"
    for steps, captions, samples in sorted({(r.steps, r.captions, r.samples) for r in results}):
        text += (
            f"\nAfter {steps} steps: means over {captions} held-out captions, {samples} samples "
            "each, the same random streams before and after. In brackets the 95 % interval of the "
            f"gain over the start (paired bootstrap over {_drawn(results)})."
        )
    text += "\n"
    others = [r for r in results if any(term.over_first for term in r.terms.values())]
    if others:
        rows = [[r.title, *(_difference(r.terms.get(name)) for name in names)] for r in others]
        differences = markdown_table(["trained on", *names], rows)
        text += f"\nDifferences to: {results[0].title}.\n\n{differences}\n"
    return text


def _drawn(results: Sequence[VariantResult]) -> str:
    return "seeds and captions" if any(len(r.seeds) > 1 for r in results) else "captions"


def _difference(term: TermResult | None) -> str:
    return change_cell(None if term is None else term.over_first)


def plot(results: Sequence[VariantResult]) -> str:
    """SVG: a panel a term with each variant's start, end and interval of the gain."""
    names = _terms(results)
    left = round(20 + _LETTER * max([20, *(len(result.title) for result in results)]))
    panels = []
    for i, name in enumerate(names):
        marks = []
        low, high = _axis([r.terms[name] for r in results if name in r.terms])

        def at(value: float, low: float = low, high: float = high) -> float:
            return _PANEL * min(max((value - low) / (high - low), 0.0), 1.0)

        for j, result in enumerate(results):
            if (term := result.terms.get(name)) is None:
                continue
            gain = term.gain
            tone = "better" if gain.low > 0 else "worse" if gain.high < 0 else "same"
            text = f"{result.title}: {name} {term.before:.3f} to {term.after:.3f}"
            marks.append(
                _PlotMark(
                    y=_TOP + _ROW * (j + 0.5),
                    before=at(term.before),
                    after=at(term.after),
                    low=at(term.before + gain.low),
                    high=at(term.before + gain.high),
                    text=text,
                    tone=tone,
                )
            )
        ticks = [(share, f"{low + share * (high - low):.3g}") for share in (0, 0.5, 1)]
        panels.append((left + i * (_PANEL + _GAP), name, ticks, marks))
    environment = make_environment("gotr1_jax.ablate")
    return environment.get_template("ablation.svg.j2").render(
        labels=[(_TOP + _ROW * (j + 0.5), result.title) for j, result in enumerate(results)],
        panels=panels,
        panel=_PANEL,
        top=_TOP,
        bottom=_TOP + _ROW * len(results),
        width=max(_LEGEND, left + len(names) * (_PANEL + _GAP)),
        height=_TOP + _ROW * len(results) + 30,
    )


def _axis(terms: Sequence[TermResult]) -> tuple[float, float]:
    """The ends of a panel: 0 and 1 for scores between them, else round numbers around all."""
    values = [
        value
        for t in terms
        for value in (t.before, t.after, t.before + t.gain.low, t.before + t.gain.high)
        if math.isfinite(value)
    ]
    if all(0 <= t.before <= 1 and 0 <= t.after <= 1 for t in terms) or not values:
        return 0.0, 1.0
    ticks = nice_ticks(min(values), max(values), 2)
    return ticks[0], ticks[-1]


def _terms(results: Sequence[VariantResult]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.terms))
