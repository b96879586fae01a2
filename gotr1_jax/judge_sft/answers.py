"""The right answers to a multimodal judge's questions, from the exact judge of the shapes world.

In the format that the questions ask for and `rewards.multimodal` reads. Scores are rounded to whole
numbers of their scale, halves up; boxes to whole pixels of the image as the model gets it, or to
thousandths of its sides. Reasons are what the exact judge saw, in a few words.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gotr1_jax.plan import Box, Plan
from gotr1_jax.plan.boxes import SCALE
from gotr1_jax.rewards.base import JudgeRequest
from gotr1_jax.rewards.multimodal.instructions import SCORE_PREFIX
from gotr1_jax.rewards.multimodal.questions import LAYOUT_TERM
from gotr1_jax.shapes.captions import CaptionSpec, parse_caption
from gotr1_jax.shapes.detect import DetectedObject
from gotr1_jax.shapes.judge import TRUE_FROM, ShapesScores, is_shown_by, judge_sample, parse_name
from gotr1_jax.vlm_engine.base import Question, Scale

# What every answer of a kind has in it; each is one token of a new tokenizer.
ANSWER_PIECES = (
    SCORE_PREFIX, ', "reason": "', '"}', '[{"bbox_2d": [', '], "label": "', '"}, {"bbox_2d": [',
    '"}]', "\\boxed{", ": yes\n", ": no\n", "nothing else", "the image shows ",
    "nothing is missing", "missing: ",
)  # fmt: skip


INVENTORY = (
    "Which objects are in this image, and where? Answer with a JSON list of all of them, from left "
    'to right: {"bbox_2d": [x1, y1, x2, y2], "label": "..."} for each.'
)
"""The instruction of the question that teaches to see: its answer needs no name to look for."""


@dataclass(frozen=True)
class GradedSample:
    """A sample, and what the exact judge gives it.

    Attributes:
      request: caption, plan and image.
      scores: of `judge_sample`.
      wanted: the caption; None if it is not of this world.
    """

    request: JudgeRequest
    scores: ShapesScores
    wanted: CaptionSpec | None

    @property
    def shown(self) -> list[tuple[str, Box]]:
        """(name, box) of the objects in the image, from left to right."""
        return sorted(self.scores.detections, key=lambda item: (item[1].x1, item[1].y1))


def grade(request: JudgeRequest) -> GradedSample:
    """The sample with the exact judge's scores."""
    scores = judge_sample(request.caption, request.plan, request.image)
    return GradedSample(request, scores, parse_caption(request.caption))


def score_answer(score: float, scale: Scale, reason: str) -> str:
    """A score in [0, 1] on a scale, and why: {"score": 7, "reason": "..."}."""
    value = math.floor(scale.low + score * (scale.high - scale.low) + 0.5)
    return f"{SCORE_PREFIX}{value}, {json.dumps({'reason': reason})[1:]}"


def boxes_answer(found: Sequence[tuple[str, Box]], size: tuple[int, int]) -> str:
    """The JSON list of boxes, labelled with their names, in whole units of an image of `size`
    (height, width)."""
    height, width = size
    sides = np.array([width, height, width, height]) / SCALE
    items = [
        {"bbox_2d": [int(v) for v in np.rint((b.x1, b.y1, b.x2, b.y2) * sides)], "label": name}
        for name, b in found
    ]
    return json.dumps(items)


def verdict_answer(checks: Sequence[tuple[str, bool]], shown: str, decision: bool) -> str:
    """What is seen, each thing that was looked at, and the decision."""
    lines = "".join(f"{name}: {'yes' if holds else 'no'}\n" for name, holds in checks)
    return f"{shown}\n{lines}\\boxed{{{int(decision)}}}"


def right_answer(term: str, question: Question, sample: GradedSample) -> str | None:
    """The answer to a question about a score or verdict of a sample.

    None where the exact judge gives none: for captions of another world.
    """
    score = sample.scores.scores[term]
    if sample.wanted is None or np.isnan(score):
        return None
    if question.kind == "verdict":
        checks = caption_checks(sample.wanted, sample.scores.found, bool(score))
        return verdict_answer(checks, _describe(sample), bool(score))
    assert question.scale is not None
    if term == LAYOUT_TERM:
        reason = _planned_relation(sample.wanted, sample)
    elif not question.images:
        reason = _missing(sample.wanted, sample.request.plan)
    else:
        reason = _describe(sample)
    return score_answer(score, question.scale, reason)


def search_answer(name: str, sample: GradedSample, size: tuple[int, int]) -> str:
    """Where the objects are that are of a name's color and shape; its size does not count, as in
    the exact ri. `size` is the image's (height, width) that coordinates refer to."""
    spec = parse_name(name)
    found = [
        (name, box)
        for seen, box in sample.shown
        if spec is not None and (other := parse_name(seen)) is not None and other.kind == spec.kind
    ]
    return boxes_answer(found, size)


def inventory_answer(sample: GradedSample, size: tuple[int, int]) -> str:
    """Where all objects of the image are and what they are, from left to right; `size` as above."""
    return boxes_answer(sample.shown, size)


def caption_checks(
    wanted: CaptionSpec, found: Sequence[DetectedObject], decision: bool
) -> list[tuple[str, bool]]:
    """What a caption says, piece by piece, and whether the image shows it.

    The relation comes last, and only where all objects are right: it then decides.
    """
    checks = []
    for spec, count in Counter(wanted.objects).items():
        same = [f for f in found if is_shown_by(spec, f)]
        checks.append((f"{count} {spec.name}", len(same) == count))
    checks.append(("nothing else", len(found) <= len(wanted.objects)))
    if wanted.relation is not None and all(holds for _, holds in checks):
        checks.append((wanted.relation, decision))
    return checks


def _describe(sample: GradedSample) -> str:
    names = ", ".join(name for name, _ in sample.shown)
    return f"the image shows {names or 'nothing'}"


def _missing(wanted: CaptionSpec, plan: Plan) -> str:
    """The objects of a caption that a plan does not name."""
    named = [spec for item in plan.objects if (spec := parse_name(item.name)) is not None]
    missing = []
    for spec in wanted.objects:
        same = [n for n in named if n.kind == spec.kind and spec.size in (None, n.size)]
        if same:
            named.remove(same[0])
        else:
            missing.append(spec.name)
    return f"missing: {', '.join(missing)}" if missing else "nothing is missing"


def _planned_relation(wanted: CaptionSpec, sample: GradedSample) -> str:
    """How many things are planned, and whether the boxes keep to the relation."""
    text = f"{len(sample.request.plan.boxes)} of {len(wanted.objects)} things"
    if wanted.relation is None:
        return text
    holds = sample.scores.plan_relation >= TRUE_FROM
    return f"{text}, {wanted.relation}: {'yes' if holds else 'no'}"
