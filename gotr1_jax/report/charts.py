"""Small line charts as numbers for an SVG: raw values thin, smoothed values bold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gotr1_jax.report.axes import nice_ticks, short_exponent, step_ticks, tick_labels
from gotr1_jax.report.metrics import Metrics

WIDTH, HEIGHT = 260, 120  # of the plotting area, in SVG units
LINE_COLOURS, LINE_DASHES = 6, 3  # of the page
MAX_POINTS = 400  # of one line; more are averaged in bins
_LARGEST = 1e100  # drawn; larger values are gaps like those that are not finite


@dataclass(frozen=True)
class ChartSpec:
    """What one chart shows.

    Attributes:
        title: its heading.
        series: (label, metric name) of each line; an empty label where there is only one.
        covers: a range that the chart always shows, so that charts can be compared.
        subtitle: explains the title where needed.
        level: (label, value) of a horizontal line to compare the values with.
        marks: (label, step) of vertical lines.
    """

    title: str
    series: tuple[tuple[str, str], ...]
    covers: tuple[float, float] | None = None
    subtitle: str = ""
    level: tuple[str, float] | None = None
    marks: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Line:
    """One line: SVG paths of its raw and smoothed values, and its numbers for the tooltip.

    `colour` and `dash` are the numbers of its CSS classes.
    """

    label: str
    raw_path: str
    smooth_path: str
    last: str  # the last smoothed value, formatted
    xs: tuple[float, ...]
    steps: tuple[int, ...]
    values: tuple[float | None, ...]
    colour: int = 0
    dash: int = 0


@dataclass(frozen=True)
class Chart:
    """A chart with its lines; ticks, the level and marks are (position in SVG units, label).

    `y_note` stands beside the vertical axis, see `tick_labels`.
    """

    title: str
    subtitle: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    level: tuple[float, str] | None = None
    marks: tuple[tuple[float, str], ...] = ()
    y_note: str = ""


def format_value(value: float) -> str:
    """Three significant digits, without an exponent where one is not needed."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 1e5 or 0 < size < 1e-3:
        return short_exponent(f"{value:.1e}")
    if size >= 100:
        return f"{value:.0f}"
    return f"{value:.3f}" if size < 1 else f"{value:.2f}"


def format_decimals(value: float, decimals: int = 3) -> str:
    """A number with so many decimals; a dash where there is none, an exponent where it is long."""
    if abs(value) >= 1e6 and math.isfinite(value):
        return f"{value:.{decimals}e}"
    return f"{value:.{decimals}f}" if math.isfinite(value) else "–"


def format_signed(value: float, decimals: int = 3) -> str:
    """As `format_decimals`, with its sign."""
    if not math.isfinite(value):
        return "–"
    return ("+" * (value >= 0) + format_decimals(value, decimals)).replace("-", "−")


def smooth(values: np.ndarray, half: int) -> np.ndarray:
    """Mean over the window [i - half, i + half], shorter at the ends; NaN does not count."""
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    i = np.arange(len(values))
    low, high = np.maximum(i - half, 0), np.minimum(i + half + 1, len(values))
    number = counts[high] - counts[low]
    means = (sums[high] - sums[low]) / np.maximum(number, 1)
    return np.where(number > 0, means, np.nan)


def bin_means(values: np.ndarray, bins: int) -> np.ndarray:
    """Means of `bins` equal spans; the values themselves where there are no more than `bins`."""
    if len(values) <= bins:
        return values
    known = np.isfinite(values)
    index = np.arange(len(values)) * bins // len(values)
    sums = np.bincount(index, np.where(known, values, 0.0), bins)
    counts = np.bincount(index, known, bins)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _path(xs: np.ndarray, ys: np.ndarray) -> str:
    """`M` after every gap, `L` between neighbours; a point alone becomes a short dash."""
    parts: list[str] = []
    known = np.isfinite(ys)
    for i in np.flatnonzero(known):
        joined = i > 0 and known[i - 1]
        parts.append(f"{'L' if joined else 'M'}{xs[i]:.1f} {ys[i]:.1f}")
        if not joined and not (i + 1 < len(ys) and known[i + 1]):
            parts.append("h.01")
    return "".join(parts)


def build_charts_of(
    specs: Iterable[ChartSpec], metrics: Metrics | Mapping[str, Metrics]
) -> list[Chart]:
    """The charts that have a value, see `build_chart`.

    Of several runs no chart has more series than there are dashes to tell them apart.
    """
    several = not isinstance(metrics, Metrics) and len(metrics) > 1
    parts = [part for spec in specs for part in (_split(spec) if several else [spec])]
    return [chart for part in parts if (chart := build_chart(part, metrics)) is not None]


def _split(spec: ChartSpec) -> list[ChartSpec]:
    starts = range(0, len(spec.series), LINE_DASHES)
    if len(starts) < 2:
        return [spec]
    return [
        replace(
            spec, title=f"{spec.title} ({number})", series=spec.series[start : start + LINE_DASHES]
        )
        for number, start in enumerate(starts, start=1)
    ]


def build_chart(spec: ChartSpec, metrics: Metrics | Mapping[str, Metrics]) -> Chart | None:
    """The chart of the spec's metrics that have a value; None if none has.

    metrics: of a run, or of several by their names, each of which gets a colour; then the series
    of a run differ in their dashes.
    """
    runs = {"": metrics} if isinstance(metrics, Metrics) else metrics
    found = [
        _Series(f"{run} {label}".strip(), r if len(runs) > 1 else i, i if len(runs) > 1 else 0,
                bin_means(own.steps.astype(np.float64), MAX_POINTS),
                bin_means(np.where(np.abs(values) < _LARGEST, values, np.nan), MAX_POINTS))
        for i, (label, name) in enumerate(spec.series)
        for r, (run, own) in enumerate(runs.items())
        if (values := own.values.get(name)) is not None
    ]  # fmt: skip
    found = [series for series in found if np.isfinite(series.values).any()]
    if not found:
        return None
    x_low, x_high = min(float(s.steps[0]) for s in found), max(float(s.steps[-1]) for s in found)
    low = min(float(np.nanmin(s.values)) for s in found)
    high = max(float(np.nanmax(s.values)) for s in found)
    if spec.covers is not None:
        low, high = min(spec.covers[0], low), max(spec.covers[1], high)
    if spec.level is not None:
        low, high = min(low, spec.level[1]), max(high, spec.level[1])
    ticks = nice_ticks(low, high)
    bottom, top = ticks[0], ticks[-1]

    def to_x(steps: np.ndarray) -> np.ndarray:
        return (steps - x_low) / ((x_high - x_low) or 1.0) * WIDTH

    def to_y(values: np.ndarray) -> np.ndarray:
        return HEIGHT * (1.0 - (values - bottom) / (top - bottom))

    level = None
    if spec.level is not None:
        label, value = spec.level
        level = float(to_y(np.array(value))), f"{label} {format_value(value)}"
    labels, note = tick_labels(ticks)
    marked = step_ticks(round(x_low), round(x_high))
    places = to_x(np.array(marked, np.float64))
    return Chart(
        spec.title,
        spec.subtitle,
        tuple(_draw(series, to_x(series.steps), to_y) for series in found),
        tuple((round(float(x), 1), label) for x, label in zip(places, tick_labels(marked)[0])),
        tuple((float(y), label) for y, label in zip(to_y(np.array(ticks)), labels)),
        level,
        _mark_places(spec.marks, x_low, x_high),
        note,
    )


@dataclass(frozen=True)
class _Series:
    """The values of a line, before they have a place."""

    label: str
    colour: int
    dash: int
    steps: np.ndarray
    values: np.ndarray


def _draw(series: _Series, xs: np.ndarray, to_y: Callable[[np.ndarray], np.ndarray]) -> Line:
    smoothed = smooth(series.values, len(series.values) // 20)
    known = smoothed[np.isfinite(smoothed)]
    return Line(
        label=series.label,
        raw_path=_path(xs, to_y(series.values)),
        smooth_path=_path(xs, to_y(smoothed)),
        last=format_value(float(known[-1])),
        xs=tuple(round(float(x), 1) for x in xs),
        steps=tuple(round(float(s)) for s in series.steps),
        values=tuple(float(f"{v:.4g}") if math.isfinite(v) else None for v in series.values),
        colour=series.colour % LINE_COLOURS,
        dash=series.dash % LINE_DASHES,
    )


def _mark_places(
    marks: Sequence[tuple[str, int]], low: float, high: float
) -> tuple[tuple[float, str], ...]:
    """Where the steps are drawn, and what is said of them; steps out of [low, high] are not."""
    scale = WIDTH / ((high - low) or 1.0)
    shown = [(label, step) for label, step in marks if low <= step <= high]
    return tuple(((step - low) * scale, f"{label}: step {step}") for label, step in shown)
