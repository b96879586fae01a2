"""What a calibration leaves: a table in Markdown, JSON, and a plot as SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from gotr1_jax.io.markdown import markdown_table
from gotr1_jax.plan.labels import MAX_LABEL, shorten
from gotr1_jax.rewards.calibration.measure import Judged, TermCalibration
from gotr1_jax.rewards.calibration.statistics import Interval

_PANEL, _LEFT, _TOP, _GAP, _BOTTOM = 220, 50, 40, 60, 70  # SVG units
_LEGEND = 620  # width of the line below the panels
_STYLE = (
    "text { font: 12px system-ui, sans-serif; fill: #16181d; } .soft { fill: #5d6470; "
    "font-size: 11px; } .name { font-weight: 600; } .axis { stroke: #d9d9d2; fill: none; } "
    ".same { stroke: #8d939e; stroke-dasharray: 4 3; } .sample { fill: #5d6470; opacity: .25; } "
    ".bin { fill: #2b5fb3; stroke: #fff; } .curve { stroke: #2b5fb3; fill: none; }"
)
_MOST_POINTS = 500  # samples of a panel


def table(terms: Sequence[TermCalibration], judged: Judged, samples: int, heading: str) -> str:
    """The Markdown page."""
    head = ["", *(term.term for term in terms)]
    defined = any(not math.isnan(t.within.value) for t in terms)
    within = [["Pearson within groups", *(_interval(t.within) for t in terms)]] * defined
    rows = [
        ["labelled samples", *(str(t.labelled) for t in terms)],
        ["without a score", *(_share(t.unscored) for t in terms)],
        ["Pearson correlation", *(_interval(t.pearson) for t in terms)],
        *within,
        ["Spearman correlation", *(_interval(t.spearman) for t in terms)],
        ["AUC", *(_auc(t) for t in terms)],
        ["mean error", *(_number(t.mean_error, signed=True) for t in terms)],
        ["mean absolute error", *(_number(t.mean_absolute_error) for t in terms)],
        ["calibration error", *(_number(t.calibration_error) for t in terms)],
        *(
            [f"error and length of the {name}", *(_verbosity(t, name) for t in terms)]
            for name in ("caption", "plan")
        ),
    ]
    if any(t.pairs for t in terms):
        rows.append(["labelled pairs", *(str(t.pairs) for t in terms)])
        rows.append(["same preference", *(_interval(t.pair_agreement) for t in terms)])
    if judged.rounds > 1:
        rows.append(["same answer when asked again", *(_share(t.same_answer) for t in terms)])
        rows.append(["deviation when asked again", *(_number(t.repeat_std) for t in terms)])
    notes = [f"- {t.term}: {note}." for t in terms for note in t.notes]
    cost = [f"- {line}." for line in _describe_cost(judged, samples)]
    parts = [f"# {heading}", markdown_table(head, rows), "\n".join(cost), "\n".join(notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def plot(terms: Sequence[TermCalibration], points: Sequence[Sequence[tuple[float, float]]]) -> str:
    """SVG: a panel a term with label over score of each sample, and the mean of each bin.

    Args:
        points: for each term (score, label) of the samples that have both.
    """
    panels = [
        _panel(_LEFT + i * (_PANEL + _GAP), term, of_term)
        for i, (term, of_term) in enumerate(zip(terms, points, strict=True))
    ]
    width = max(_LEGEND, _LEFT + len(terms) * (_PANEL + _GAP))
    height = _TOP + _PANEL + _BOTTOM
    legend = (
        "dots: samples; circles: means of each tenth of the scale, larger where it has more; "
        "dashed: score = label"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">\n<style>{_STYLE}</style>\n'
        f'<rect width="{width}" height="{height}" fill="#fff"/>\n{"".join(panels)}'
        f'<text class="soft" x="8" y="{height - 10}">{legend}</text>\n</svg>\n'
    )


def _describe_cost(judged: Judged, samples: int) -> list[str]:
    """Lines on time, questions, tokens and the bias for a place."""
    asked = samples * judged.rounds
    lines = [f"{judged.seconds / max(asked, 1):.3g} s a sample ({asked} judged)"]
    questions = judged.counts.get("questions", 0.0)
    if questions:
        line = (
            f"{questions / asked:.3g} questions a sample, {judged.seconds / questions:.3g} s each"
        )
        if tokens := judged.counts.get("tokens_in", 0.0):
            written = judged.counts.get("tokens_out", 0.0)
            line += f"; {tokens / questions:.0f} tokens in and {written / questions:.0f} out each"
        lines.append(line)
    if judged.position_bias is not None:
        lines.append(
            f"position bias: {judged.position_bias:.1%} of the pairs that were decided in both "
            "orders follow the order of the images"
        )
    return lines


def _panel(x: float, term: TermCalibration, points: Sequence[tuple[float, float]]) -> str:
    values = [v for point in points for v in point]
    low, high = min([0.0, *values]), max([1.0, *values])

    def place(score: float, label: float) -> tuple[float, float]:
        share = (score - low) / (high - low), (label - low) / (high - low)
        return round(_PANEL * share[0], 1), round(_TOP + _PANEL * (1 - share[1]), 1)

    parts = [
        f'<g transform="translate({x} 0)">\n<text class="name" x="0" y="20">'
        f"{html.escape(shorten(term.term, MAX_LABEL))}: r = {_number(term.pearson.value)}</text>\n"
        f'<rect class="axis" x="0" y="{_TOP}" width="{_PANEL}" height="{_PANEL}"/>\n'
        f'<line class="same" x1="0" y1="{_TOP + _PANEL}" x2="{_PANEL}" y2="{_TOP}"/>\n'
        f'<text class="soft" x="0" y="{_TOP + _PANEL + 16}">{low:.3g}</text>\n'
        f'<text class="soft" x="{_PANEL}" y="{_TOP + _PANEL + 16}" text-anchor="end">{high:.3g}'
        f'</text>\n<text class="soft" x="{_PANEL / 2}" y="{_TOP + _PANEL + 16}" '
        'text-anchor="middle">score of the judge</text>\n'
        f'<text class="soft" transform="translate(-8 {_TOP + _PANEL / 2}) rotate(-90)" '
        'text-anchor="middle">label</text>\n'
    ]
    step = max(1, math.ceil(len(points) / _MOST_POINTS))
    for point in points[::step]:
        cx, cy = place(*point)
        parts.append(f'<circle class="sample" cx="{cx}" cy="{cy}" r="3"/>\n')
    centres = [place(b.score, b.label) for b in term.bins]
    line = " ".join(f"{cx},{cy}" for cx, cy in centres)
    parts.append(f'<polyline class="curve" points="{line}"/>\n')
    most = max((b.samples for b in term.bins), default=1)
    for b, (cx, cy) in zip(term.bins, centres):
        radius = 3 + 6 * math.sqrt(b.samples / most)
        title = f"{b.samples} samples: score {b.score:.3f}, label {b.label:.3f}"
        parts.append(
            f'<circle class="bin" cx="{cx}" cy="{cy}" r="{radius:.1f}"><title>{title}</title>'
            "</circle>\n"
        )
    return "".join([*parts, "</g>\n"])


def _number(value: float, signed: bool = False) -> str:
    return "–" if math.isnan(value) else f"{value:+.3f}" if signed else f"{value:.3f}"


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"


def _interval(interval: Interval) -> str:
    if math.isnan(interval.value):
        return "–"
    return f"{interval.value:.3f} [{_number(interval.low)}, {_number(interval.high)}]"


def _auc(term: TermCalibration) -> str:
    where = "" if term.threshold is None else f" (label ≥ {term.threshold:g})"
    return _interval(term.auc) + where * (not math.isnan(term.auc.value))


def _verbosity(term: TermCalibration, name: str) -> str:
    return _number(term.verbosity.get(name, math.nan), signed=True)
