"""gallery.html of an evaluation: every image with its plan, its scores and the reasons for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.images import open_image
from gotr1_jax.io.files import atomic_write
from gotr1_jax.plan import Box, parse_plan
from gotr1_jax.report.cards import shrink
from gotr1_jax.report.charts import format_decimals
from gotr1_jax.report.galleries import describe_totals
from gotr1_jax.report.gallery import (
    Column,
    Gallery,
    GalleryData,
    Item,
    ShownSample,
    image_side,
)
from gotr1_jax.report.load import choose_evenly
from gotr1_jax.report.scores import ReportSample
from gotr1_jax.report.shell import render_shell
from gotr1_jax.rewards.stored_samples import find_samples
from gotr1_jax.trainer.samples import SampleRecord

GALLERY = "gallery.html"
MAX_IMAGES = 2560  # of a gallery; captions beyond it are left out, evenly


@dataclass(frozen=True)
class GalleryImage:
    """An image to show.

    Attributes:
        name: in the address of the page; different for each image.
        path: its file. caption: of it.
        group: images of equal groups stand together under one caption.
        scores: by name; the first one is that which images are ordered by.
        plan: its text; None where it is not known.
        words: why it has these scores.
        detections: boxes that were found in it, each with its object's name.
    """

    name: str
    path: Path
    caption: str
    group: str
    scores: Mapping[str, float]
    plan: str | None = None
    words: str = ""
    detections: tuple[tuple[str, Box], ...] = ()


def write_gallery(
    out: Path, title: str, images: Sequence[GalleryImage], scores: Mapping[str, Mapping[str, Any]]
) -> Path:
    """Writes out/gallery.html, which needs no other file, and returns its path.

    Args:
        out: folder.
        title: of the page.
        images: in order.
        scores: the numbers of the evaluation by name, as `ResultRow.to_json` makes them.
    """
    groups: dict[str, list[GalleryImage]] = {}
    for image in images:
        groups.setdefault(image.group, []).append(image)
    members = list(groups.values())
    kept = choose_evenly(len(members), MAX_IMAGES * len(members) // max(len(images), 1))
    side = image_side(sum(len(members[i]) for i in kept))
    total = next(iter(images[0].scores)) if images else ""
    items = []
    for i in kept:
        cards = tuple(_show(image, side) for image in members[i])
        note = describe_totals([card.sample for card in cards], total)
        items.append(Item(members[i][0].caption, cards=cards, note=note))
    note = ""
    if len(kept) < len(members):
        note = f"{len(kept)} of {len(members)} captions are on this page."
    data = GalleryData({"images": Gallery("Images", tuple(items), note=note)}, total)
    return _write(out, title, data, scores)


def write_columns(out: Path, title: str, columns: Mapping[str, Sequence[GalleryImage]]) -> Path:
    """As `write_gallery`, of several samplings of the same captions by their names.

    Images of equal groups stand side by side, and gains are those of the last over the first.
    """
    by_group = {name: {image.group: image for image in images} for name, images in columns.items()}
    groups = list(dict.fromkeys(group for images in by_group.values() for group in images))
    kept = [groups[i] for i in choose_evenly(len(groups), MAX_IMAGES // max(len(columns), 1))]
    side = image_side(len(kept) * len(columns))
    total, items = "", []
    for group in kept:
        shown: list[Column] = []
        for name, images in by_group.items():
            image = images.get(group)
            sample = None if image is None else _show(image, side)
            shown.append(Column(name, [sample]))
            if image is not None:
                caption, total = image.caption, next(iter(image.scores))
        items.append(Item(caption, columns=tuple(shown)))
    data = GalleryData({"images": Gallery("The same captions", tuple(items))}, total)
    return _write(out, title, data, {})


def known_plans(folder: Path) -> dict[Path, str]:
    """The plans of images that `gotr1 generate` made, by file; empty for other images."""
    try:
        return {sample.image.resolve(): sample.plan_text for sample in find_samples(folder)}
    except InputError:
        return {}


def _write(
    out: Path, title: str, data: GalleryData, scores: Mapping[str, Mapping[str, Any]]
) -> Path:
    rows = [
        {
            "name": name,
            "value": format_decimals(row["value"]),
            "interval": f"{format_decimals(row['low'])} to {format_decimals(row['high'])}",
            "captions": row["captions"],
            "images": row["pictures"],
            "failed": row["failed"],
        }
        for name, row in scores.items()
    ]
    path = out / GALLERY
    atomic_write(path, render_shell("eval.html.j2", title, galleries=data, rows=rows))
    return path


def _show(image: GalleryImage, side: int) -> ShownSample:
    name, *others = image.scores
    plan = parse_plan(image.plan or "")
    record = SampleRecord(
        caption=image.caption,
        plan_text=plan.text,
        planned=tuple(plan.boxes),
        detections=image.detections,
        scores={other: image.scores[other] for other in others},
        total=image.scores[name],
        rationale=image.words,
        image=shrink(np.asarray(open_image(image.path)), side),
    )
    return ShownSample(image.name, "", ReportSample(record), has_plan=image.plan is not None)
