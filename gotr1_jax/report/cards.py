"""One sample as the page shows it: image, boxes over it, plan with colored names, numbers."""

from __future__ import annotations

import base64
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from gotr1_jax.plan import Box, box_to_pixels, match_objects, parse_plan
from gotr1_jax.report.charts import format_value
from gotr1_jax.report.scores import Opinion, letter
from gotr1_jax.trainer.samples import SampleRecord

NUM_COLORS = 8  # classes c0..c7 of style.css
MAX_SIDE = 256  # larger images are stored smaller, as JPEG
MAX_PLAN = 4000  # characters of a plan that are shown
MAX_RAW_ANSWER = 3000  # characters of a judge's own words on one term
JUDGE_STYLES = 3  # classes j0..j2 of style.css

NO_OPINIONS: Mapping[str, tuple[Opinion, ...]] = {}
FULL_ADVANTAGE = 2.0  # deeper colors end here


@dataclass(frozen=True)
class BoxMark:
    """A rectangle in pixels of the image; `color` is the number of its class, None is grey."""

    x: float
    y: float
    width: float
    height: float
    color: int | None
    name: str


@dataclass(frozen=True)
class TextSpan:
    """A stretch of plan text; an object has its box as text and, where drawn, its color."""

    text: str
    is_object: bool = False
    color: int | None = None
    box: str = ""


@dataclass(frozen=True)
class Value:
    """A number as text, and the share of a full bar (0..1); no text where there is none."""

    text: str
    share: float


@dataclass(frozen=True)
class Score:
    """A reward term: the run's value, then one for each of the card's opinions."""

    name: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class CardOpinion:
    """What a judge said after training; `style` is the number of its class."""

    letter: str
    judge: int
    style: int
    detections: tuple[BoxMark, ...]
    rationale: str
    raw_answers: tuple[tuple[str, str], ...]  # term, its own words


@dataclass(frozen=True)
class Card:
    """Everything of one sample, formatted."""

    caption: str
    image: str  # data URI
    width: int
    height: int
    planned: tuple[BoxMark, ...]
    detections: tuple[BoxMark, ...]
    plan: tuple[TextSpan, ...]
    is_cut: bool  # the plan was longer than what is shown
    is_text: bool  # the plan names no object
    scores: tuple[Score, ...]  # total first
    opinions: tuple[CardOpinion, ...]
    advantage: str
    advantage_share: float  # -1..1, for the color
    rationale: str
    raw_answers: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Pair:
    """The same caption before and after; `gain` is the change of the total, NaN if unknown."""

    caption: str
    before: Card
    after: Card
    gain: float


@dataclass(frozen=True)
class CaptionGroup:
    """The samples of one caption, best first."""

    caption: str
    cards: tuple[Card, ...]
    mean: str
    low: str
    high: str


def image_uri(image: np.ndarray) -> str:
    """A data URI of a uint8 (H, W, 3) image: PNG, or a smaller JPEG for a large one."""
    raw_image = Image.fromarray(image)
    stream = io.BytesIO()
    if max(raw_image.size) > MAX_SIDE:
        raw_image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        raw_image.save(stream, format="JPEG", quality=85)
        kind = "jpeg"
    else:
        raw_image.save(stream, format="PNG", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def plan_segments(text: str) -> tuple[TextSpan, ...]:
    """A plan cut into words and objects; the k-th object with a box has color k."""
    segments: list[TextSpan] = []
    at = colors = 0
    for item in parse_plan(text).objects:
        if item.start > at:
            segments.append(TextSpan(text[at : item.start]))
        if item.box is None:
            segments.append(TextSpan(item.name, is_object=True))
        else:
            b = item.box
            corners = f"({b.x1},{b.y1})–({b.x2},{b.y2})"
            segments.append(TextSpan(item.name, True, colors % NUM_COLORS, corners))
            colors += 1
        at = item.end
    if at < len(text):
        segments.append(TextSpan(text[at:]))
    return tuple(segments)


def _mark(name: str, box: Box, color: int | None, width: int, height: int) -> BoxMark:
    x1, y1, x2, y2 = box_to_pixels(box.clean(), width, height)
    return BoxMark(round(x1, 2), round(y1, 2), round(x2 - x1, 2), round(y2 - y1, 2), color, name)


def _planned(record: SampleRecord) -> tuple[BoxMark, ...]:
    height, width = record.image.shape[:2]
    return tuple(
        _mark(name, box, i % NUM_COLORS, width, height)
        for i, (name, box) in enumerate(record.planned)
    )


def _detections(record: SampleRecord, found: Sequence[tuple[str, Box]]) -> tuple[BoxMark, ...]:
    """Rectangles of what a judge found, each in the color of the planned one it matches."""
    height, width = record.image.shape[:2]
    partner = {j: i for i, j, _ in match_objects(record.planned, found) if j is not None}
    return tuple(
        _mark(name, box, partner[j] % NUM_COLORS if j in partner else None, width, height)
        for j, (name, box) in enumerate(found)
    )


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0) if math.isfinite(value) else 0.0


def _value(scores: Mapping[str, float], term: str) -> Value:
    if term not in scores:
        return Value("", 0.0)
    return Value(_two_decimals(scores[term]), _share(scores[term]))


def _scores(record: SampleRecord, opinions: Sequence[Opinion]) -> tuple[Score, ...]:
    """The total and every term that the run or a judge scored, the run's own order first."""
    columns = [{"total": record.total, **record.scores}, *(o.result.scores for o in opinions)]
    terms = dict.fromkeys(term for column in columns for term in column)
    return tuple(Score(t, tuple(_value(column, t) for column in columns)) for t in terms)


def _raw_answers(raw_answers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Terms with their words, cut where they are very long; empty ones are left out."""
    texts = {term: str(text).strip() for term, text in raw_answers.items()}
    return tuple(
        (term, text if len(text) <= MAX_RAW_ANSWER else text[:MAX_RAW_ANSWER] + " …")
        for term, text in texts.items()
        if text
    )


def build_card(record: SampleRecord, opinions: Sequence[Opinion] = ()) -> Card:
    """The card of a sample, with what judges said of it after training."""
    height, width = record.image.shape[:2]
    advantage = record.advantage
    share = max(-1.0, min(1.0, advantage / FULL_ADVANTAGE)) if math.isfinite(advantage) else 0.0
    plan = plan_segments(record.plan_text[:MAX_PLAN])
    return Card(
        caption=record.caption,
        image=image_uri(record.image),
        width=width,
        height=height,
        planned=_planned(record),
        detections=_detections(record, record.detections),
        plan=plan,
        is_cut=len(record.plan_text) > MAX_PLAN,
        is_text=bool(plan) and not any(part.is_object for part in plan),
        scores=_scores(record, opinions),
        opinions=tuple(
            CardOpinion(
                letter=letter(opinion.judge),
                judge=opinion.judge,
                style=opinion.judge % JUDGE_STYLES,
                detections=_detections(record, opinion.result.detections),
                rationale=opinion.result.rationale,
                raw_answers=_raw_answers(opinion.result.raw_answers),
            )
            for opinion in opinions
        ),
        advantage=f"{advantage:+.2f}".replace("-", "−") if math.isfinite(advantage) else "–",
        advantage_share=share,
        rationale=record.rationale,
        raw_answers=_raw_answers(record.raw_answers),
    )


def _two_decimals(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "–"


def build_groups(
    records: Iterable[SampleRecord], opinions: Mapping[str, tuple[Opinion, ...]] = NO_OPINIONS
) -> tuple[CaptionGroup, ...]:
    """The samples of a step by caption, each group ordered from the highest total down.

    `opinions` are those on this step's samples, by image name.
    """
    by_caption: dict[tuple[int, str], list[SampleRecord]] = defaultdict(list)
    for record in records:
        by_caption[record.caption_index, record.caption].append(record)
    groups = []
    for (_, caption), members in by_caption.items():
        members.sort(key=lambda r: (math.isnan(r.total), -r.total, r.sample_index))
        totals = [r.total for r in members if math.isfinite(r.total)] or [math.nan]
        groups.append(
            CaptionGroup(
                caption=caption,
                cards=tuple(build_card(r, opinions.get(r.image_name, ())) for r in members),
                mean=format_value(sum(totals) / len(totals)),
                low=format_value(min(totals)),
                high=format_value(max(totals)),
            )
        )
    return tuple(groups)


def build_pairs(
    before: Sequence[SampleRecord],
    after: Sequence[SampleRecord],
    limit: int,
    opinions_before: Mapping[str, tuple[Opinion, ...]] = NO_OPINIONS,
    opinions_after: Mapping[str, tuple[Opinion, ...]] = NO_OPINIONS,
) -> tuple[Pair, ...]:
    """Samples of the same caption and number in both lists, in the order of `before`.

    Opinions are by image name.
    """
    waiting: dict[tuple[str, int], list[SampleRecord]] = defaultdict(list)
    for record in after:
        waiting[record.caption, record.sample_index].append(record)
    pairs: list[Pair] = []
    for old in before:
        found = waiting[old.caption, old.sample_index]
        if not found or len(pairs) == limit:
            continue
        new = found.pop(0)
        gain = new.total - old.total
        old_card = build_card(old, opinions_before.get(old.image_name, ()))
        new_card = build_card(new, opinions_after.get(new.image_name, ()))
        pairs.append(Pair(old.caption, old_card, new_card, gain))
    return tuple(pairs)
