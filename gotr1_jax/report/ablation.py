"""The comparison of an ablation's variants: a table, its numbers, and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jinja2

from gotr1_jax.rewards.types import TERMS
from gotr1_jax.training.run_dir import atomic_write, write_json_atomic

# Of the plot, in SVG units.
_LABELS, _PANEL, _GAP, _ROW, _TOP = 200, 128, 34, 24, 46


@dataclass(frozen=True)
class TermResult:
    """Held-out means of a term before and after training; low, high: 95 % of the gain."""

    before: float
    after: float
    low: float
    high: float


@dataclass(frozen=True)
class VariantResult:
    """One variant, its seeds averaged; `minutes` of training a run, evaluations apart."""

    name: str
    title: str
    seeds: tuple[int, ...]
    steps: int
    captions: int
    samples: int
    minutes: float
    terms: Mapping[str, TermResult]


@dataclass(frozen=True)
class _Mark:
    """A variant in one panel of the plot; x in SVG units from the panel's left edge."""

    y: float
    before: float
    after: float
    low: float
    high: float
    text: str
    tone: str  # "better" or "worse" where the interval leaves 0 out, else "same"


def write_ablation(root: Path, results: Sequence[VariantResult]) -> None:
    """ablation.md, ablation.json, ablation.svg in `root`; RunError when they cannot be written."""
    write_json_atomic(root / "ablation.json", {"variants": [asdict(r) for r in results]})
    atomic_write(root / "ablation.md", table(results))
    atomic_write(root / "ablation.svg", plot(results))


def table(results: Sequence[VariantResult]) -> str:
    """Markdown: a row a variant, a row for each state that training started from."""
    names = _terms(results)
    head = ["trained on", *names, "seeds", "min a run"]
    lines = [_row(head), _row(["-"] * len(head))]
    last: list[str] = []
    for result in results:
        start = [_number(result, name, "before") for name in names]
        if start != last:
            lines.append(_row(["*start*", *start, "", ""]))
        last = start
        cells = [_cell(result.terms.get(name)) for name in names]
        seeds = ", ".join(map(str, result.seeds))
        lines.append(_row([result.title, *cells, seeds, f"{result.minutes:.1f}"]))
    sizes = sorted({(r.steps, r.captions, r.samples) for r in results})
    lines.append("")
    for steps, captions, samples in sizes:
        lines.append(
            f"After {steps} steps: means over {captions} held-out captions, {samples} samples "
            "each, the same random streams before and after. In brackets the 95 % interval of the "
            "gain over the start (paired bootstrap over captions)."
        )
    return "\n".join(lines) + "\n"


def plot(results: Sequence[VariantResult]) -> str:
    """SVG: a panel a term, in it each variant's start, its end, and the interval of the gain."""
    names = _terms(results)
    panels = []
    for i, name in enumerate(names):
        marks = []
        for j, result in enumerate(results):
            if (term := result.terms.get(name)) is None:
                continue
            low, high = term.before + term.low, term.before + term.high
            tone = "better" if term.low > 0 else "worse" if term.high < 0 else "same"
            text = f"{result.title}: {name} {term.before:.3f} to {term.after:.3f}"
            marks.append(
                _Mark(
                    y=_TOP + _ROW * (j + 0.5),
                    before=_PANEL * term.before,
                    after=_PANEL * term.after,
                    low=_PANEL * max(low, 0.0),
                    high=_PANEL * min(high, 1.0),
                    text=text,
                    tone=tone,
                )
            )
        panels.append((_LABELS + i * (_PANEL + _GAP), name, marks))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gotr1_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("ablation.svg.j2").render(
        labels=[(_TOP + _ROW * (j + 0.5), result.title) for j, result in enumerate(results)],
        panels=panels,
        panel=_PANEL,
        top=_TOP,
        bottom=_TOP + _ROW * len(results),
        width=_LABELS + len(names) * (_PANEL + _GAP),
        height=_TOP + _ROW * len(results) + 30,
    )


def _terms(results: Sequence[VariantResult]) -> list[str]:
    return [name for name in TERMS if any(name in result.terms for result in results)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(result: VariantResult, name: str, which: str) -> str:
    term = result.terms.get(name)
    return "–" if term is None else f"{getattr(term, which):.3f}"


def _cell(term: TermResult | None) -> str:
    return "–" if term is None else f"{term.after:.3f} [{term.low:+.3f}, {term.high:+.3f}]"
