"""The result of an evaluation: means with 95 % intervals, the papers' numbers, and the files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gotr1_jax.errors import InputError, RunError
from gotr1_jax.evaluation.gallery import GALLERY, GalleryImage, write_gallery
from gotr1_jax.io.files import atomic_write, plain_json, write_json_atomic
from gotr1_jax.io.markdown import markdown_table
from gotr1_jax.trainer.bootstrap import mean_of_means_interval

SCORES = "scores.json"
TABLE = "scores.md"
IMAGES = "pictures.jsonl"


def check_out(out: Path) -> None:
    """InputError unless the folder of the results exists or can be made."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; choose a directory")


@dataclass(frozen=True)
class ResultRow:
    """One number of a benchmark.

    Attributes:
        name: of the category or task.
        groups: one value a caption (`caption_means`), in groups that count equally; one group,
            except for a mean of tasks.
        images: how many were scored.
        failed: how many could not be scored; they are left out of the mean.
        scorer: the models that scored.
        remark: why it is not comparable with published numbers; empty where it is.
        published: the papers' numbers, by model.
    """

    name: str
    groups: tuple[np.ndarray, ...]
    images: int
    failed: int
    scorer: str
    remark: str = ""
    published: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The mean, its 95 % interval, and the other fields."""
        value, low, high = mean_of_means_interval(self.groups)
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


def make_row(
    name: str,
    values: Sequence[float],
    captions: Sequence[int],
    scorer: str,
    remark: str = "",
    published: Mapping[str, float] | None = None,
) -> ResultRow:
    """The row of one value an image; `captions` are the images' caption indices."""
    failed = sum(value != value for value in values)
    groups = (caption_means(values, captions),)
    return ResultRow(name, groups, len(values), failed, scorer, remark, published or {})


def rows_apart(
    rows: Sequence[ResultRow], others: Sequence[ResultRow], what: str
) -> list[ResultRow]:
    """Both, in this order; where a name is taken, ` (what)` is added to that of the later row.

    Names of rows are keys of scores.json: of two equal ones the first would be lost.
    """
    found = {row.name: row for row in rows}
    for row in others:
        name = row.name
        while name in found:
            name += f" ({what})"
        found[name] = replace(row, name=name)
    return list(found.values())


def caption_means(values: Sequence[float], captions: Sequence[int]) -> np.ndarray:
    """Mean of each caption's images, float64, in the order of the caption indices.

    Images that could not be scored (NaN) are left out; NaN where none is left.
    """
    by_caption: dict[int, list[float]] = {}
    for value, caption in zip(values, captions):
        by_caption.setdefault(caption, []).append(value)
    means = []
    for caption in sorted(by_caption):
        scored = [value for value in by_caption[caption] if value == value]
        means.append(sum(scored) / len(scored) if scored else float("nan"))
    return np.asarray(means, np.float64)


def table(title: str, rows: Mapping[str, Mapping[str, Any]], notes: Sequence[str]) -> str:
    """The Markdown page of `ResultRow.to_json` values, with a column for each paper's model."""
    models = list(dict.fromkeys(m for row in rows.values() for m in row["published"]))
    head = ["", "score", "95 % interval", "captions", "images", "scored by", *models]
    lines = [
        [
            name,
            _number(row["value"]) + ("" if row["comparable"] else " *"),
            f"{_number(row['low'])} to {_number(row['high'])}",
            str(row["captions"]),
            str(row["pictures"]) + (f" ({row['failed']} failed)" if row["failed"] else ""),
            row["scorer"],
            *(_number(row["published"].get(model)) for model in models),
        ]
        for name, row in rows.items()
    ]
    remarks = dict.fromkeys(row["remark"] for row in rows.values() if row["remark"])
    footnotes = [f"\\* Not comparable with published numbers: {r}." for r in remarks]
    return "\n\n".join([f"# {title}", markdown_table(head, lines), *footnotes, *notes]) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.4f}"


def write_results(
    out: Path,
    title: str,
    head: Mapping[str, Any],
    rows: Sequence[ResultRow],
    images: Sequence[Mapping[str, Any]],
    notes: Sequence[str] = (),
    shown: Sequence[GalleryImage] = (),
) -> None:
    """Write pictures.jsonl, gallery.html, scores.md and, last, scores.json; print the table.

    Args:
        out: folder.
        title: of the table.
        head: what else scores.json holds: the benchmark, its settings.
        rows: the numbers, each under its name.
        images: one record an image.
        notes: lines below the table.
        shown: the images of the gallery.

    Raises RunError where a file cannot be written, or no image could be scored.
    """
    scores = {row.name: row.to_json() for row in rows}
    text = table(title, scores, notes)
    if shown:
        write_gallery(out, title, shown, scores)
    store_results(out, text, {**head, "scores": scores, "notes": list(notes)}, images)
    print(text)
    print(out / GALLERY if shown else out)
    if all(row.failed == row.images for row in rows):
        raise RunError(f"no image could be scored; see {out}")


def store_results(
    out: Path, page: str, values: Mapping[str, Any], images: Sequence[Mapping[str, Any]]
) -> None:
    """Write pictures.jsonl (a line an image), scores.md (the page) and, last, scores.json."""
    lines = (json.dumps(plain_json(image), ensure_ascii=False) + "\n" for image in images)
    atomic_write(out / IMAGES, "".join(lines))
    atomic_write(out / TABLE, page)
    write_json_atomic(out / SCORES, values)
