"""The exact judge of the shapes world behind the `Judge` protocol."""

from __future__ import annotations

from collections.abc import Sequence

from gotr1_jax.rewards.base import JudgeRequest, JudgeResult
from gotr1_jax.rewards.published import GOTR1_TERMS, MEANINGS
from gotr1_jax.shapes.judge import judge_sample


class ShapesJudge:
    """Scores the terms of the shapes world; deterministic, without state."""

    identity = "shapes"
    meanings = MEANINGS
    detecting_terms = ("ri",)

    def __init__(self, terms: Sequence[str] = GOTR1_TERMS) -> None:
        """terms: those to score, out of SHAPES_TERMS."""
        self.terms: tuple[str, ...] = tuple(terms)

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        """One result for each request."""
        return [self._judge_one(request) for request in requests]

    def _judge_one(self, request: JudgeRequest) -> JudgeResult:
        judged = judge_sample(request.caption, request.plan, request.image)
        scores = {term: judged.scores[term] for term in self.terms}
        return JudgeResult(scores, judged.detections, judged.rationale)
