"""The exact judge of the shapes world behind the `Judge` protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gotr1_jax.rewards.base import JudgeRequest, JudgeResult
from gotr1_jax.rewards.published import GOTR1_TERMS, MEANINGS
from gotr1_jax.shapes.judge import judge_sample


class ShapesJudge:
    """Scores the terms of the shapes world; deterministic, without state."""

    identity = "shapes"
    meanings = MEANINGS

    def __init__(self, terms: Sequence[str] | Mapping[str, str] = GOTR1_TERMS) -> None:
        """terms: those to score, out of SHAPES_TERMS; a mapping gives them other names, name to
        term."""
        self._scores = dict(terms) if isinstance(terms, Mapping) else {t: t for t in terms}
        self.terms: tuple[str, ...] = tuple(self._scores)
        if isinstance(terms, Mapping):
            self.meanings = {n: f"exact judge: {MEANINGS[t]}" for n, t in terms.items()}
        self.detecting_terms = tuple(name for name, t in self._scores.items() if t == "ri")

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        """One result for each request."""
        return [self._judge_one(request) for request in requests]

    def _judge_one(self, request: JudgeRequest) -> JudgeResult:
        judged = judge_sample(request.caption, request.plan, request.image)
        scores = {name: judged.scores[term] for name, term in self._scores.items()}
        return JudgeResult(scores, judged.detections, judged.rationale)
