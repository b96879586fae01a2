"""What a judge gets and what it returns, in memory and as JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from gotr1_jax.plan import Box, Plan

_CAUSE_LENGTH = 300  # characters
# JSON keys of files that earlier versions wrote.
_RENAMED_KEYS = {"located": "detections", "words": "rationale", "said": "raw_answers"}


@dataclass(frozen=True)
class JudgeRequest:
    """One sample: its caption, its plan, and its image, uint8 (H, W, 3) RGB.

    `group` is equal for the samples of one caption of one step, and differs between any others of
    one call of a judge; it means nothing beyond the call.
    """

    caption: str
    plan: Plan
    image: np.ndarray
    group: int = 0


NOT_FINITE = "the image has values that are not finite"


def to_uint8(image: np.ndarray) -> np.ndarray | None:
    """An image as uint8; floats are from 0 to 255 and rounded. None for `NOT_FINITE` ones."""
    if image.dtype == np.uint8:
        return image
    if not np.isfinite(image).all():
        return None
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class JudgeResult:
    """A judge's answer to one request.

    Attributes:
        scores: a finite value for each of the judge's terms; NaN where it could not be scored.
        detections: (name, box) of the objects that the judge found in the image.
        rationale: the judge's reasons, one line.
        raw_answers: by term, what a model answered, unedited; empty for other judges.
    """

    scores: Mapping[str, float]
    detections: tuple[tuple[str, Box], ...] = ()
    rationale: str = ""
    raw_answers: Mapping[str, str] = field(default_factory=dict)


class Judge(Protocol):
    """Anything that scores samples.

    `terms` are the names that it scores. It may have `meanings`, see `term_meanings`. `identity`
    names everything besides the sample that its scores depend on: judges of equal identity give
    equal scores.

    A judge with an attribute `group_wise` that is True compares the samples of a caption: it gets
    all those of a group in one call, and scores depend on them all. One with an attribute
    `needs_main_thread` that is True, as of all that compute on the devices of the job, is asked in
    the thread that dispatches all other programs. Others may be asked in another thread, one call
    at a time.
    """

    @property
    def terms(self) -> tuple[str, ...]: ...

    @property
    def identity(self) -> str: ...

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        """One result for each request, in their order."""
        ...


def is_group_wise(judge: object) -> bool:
    """Whether a judge must get whole groups of samples (`JudgeRequest.group`)."""
    return bool(getattr(judge, "group_wise", False))


def needs_main_thread(judge: object) -> bool:
    """Whether a judge or engine must be asked in the main thread; see `Judge`."""
    return bool(getattr(judge, "needs_main_thread", False))


def group_places(groups: Iterable[Hashable]) -> list[list[int]]:
    """The places of equal values, groups in the order of their first member."""
    places: dict[Hashable, list[int]] = {}
    for place, group in enumerate(groups):
        places.setdefault(group, []).append(place)
    return list(places.values())


@runtime_checkable
class HasMetrics(Protocol):
    """A judge with metrics of its own, such as the share of answers that it could not read."""

    def pop_metrics(self) -> dict[str, float]:
        """Metrics by name since the last call."""
        ...


def pop_metrics(judge: object) -> dict[str, float]:
    """A judge's own metrics since the last call; empty for a judge without any."""
    return judge.pop_metrics() if isinstance(judge, HasMetrics) else {}


def introduce(judge: object) -> None:
    """Puts one question to whatever a judge asks elsewhere, before a run depends on the answers.

    By the method `introduce` of a judge or engine, which need not have one. UnreachableError where
    there is no answer, RunError where it refuses.
    """
    own = getattr(judge, "introduce", None)
    if own is not None:
        own()


def term_meanings(judge: Judge) -> dict[str, str]:
    """What each of a judge's terms says, one short line; empty where that is not known.

    From its attribute `meanings`, a mapping from term to text, which a judge need not have.
    """
    known = getattr(judge, "meanings", {})
    return {term: str(known.get(term, "")) for term in judge.terms}


def stack_scores(results: Sequence[JudgeResult], terms: Sequence[str]) -> dict[str, np.ndarray]:
    """The scores of B results as one float32 (B,) for each term; NaN where one is missing."""
    nan = float("nan")
    return {t: np.array([r.scores.get(t, nan) for r in results], np.float32) for t in terms}


def commonest_cause(causes: Counter[str]) -> str:
    """Why most of the samples without a score have none, in the judge's words; shortened."""
    cause = causes.most_common(1)[0][0] if causes else ""
    return cause[:_CAUSE_LENGTH] or "the judge gives NaN and no reason"


def result_to_json(result: JudgeResult) -> dict[str, Any]:
    """A result as plain JSON values; NaN becomes None."""
    return {
        "scores": {t: None if math.isnan(s) else float(s) for t, s in result.scores.items()},
        "detections": boxes_to_json(result.detections),
        "rationale": result.rationale,
        "raw_answers": dict(result.raw_answers),
    }


def rename_old_keys(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object of any file with a result in it, under today's keys."""
    return {_RENAMED_KEYS.get(key, key): item for key, item in value.items()}


def result_from_json(value: Mapping[str, Any]) -> JudgeResult:
    """The result in a JSON object, which may have other keys too and may be of an earlier version.

    KeyError, TypeError, ValueError, AttributeError or OverflowError for any other value.
    """
    value = rename_old_keys(value)
    return JudgeResult(
        {t: math.nan if s is None else float(s) for t, s in value["scores"].items()},
        boxes_from_json(value["detections"]),
        str(value["rationale"]),
        # Runs of the first versions did not store raw answers.
        {str(t): str(answer) for t, answer in value.get("raw_answers", {}).items()},
    )


def boxes_to_json(boxes: Sequence[tuple[str, Box]]) -> list[dict[str, Any]]:
    """Named boxes as {"name": ..., "box": [x1, y1, x2, y2]}."""
    return [{"name": name, "box": [b.x1, b.y1, b.x2, b.y2]} for name, b in boxes]


def boxes_from_json(items: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, Box], ...]:
    """What `boxes_to_json` wrote; errors as of `result_from_json`."""
    boxes = tuple((item["name"], Box(*map(int, item["box"]))) for item in items)
    if not all(isinstance(name, str) for name, _ in boxes):
        raise TypeError("the name of a box is no text")
    return boxes
