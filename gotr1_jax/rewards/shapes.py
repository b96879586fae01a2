"""The exact judge of the shapes world as a judge of rewards."""

from __future__ import annotations

from collections.abc import Sequence

from gotr1_jax.rewards.base import JudgeRequest, JudgeResult
from gotr1_jax.shapes.captions import parse_caption
from gotr1_jax.shapes.detect import find_objects
from gotr1_jax.shapes.judge import (
    SHAPES_TERMS,
    _overlap_score,
    _paint_score,
    _plan_scores,
    parse_name,
    verdict,
)


class ShapesJudge:
    """Scores the terms of the shapes world; deterministic, without state."""

    identity = "shapes"

    def __init__(self, terms: Sequence[str] = ("sem", "spa", "ri", "pi")) -> None:
        """terms: those that are scored, out of SHAPES_TERMS."""
        self.terms: tuple[str, ...] = tuple(terms)

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        """One result for each request; a few milliseconds each at most."""
        return [self._judge_one(request) for request in requests]

    def _judge_one(self, request: JudgeRequest) -> JudgeResult:
        caption, plan = parse_caption(request.caption), request.plan
        found = find_objects(request.image)
        detections = tuple((f.name, f.plan_box) for f in found)
        specs = [parse_name(item.name) for item in plan.objects]
        sem = spa = pi = told = plan_relation = relation = float("nan")
        ri, num_found = _overlap_score(plan, specs, found) if plan.objects else (0.0, 0)
        if caption is None:
            ri = ri if any(specs) else float("nan")
            rationale = "the caption is not of the shapes world"
        else:
            pi, relation = _paint_score(caption, found)
            told = float(verdict(caption, found))
            sem, spa, plan_relation = (
                _plan_scores(plan, caption, specs) if plan.objects else (0.0, 0.0, 0.0)
            )
            rationale = f"wanted {len(caption.objects)}"
        if plan.objects:
            rationale += (
                f"; planned {len(plan.objects) + plan.num_dropped}, {num_found} of them found"
            )
        rationale += f"; in the image: {', '.join(f.name for f in found) or 'nothing'}"
        if caption is not None and caption.relation is not None:
            planned = f"plan {plan_relation:.2f}, " if plan.objects else ""
            rationale += f"; {caption.relation}: {planned}image {relation:.2f}"
        scores = dict(zip(SHAPES_TERMS, (sem, spa, ri, pi, told)))
        return JudgeResult({term: scores[term] for term in self.terms}, detections, rationale)
