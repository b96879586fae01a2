"""Means with their intervals, the papers' figures beside them, and the files of a result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

RESAMPLES = 10_000
SCORES = "scores.json"
TABLE = "scores.md"
IMAGES = "pictures.jsonl"


@dataclass(frozen=True)
class ResultRow:
    """One number of a benchmark.

    Attributes:
        name: of the category or task.
        groups: for each group that counts equally, one value a caption: the mean over its
            images, NaN where none of them could be told. One group, but for a mean of tasks.
        images: how many were scored.
        failed: how many the models could not tell; they are left out.
        scorer: which models gave the number.
        remark: why it is not comparable with published figures; empty where it is.
        published: the papers' figures, by model.
    """

    name: str
    groups: tuple[np.ndarray, ...]
    images: int
    failed: int
    scorer: str
    remark: str = ""
    published: Mapping[str, float] = field(default_factory=dict)

    def to_json(self, seed: int) -> dict[str, Any]:
        """The number with its 95 % interval and all that belongs to it."""
        value, low, high = interval(self.groups, seed)
        return {
            "value": value,
            "low": low,
            "high": high,
            "captions": sum(len(group) for group in self.groups),
            "pictures": self.images,
            "failed": self.failed,
            "scorer": self.scorer,
            "comparable": not self.remark,
            "remark": self.remark,
            "published": dict(self.published),
        }


def caption_means(values: Sequence[float], places: Sequence[int]) -> np.ndarray:
    """Mean of each caption's images, float64, in the order of the captions' places.

    Images that could not be told (NaN) are left out; NaN where none is left.
    """
    taken: dict[int, list[float]] = {}
    for value, place in zip(values, places):
        taken.setdefault(place, []).append(value)
    means = []
    for place in sorted(taken):
        told = [value for value in taken[place] if value == value]
        means.append(sum(told) / len(told) if told else float("nan"))
    return np.asarray(means, np.float64)


def interval(groups: Sequence[np.ndarray], seed: int = 0) -> tuple[float, float, float]:
    """(mean, low, high): the mean of the groups' means and its 95 % bootstrap interval.

    Captions are drawn with replacement within each group. NaN values are left out; NaN where a
    group has nothing left.
    """
    told = [np.asarray(g, np.float64)[np.isfinite(g)] for g in groups]
    if not told or any(not len(group) for group in told):
        return float("nan"), float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    drawn = [g[rng.integers(0, len(g), (RESAMPLES, len(g)))].mean(axis=1) for g in told]
    low, high = np.percentile(np.mean(drawn, axis=0), [2.5, 97.5])
    return float(np.mean([group.mean() for group in told])), float(low), float(high)


def table(title: str, rows: Mapping[str, Mapping[str, Any]], notes: Sequence[str]) -> str:
    """The Markdown table of `ResultRow.to_json` values, with a column for each paper's model."""
    models = list(dict.fromkeys(m for row in rows.values() for m in row["published"]))
    head = ["", "score", "95 % interval", "captions", "pictures", "scored by", *models]
    lines = [f"# {title}", "", _line(head), _line(["-"] * len(head))]
    for name, row in rows.items():
        shown = [name, _number(row["value"]), f"{_number(row['low'])} to {_number(row['high'])}"]
        images = str(row["pictures"]) + (f" ({row['failed']} failed)" if row["failed"] else "")
        figures = [_number(row["published"].get(model)) for model in models]
        mark = "" if row["comparable"] else " *"
        shown[1] += mark
        lines.append(_line([*shown, str(row["captions"]), images, row["scorer"], *figures]))
    remarks = dict.fromkeys(row["remark"] for row in rows.values() if row["remark"])
    below = [*(f"\\* Not comparable with published figures: {r}." for r in remarks), *notes]
    return "\n\n".join(["\n".join(lines), *below]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.4f}"


def write_result(
    out: Path,
    title: str,
    head: Mapping[str, Any],
    rows: Sequence[ResultRow],
    images: Sequence[Mapping[str, Any]],
    notes: Sequence[str] = (),
    seed: int = 0,
) -> str:
    """Write images.jsonl, scores.md and, last, scores.json; returns the table.

    Args:
        out: folder.
        title: of the table.
        head: what else scores.json holds: the benchmark, its settings.
        rows: the numbers, each under its name.
        images: one record an image.
        notes: lines below the table.
        seed: of the bootstrap.

    Raises RunError where a file cannot be written.
    """
    from gotr1_jax.io.files import atomic_write, plain_json, write_json_atomic

    scores = {row.name: row.to_json(seed) for row in rows}
    text = table(title, scores, notes)
    lines = (json.dumps(plain_json(image), ensure_ascii=False) + "\n" for image in images)
    atomic_write(out / IMAGES, "".join(lines))
    atomic_write(out / TABLE, text)
    write_json_atomic(out / SCORES, {**head, "scores": scores, "notes": list(notes)})
    return text
