"""Small line charts as numbers for an SVG: raw values thin, smoothed values bold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gotr1_jax.report.load import Metrics

WIDTH, HEIGHT = 260, 120  # of the plotting area, in SVG units
LINE_COLOURS = 6  # of the page
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
    """One line: SVG paths of its raw and smoothed values, and its numbers for the tooltip."""

    label: str
    raw_path: str
    smooth_path: str
    last: str  # the last smoothed value, formatted
    xs: tuple[float, ...]
    steps: tuple[int, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Chart:
    """A chart with its lines; ticks, the level and marks are (position in SVG units, label)."""

    title: str
    subtitle: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    level: tuple[float, str] | None = None
    marks: tuple[tuple[float, str], ...] = ()


def format_value(value: float) -> str:
    """Three significant digits, without an exponent where one is not needed."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 1e5 or 0 < size < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
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


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers, about `count`, that cover [low, high]."""
    if not high - low > 1e-9 * max(abs(low), abs(high), 1e-200):
        low, high = (low, low) if abs(low) > 1e-200 else (0.0, 0.0)
        low, high = (low - abs(low) * 0.5, high + abs(high) * 0.5) if low else (0.0, 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


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


def build_chart(spec: ChartSpec, metrics: Metrics) -> Chart | None:
    """The chart of the spec's metrics that have a value; None if none has."""
    drawn = {
        name: np.where(np.abs(values) < _LARGEST, values, np.nan)
        for _, name in spec.series
        if (values := metrics.values.get(name)) is not None
    }
    present = [
        (label, drawn[name])
        for label, name in spec.series
        if name in drawn and np.isfinite(drawn[name]).any()
    ]
    if not present:
        return None
    steps = bin_means(metrics.steps.astype(np.float64), MAX_POINTS)
    x_low, x_high = float(steps[0]), float(steps[-1])
    xs = (steps - x_low) / ((x_high - x_low) or 1.0) * WIDTH
    raws = [bin_means(values, MAX_POINTS) for _, values in present]
    low = min(float(np.nanmin(v)) for v in raws)
    high = max(float(np.nanmax(v)) for v in raws)
    if spec.covers is not None:
        low, high = min(spec.covers[0], low), max(spec.covers[1], high)
    if spec.level is not None:
        low, high = min(low, spec.level[1]), max(high, spec.level[1])
    ticks = nice_ticks(low, high)
    bottom, top = ticks[0], ticks[-1]

    def to_y(values: np.ndarray) -> np.ndarray:
        return HEIGHT * (1.0 - (values - bottom) / (top - bottom))

    level = None
    if spec.level is not None:
        label, value = spec.level
        level = float(to_y(np.array(value))), f"{label} {format_value(value)}"

    lines = []
    for (label, _), raw in zip(present, raws):
        smoothed = smooth(raw, len(raw) // 20)
        known = smoothed[np.isfinite(smoothed)]
        lines.append(
            Line(
                label=label,
                raw_path=_path(xs, to_y(raw)),
                smooth_path=_path(xs, to_y(smoothed)),
                last=format_value(float(known[-1])),
                xs=tuple(round(float(x), 1) for x in xs),
                steps=tuple(round(float(s)) for s in steps),
                values=tuple(float(f"{v:.4g}") if math.isfinite(v) else None for v in raw),
            )
        )
    heights = to_y(np.array(ticks))
    y_ticks = tuple((float(y), _tick_label(t, ticks)) for y, t in zip(heights, ticks))
    x_ticks: tuple[tuple[float, str], ...] = (
        (0.0, str(round(x_low))),
        (float(WIDTH), str(round(x_high))),
    )
    if x_high == x_low:
        x_ticks = x_ticks[:1]
    marks = _mark_places(spec.marks, x_low, x_high)
    return Chart(spec.title, spec.subtitle, tuple(lines), x_ticks, y_ticks, level, marks)


def _mark_places(
    marks: Sequence[tuple[str, int]], low: float, high: float
) -> tuple[tuple[float, str], ...]:
    """Where the steps are drawn, and what is said of them; steps out of [low, high] are not."""
    scale = WIDTH / ((high - low) or 1.0)
    shown = [(label, step) for label, step in marks if low <= step <= high]
    return tuple(((step - low) * scale, f"{label}: step {step}") for label, step in shown)


def _tick_label(value: float, ticks: Sequence[float]) -> str:
    """As many digits as tell a tick from its neighbours."""
    step = ticks[1] - ticks[0]
    size = max(abs(t) for t in ticks)
    if not 1e-3 <= size < 1e5 or step < 1e-5:
        digits = math.floor(math.log10(size / step)) + 3
        return f"{value:.{digits}g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    decimals = next(d for d in range(8) if abs(round(step, d) - step) < 1e-3 * step)
    return f"{value:.{decimals}f}"
