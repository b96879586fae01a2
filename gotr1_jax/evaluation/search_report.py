"""The table and the plot of `gotr1 eval search`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from gotr1_jax.evaluation.facts import facts_lines
from gotr1_jax.evaluation.results import SCORES, TABLE
from gotr1_jax.io.files import atomic_write, plain_json, write_json_atomic
from gotr1_jax.io.markdown import markdown_table
from gotr1_jax.report.axes import nice_ticks
from gotr1_jax.trainer.bootstrap import gain_interval

LINES = "searches.jsonl"
PLOT = "gain.svg"
_WIDTH, _HEIGHT, _LEFT, _TOP = 640, 320, 60, 20
_LINE, _LETTER = 12, 5.8  # of labels: their height, and the width of a letter
_NOTES = (
    "Cost is counted in tokens drawn, relative to the first row. Gains are differences to the "
    "first row with 95 % intervals by a paired bootstrap over captions.\n\n"
    "best of N keeps the largest total of the exact judge that also scores here: it is an upper "
    "bound of what N draws can give, not what a learned judge would reach. repaint uses the exact "
    "judge's comparison of plan and image. verify and repair read the caption and the plan alone."
)


@dataclass(frozen=True)
class SearchResult:
    """Scores of a search by term, float (captions,), `total` among them, and its tokens."""

    name: str
    scores: Mapping[str, np.ndarray]
    plan_tokens: int
    image_tokens: int

    def against(self, base: SearchResult) -> dict[str, Any]:
        """Means, gains over `base` with their intervals, and relative costs."""
        terms = {}
        for term, values in self.scores.items():
            gain = np.asarray(values, np.float64) - np.asarray(base.scores[term], np.float64)
            low, high = gain_interval(base.scores[term], values)
            terms[term] = {
                "mean": float(np.nanmean(values)), "gain": float(np.nanmean(gain)),
                "low": low, "high": high,
            }  # fmt: skip
        tokens, before = (r.plan_tokens + r.image_tokens for r in (self, base))
        return {
            "search": self.name,
            "captions": len(self.scores["total"]),
            "plan_tokens": self.plan_tokens / base.plan_tokens,
            "image_tokens": self.image_tokens / base.image_tokens,
            "cost": tokens / before,
            "scores": terms,
        }


def write_report(
    out: Path, results: Sequence[SearchResult], terms: Sequence[str], head: Mapping[str, Any]
) -> dict[str, Any]:
    """Write searches.jsonl, gain.svg, scores.md and scores.json; print the table.

    terms: of the exact judge; gains are shown of the total and of the last one. head: the facts,
    see `facts`. Returns the line of each search by its name.
    """
    lines = [result.against(results[0]) for result in results]
    atomic_write(out / LINES, "".join(json.dumps(plain_json(line)) + "\n" for line in lines))
    shown = ("total", terms[-1])
    columns = ["search", *(h for name in shown for h in (name, "gain", "95 % interval"))]
    columns += [*terms[:-1], "plan tokens", "image tokens", "all tokens"]
    rows = []
    for line in lines:
        scores = line["scores"]
        cells = [line["search"]]
        for name in shown:
            s = scores[name]
            is_base = line is lines[0]
            cells += [f"{s['mean']:.3f}", "" if is_base else f"{s['gain']:+.3f}"]
            cells.append("" if is_base else f"{s['low']:+.3f} to {s['high']:+.3f}")
        cells += [f"{scores[term]['mean']:.3f}" for term in terms[:-1]]
        cells += [f"{line[key]:.2f}×" for key in ("plan_tokens", "image_tokens", "cost")]
        rows.append(cells)
    captions = lines[0]["captions"]
    notes = "\n\n".join([_NOTES, *facts_lines(head)])
    title = f"# Test-time search on the shapes world: {captions} held-out captions"
    text = f"{title}\n\n{markdown_table(columns, rows)}\n\n{notes}\n"
    atomic_write(out / TABLE, text)
    atomic_write(
        out / PLOT, draw_gains([(x["search"], x["cost"], x["scores"]["total"]) for x in lines])
    )
    scores = {line["search"]: line for line in lines}
    write_json_atomic(out / SCORES, {"evaluation": "search", **head, "scores": plain_json(scores)})
    print(text)
    print(out)
    return scores


def draw_gains(points: Sequence[tuple[str, float, Mapping[str, float]]]) -> str:
    """An SVG: the gain of each search, with its interval, over its cost (log scale)."""
    most = math.log2(max(2.0, *(cost for _, cost, _ in points)))
    values = [v for _, _, g in points for v in (g["low"], g["high"]) if math.isfinite(v)]
    ticks = nice_ticks(min([0.0, *values]), max([0.01, *values]))

    def x(cost: float) -> float:
        return _LEFT + _WIDTH * math.log2(max(cost, 1.0)) / most

    def y(gain: float) -> float:
        return _TOP + _HEIGHT * (ticks[-1] - gain) / (ticks[-1] - ticks[0])

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 170} '
        f'{_TOP + _HEIGHT + 45}" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for tick in ticks:
        parts.append(
            f'<path d="M{_LEFT} {y(tick):.1f}h{_WIDTH}" stroke="#ddd"/>'
            f'<text x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:+.2f}</text>'
        )
    for power in range(int(most) + 1):
        parts.append(
            f'<text x="{x(2.0**power):.1f}" y="{_TOP + _HEIGHT + 16}" text-anchor="middle">'
            f"{2**power}×</text>"
        )
    parts.append(
        f'<text x="{_LEFT + _WIDTH / 2}" y="{_TOP + _HEIGHT + 36}" text-anchor="middle">tokens '
        "drawn, relative to a single draw</text>"
        f'<text x="{_LEFT}" y="12">gain in total reward, 95 % interval</text>'
    )
    marks = [(x(cost), y(gain["gain"]), gain) for _, cost, gain in points]
    for at, height, gain in marks:
        if math.isfinite(gain["low"]):
            parts.append(
                f'<path d="M{at:.1f} {y(gain["low"]):.1f}V{y(gain["high"]):.1f}" stroke="#888"/>'
            )
        parts.append(f'<circle cx="{at:.1f}" cy="{height:.1f}" r="4" fill="#1f6feb"/>')
    return "\n".join([*parts, *_labels(points, marks), "</svg>"]) + "\n"


def _labels(
    points: Sequence[tuple[str, float, Mapping[str, float]]],
    marks: Sequence[tuple[float, float, Mapping[str, float]]],
) -> Iterator[str]:
    """Names right of their points, moved down until they hide no other name and no point."""
    taken: list[tuple[float, float, float]] = []  # left, right, height of the middle
    order = sorted(range(len(points)), key=lambda i: -points[i][2]["gain"])
    for i in order:
        name, (at, height, _) = points[i][0], marks[i]
        left, right, line = at + 7, at + 7 + _LETTER * len(name), height
        while any(abs(line - m) < _LINE and left < b and a < right for a, b, m in taken) or any(
            abs(line - cy) < _LINE - 2 and left < cx + 4 and cx - 4 < right for cx, cy, _ in marks
        ):
            line += 1
        taken.append((left, right, line))
        yield (
            f'<text x="{left:.1f}" y="{line + 4:.1f}" paint-order="stroke" stroke="white" '
            f'stroke-width="3">{escape(name)}</text>'
        )
