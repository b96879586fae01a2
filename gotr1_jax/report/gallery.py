"""A gallery of samples as data of a page: gallery.js draws it.

Every sample, with its image, is in the page once, whatever shows it; only what is looked at becomes
elements of the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gotr1_jax.report.cards import MAX_SIDE, BoxMark, Card, CardJudge, TextSpan, build_card
from gotr1_jax.report.scores import ReportSample, letter
from gotr1_jax.report.terms import TOTAL

SMALL_SIDE = 128  # pixels of an image of a page with many; larger ones are stored smaller
MANY = 768  # samples, from which images have the small side


@dataclass(frozen=True)
class ShownSample:
    """A sample of a gallery.

    Attributes:
        key: its name in the page's address, "eval_after/03_00".
        place: where it is from, "step 15".
        is_trained_on: whether its advantage is shown. has_plan: whether its plan is.
    """

    key: str
    place: str
    sample: ReportSample
    is_trained_on: bool = False
    has_plan: bool = True


@dataclass(frozen=True)
class Column:
    """Samples that take one place of an item, one for each stage or None.

    A fixed one, with the same sample at every stage, is what the others are compared with.
    """

    label: str
    samples: Sequence[ShownSample | None]
    is_fixed: bool = False


@dataclass(frozen=True)
class Item:
    """A caption: its samples side by side, and what is said of them.

    Either `columns`, or `cards`, which are shown at the stage `stage` alone.
    """

    caption: str
    columns: tuple[Column, ...] = ()
    cards: tuple[ShownSample, ...] = ()
    stage: int = 0
    note: str = ""

    @property
    def shown(self) -> list[ShownSample]:
        """All of its samples."""
        found = [s for column in self.columns for s in column.samples if s is not None]
        return [*found, *self.cards]


@dataclass(frozen=True)
class Gallery:
    """Items under one heading. `stages`: the positions of its slider; none is needed for one."""

    title: str
    items: tuple[Item, ...]
    stages: tuple[str, ...] = ("",)
    note: str = ""


def image_side(samples: int) -> int:
    """The largest side, in pixels, of the images of a page of so many samples."""
    return SMALL_SIDE if samples > MANY else MAX_SIDE


class GalleryData:
    """What gallery.js reads, of the galleries of a page by name; empty ones are left out."""

    def __init__(self, galleries: Mapping[str, Gallery], total: str = TOTAL) -> None:
        """total: the name of the samples' total."""
        self._galleries = {name: found for name, found in galleries.items() if found.items}
        self._total = total
        shown = [s for g in self._galleries.values() for item in g.items for s in item.shown]
        self._samples = {sample.key: sample for sample in shown}
        side = image_side(len(self._samples))
        self._cards = {k: build_card(s.sample, side) for k, s in self._samples.items()}
        self._number = {key: number for number, key in enumerate(self._samples)}

    def __bool__(self) -> bool:
        return bool(self._galleries)

    def __contains__(self, name: str) -> bool:
        return name in self._galleries

    def __getitem__(self, name: str) -> Gallery:
        return self._galleries[name]

    def to_json(self) -> dict[str, Any]:
        """Plain values without NaN."""
        images: dict[str, int] = {}
        samples = [
            _sample_json(shown, self._cards[key], self._total, images)
            for key, shown in self._samples.items()
        ]
        cards = self._cards.values()
        values: dict[str, set[float | None]] = {}
        for sample in samples:
            for term, value in sample["values"].items():
                values.setdefault(term, set()).add(value)
        numbers = {term: found - {None} for term, found in values.items()}
        return {
            "total": self._total,
            "terms": list(values),
            # Those that say yes or no: a filter finds the samples that they call false.
            "binary": [t for t, found in numbers.items() if found and found <= {0.0, 1.0}],
            "boxes": _box_kinds(list(cards)),
            "isWide": any(card.is_text or card.judges for card in cards),
            "images": list(images),
            "samples": samples,
            "galleries": [self._gallery_json(name) for name in self._galleries],
        }

    def _gallery_json(self, name: str) -> dict[str, Any]:
        gallery = self._galleries[name]
        return {
            "name": name,
            "title": gallery.title,
            "stages": list(gallery.stages),
            "items": [self._item_json(item) for item in gallery.items],
        }

    def _item_json(self, item: Item) -> dict[str, Any]:
        found: dict[str, Any] = {"caption": item.caption, "note": item.note}
        if not item.columns:
            numbers = [self._number[sample.key] for sample in item.cards]
            return {**found, "stage": item.stage, "cards": numbers}
        columns = [
            {
                "label": column.label,
                "fixed": column.is_fixed,
                "at": [None if s is None else self._number[s.key] for s in column.samples],
            }
            for column in item.columns
        ]
        return {**found, "columns": columns}


def _box_kinds(cards: Sequence[Card]) -> list[dict[str, str]]:
    """The kinds of boxes on the page, each of which can be hidden."""
    judges = sorted({j.judge for card in cards for j in card.judges if j.detections})
    kinds = []
    if any(card.planned for card in cards):
        kinds.append({"kind": "planned", "label": "planned"})
    if any(card.own.detections for card in cards):
        where = "by the run’s judge" if judges else "in the image"
        kinds.append({"kind": "own", "label": f"found {where}"})
    return kinds + [{"kind": str(j), "label": f"found by {letter(j)}"} for j in judges]


def _sample_json(
    shown: ShownSample, card: Card, total: str, images: dict[str, int]
) -> dict[str, Any]:
    """Keys are left out where there is nothing to say: there are many samples."""
    record = card.record
    height, width = record.image.shape[:2]
    scores = {total if name == TOTAL else name: cells for name, cells in card.scores.items()}
    values = {total: record.total, **record.scores, **record.watched}
    found: dict[str, Any] = {
        "key": shown.key,
        "place": shown.place,
        "image": images.setdefault(card.image, len(images)),
        "size": [width, height],
        "scores": [[name, *([v.text, v.share] for v in cells)] for name, cells in scores.items()],
        "values": {name: _number(value) for name, value in values.items()},
        "judges": [_judge_json(judge) for judge in (card.own, *card.judges)],
    }
    if shown.has_plan:
        found["plan"] = [_span_json(span) for span in card.plan]
    if shown.is_trained_on:
        found["advantages"] = [[a.label, a.text, a.share] for a in card.advantages]
    if card.planned:
        found["planned"] = [_box_json(box) for box in card.planned]
    flags = {"isCut": card.is_cut, "isText": card.is_text, "isLost": not _is_scored(values)}
    return {**found, **{name: True for name, holds in flags.items() if holds}}


def _is_scored(values: Mapping[str, float]) -> bool:
    return all(math.isfinite(value) for value in values.values())


def _judge_json(judge: CardJudge) -> dict[str, Any]:
    found = {
        "letter": judge.letter,
        "judge": judge.judge,
        "style": judge.style,
        "boxes": [_box_json(box) for box in judge.detections],
        "rationale": judge.rationale,
        "answers": [list(answer) for answer in judge.raw_answers],
    }
    return {name: value for name, value in found.items() if value or name in ("judge", "style")}


def _box_json(box: BoxMark) -> list[Any]:
    return [box.x, box.y, box.width, box.height, box.color, box.name]


def _span_json(span: TextSpan) -> str | list[Any]:
    return [span.text, span.color, span.box] if span.is_object else span.text


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
