"""One attempt at a sample: the plans and images drawn for it, and what is kept of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gotr1_jax.generate.batches import SampleTask
from gotr1_jax.generate.search.verify import PlanVerdict
from gotr1_jax.plan import Plan


@dataclass(frozen=True)
class DrawnImage:
    """Image tokens, pixels uint8 (H, W, 3), and the judge's scores (empty: not judged)."""

    image_ids: list[int]
    pixels: np.ndarray
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Attempt:
    """The state of one attempt.

    Attributes:
      row: the sample.
      number: from 0; the random keys of its draws follow from it.
      plans: token ids of the plans drawn, BOI last.
      verdicts: of them; empty where plans are not verified.
      plan_ids: the plan to paint; empty until one is chosen.
      plan_index: which of the plans it is.
      moved: (name, box before, box after) of the boxes that were repaired.
      repair_note: why the plan was not repaired; empty where it was, or need not be.
      images: of the plan to paint.
      image_index: the one that is kept; None until the attempt is over.
      scores, total: of the kept image, where attempts are compared; NaN: it has no total.
    """

    row: SampleTask
    number: int
    plans: list[list[int]] = field(default_factory=list)
    verdicts: list[PlanVerdict] = field(default_factory=list)
    plan_ids: list[int] = field(default_factory=list)
    plan_index: int = 0
    moved: list[tuple[str, list[int], list[int]]] = field(default_factory=list)
    repair_note: str = ""
    images: list[DrawnImage] = field(default_factory=list)
    image_index: int | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    total: float = math.nan

    @property
    def image(self) -> DrawnImage | None:
        """The image that is kept."""
        return None if self.image_index is None else self.images[self.image_index]

    def note_moves(self, before: Plan, after: Plan, moved: Sequence[int]) -> None:
        """Keep which boxes a repair has moved."""
        for index in moved:
            old, new = before.objects[index].box, after.objects[index].box
            assert old is not None and new is not None
            corners = [[b.x1, b.y1, b.x2, b.y2] for b in (old, new)]
            self.moved.append((before.objects[index].name, corners[0], corners[1]))

    def to_json(self) -> dict[str, Any]:
        """What was drawn and found."""
        entry: dict[str, Any] = {"plans": len(self.plans), "plan": self.plan_index}
        if self.verdicts:
            entry["verdicts"] = [verdict.to_json() for verdict in self.verdicts]
        entry["repaired"] = [{"name": n, "from": a, "to": b} for n, a, b in self.moved]
        if self.repair_note:
            entry["not_repaired"] = self.repair_note
        entry["images"] = len(self.images)
        entry["image"] = self.image_index
        judged = [_plain(image.scores) for image in self.images if image.scores]
        if judged:
            entry["image_scores"] = judged
        if self.scores:
            entry |= {"scores": _plain(self.scores), **_plain({"total": self.total})}
        return entry


def _plain(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {t: round(float(s), 6) if math.isfinite(s) else None for t, s in scores.items()}


def best_by(values: Sequence[float]) -> int:
    """Index of the largest value, the first of equal ones; NaN only where all are."""
    known = [i for i, value in enumerate(values) if not math.isnan(value)]
    return max(known, key=lambda i: values[i], default=0)


def best_plan(verdicts: Sequence[PlanVerdict]) -> int:
    """The first that passed, else the largest margin, else the first."""
    passed = [i for i, verdict in enumerate(verdicts) if verdict.passed]
    return passed[0] if passed else best_by([verdict.margin for verdict in verdicts])


def search_record(attempts: Sequence[Attempt], chosen: int) -> dict[str, Any]:
    """The entry `search` of a sample: every attempt, the one that is kept, and what all cost."""
    images = [image for attempt in attempts for image in attempt.images]
    return {
        "chosen": chosen,
        "attempts": [attempt.to_json() for attempt in attempts],
        "cost": {
            "plans": sum(len(attempt.plans) for attempt in attempts),
            "plan_tokens": sum(len(ids) for attempt in attempts for ids in attempt.plans),
            "images": len(images),
            "image_tokens": sum(len(image.image_ids) for image in images),
        },
    }
