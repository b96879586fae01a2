"""One sample as the page shows it: image with boxes, plan with colored names, scores."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from gotr1_jax.plan import Box, box_to_pixels, match_objects, parse_plan
from gotr1_jax.report.charts import format_decimals, format_signed
from gotr1_jax.report.scores import ReportSample, letter
from gotr1_jax.rewards.base import JudgeResult
from gotr1_jax.trainer.samples import SampleRecord

NUM_COLORS = 8  # classes c0..c7 of style.css
MAX_SIDE = 256  # larger images are stored smaller
LARGEST_LOSSLESS = 128  # larger images are stored as JPEG
MAX_PLAN = 4000  # characters of a plan that are shown
MAX_RAW_ANSWER = 3000  # characters of a judge's raw answer that are shown
JUDGE_STYLES = 3  # classes j0..j2 of style.css
_WIDEST = 1000.0  # score with decimals that fits its column
FULL_ADVANTAGE = 2.0  # advantage from which the color is deepest


@dataclass(frozen=True)
class BoxMark:
    """A rectangle in pixels of the image; `color` is the number of its class, None is gray."""

    x: float
    y: float
    width: float
    height: float
    color: int | None
    name: str


@dataclass(frozen=True)
class TextSpan:
    """A span of plan text; an object has its box as text and, where drawn, its color."""

    text: str
    is_object: bool = False
    color: int | None = None
    box: str = ""


@dataclass(frozen=True)
class ScoreValue:
    """A number as text, and its share of a full bar (0..1); no text where there is none."""

    text: str
    share: float


@dataclass(frozen=True)
class CardJudge:
    """What one judge found and answered, the run's own or a later one.

    `style` is the number of its CSS class. The run's own judge has no `letter`, and `judge` is -1.
    """

    letter: str
    judge: int
    style: int
    detections: tuple[BoxMark, ...]
    rationale: str
    raw_answers: tuple[tuple[str, str], ...]  # term, text


@dataclass(frozen=True)
class AdvantageValue:
    """An advantage, formatted."""

    label: str
    text: str
    share: float  # -1..1, for the color


@dataclass(frozen=True)
class Card:
    """A sample, formatted.

    `scores`: for each term, total first, the run's value and one for each of `judges`.
    """

    record: SampleRecord
    image: str  # data URI
    planned: tuple[BoxMark, ...]
    plan: tuple[TextSpan, ...]
    is_cut: bool  # the plan is shown in part
    is_text: bool  # the plan names no object
    scores: Mapping[str, tuple[ScoreValue, ...]]
    own: CardJudge
    judges: tuple[CardJudge, ...]
    advantages: tuple[AdvantageValue, ...]  # one, or the plan's and the image's


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """A uint8 (H, W, 3) image with sides of at most `side` pixels."""
    if max(image.shape[:2]) <= side:
        return image
    smaller = Image.fromarray(image)
    smaller.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(smaller)


def image_uri(image: np.ndarray, side: int = MAX_SIDE) -> str:
    """A data URI of a uint8 (H, W, 3) image of at most `side` pixels.

    Lossless WebP, a fifth smaller than PNG; of a large image JPEG.
    """
    stream, shown = io.BytesIO(), Image.fromarray(shrink(image, side))
    if max(image.shape[:2]) > LARGEST_LOSSLESS:
        shown.save(stream, format="JPEG", quality=85)
        kind = "jpeg"
    else:
        shown.save(stream, format="WEBP", lossless=True, method=2)  # higher ones take longer
        kind = "webp"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def plan_spans(text: str) -> tuple[TextSpan, ...]:
    """A plan cut into words and objects; the k-th object with a box has color k."""
    spans: list[TextSpan] = []
    at = colors = 0
    for item in parse_plan(text).objects:
        if item.start > at:
            spans.append(TextSpan(text[at : item.start]))
        if item.box is None:
            spans.append(TextSpan(item.name, is_object=True))
        else:
            b = item.box
            corners = f"({b.x1},{b.y1})–({b.x2},{b.y2})"
            spans.append(TextSpan(item.name, True, colors % NUM_COLORS, corners))
            colors += 1
        at = item.end
    if at < len(text):
        spans.append(TextSpan(text[at:]))
    return tuple(spans)


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
    """Rectangles of a judge's detections, each in the color of the planned box that it matches."""
    height, width = record.image.shape[:2]
    partner = {j: i for i, j, _ in match_objects(record.planned, found) if j is not None}
    return tuple(
        _mark(name, box, partner[j] % NUM_COLORS if j in partner else None, width, height)
        for j, (name, box) in enumerate(found)
    )


def _score(scores: Mapping[str, float], term: str) -> ScoreValue:
    if term not in scores:
        return ScoreValue("", 0.0)
    value = scores[term]
    share = min(max(value, 0.0), 1.0) if math.isfinite(value) else 0.0
    text = f"{value:.0e}" if _WIDEST <= abs(value) < math.inf else format_decimals(value, 2)
    return ScoreValue(text, share)


def _card_judge(record: SampleRecord, judge: int, result: JudgeResult) -> CardJudge:
    answers = {term: str(text).strip() for term, text in result.raw_answers.items()}
    return CardJudge(
        letter="" if judge < 0 else letter(judge),
        judge=judge,
        style=judge % JUDGE_STYLES,
        detections=_detections(record, result.detections),
        rationale=result.rationale,
        raw_answers=tuple(
            (term, text if len(text) <= MAX_RAW_ANSWER else text[:MAX_RAW_ANSWER] + " …")
            for term, text in answers.items()
            if text
        ),
    )


def build_card(sample: ReportSample, side: int = MAX_SIDE) -> Card:
    """The card of a sample with the results of later judges; `side` as in `image_uri`."""
    record, results = sample.record, sample.results
    # The run's own order of terms first.
    own_scores = {"total": record.total, **record.scores, **record.watched}
    columns = [own_scores, *(r.scores for r in results.values())]
    terms = dict.fromkeys(term for column in columns for term in column)
    own = JudgeResult({}, record.detections, record.rationale, record.raw_answers)
    plan = plan_spans(record.plan_text[:MAX_PLAN])
    return Card(
        record=record,
        image=image_uri(record.image, side),
        planned=_planned(record),
        plan=plan,
        is_cut=len(record.plan_text) > MAX_PLAN,
        is_text=bool(plan) and not any(span.is_object for span in plan),
        scores={term: tuple(_score(column, term) for column in columns) for term in terms},
        own=_card_judge(record, -1, own),
        judges=tuple(_card_judge(record, judge, result) for judge, result in results.items()),
        advantages=_advantages(record),
    )


def _advantages(record: SampleRecord) -> tuple[AdvantageValue, ...]:
    def shown(label: str, value: float) -> AdvantageValue:
        known = value if math.isfinite(value) else 0.0
        share = max(-1.0, min(1.0, known / FULL_ADVANTAGE))
        return AdvantageValue(label, format_signed(value, 2), share)

    if record.image_advantage is None:
        return (shown("advantage", record.advantage),)
    plan, image = record.advantage, record.image_advantage
    return shown("advantage: plan", plan), shown("advantage: image", image)
