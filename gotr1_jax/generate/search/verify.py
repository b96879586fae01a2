"""Verification of plans: by a caption's relations where rules read them, else by the judge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from gotr1_jax.generate.search.config import SearchConfig
from gotr1_jax.plan import Plan
from gotr1_jax.plan.caption_relations import parse_relations
from gotr1_jax.plan.relations import SHAPES_RULE, LayoutGoal, check_layout
from gotr1_jax.rewards.base import Judge, JudgeRequest
from gotr1_jax.shapes.captions import parse_caption

_BLANK = 64  # pixels of the blank image that a judge gets with a plan alone


@dataclass(frozen=True)
class PlanVerdict:
    """What was found about a plan.

    Attributes:
      passed: None: it could not be verified.
      margin: by how much it passed, below 0: failed; NaN: unknown.
      by: what verified it.
      reasons: why it did not pass, or could not be verified.
    """

    passed: bool | None
    margin: float
    by: Literal["rules", "judge", "nothing"]
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; an unknown margin is null."""
        margin = round(self.margin, 6) if math.isfinite(self.margin) else None
        return {
            "passed": self.passed, "margin": margin, "by": self.by, "reasons": list(self.reasons)
        }  # fmt: skip


NO_RULES = "the rules do not understand the caption's relations"


@lru_cache(maxsize=65536)
def caption_goal(caption: str) -> LayoutGoal | None:
    """What a caption asks of a layout; None where the rules do not understand it.

    Captions of the shapes world are read by that world's own grammar and held to its exact rule,
    others by `parse_relations`.
    """
    spec = parse_caption(caption)
    if spec is None:
        return parse_relations(caption)
    relations = () if spec.relation is None else ((0, spec.relation, 1),)
    return LayoutGoal(tuple(item.name for item in spec.objects), relations, SHAPES_RULE)


class PlanVerifier:
    """Verifies plans; `judge` scores those whose captions no rule reads, None: they stay open."""

    def __init__(self, config: SearchConfig, judge: Judge | None) -> None:
        self._config, self._judge = config, judge

    def __call__(self, samples: Sequence[tuple[str, Plan]]) -> list[PlanVerdict]:
        """A verdict for each (caption, plan)."""
        goals = [caption_goal(caption) for caption, _ in samples]
        asked = [i for i, goal in enumerate(goals) if goal is None]
        judged = iter(self._ask([samples[i] for i in asked]))
        return [
            next(judged) if goal is None else _by_rules(goal, plan)
            for goal, (_, plan) in zip(goals, samples)
        ]

    def _ask(self, samples: Sequence[tuple[str, Plan]]) -> list[PlanVerdict]:
        if self._judge is None:
            reasons = (f"{NO_RULES}, and no judge that scores plans is configured",)
            return [PlanVerdict(None, math.nan, "nothing", reasons)] * len(samples)
        if not samples:
            return []
        blank = np.full((_BLANK, _BLANK, 3), 255, np.uint8)
        results = self._judge.judge([JudgeRequest(c, plan, blank) for c, plan in samples])
        verdicts = []
        for result in results:
            scores = {t: s for t, s in result.scores.items() if t in self._config.plan_terms}
            worst = min(scores.values(), default=math.nan)
            if not all(map(math.isfinite, scores.values())) or not scores:
                why = f"the judge could not score the plan: {result.rationale}"
                verdicts.append(PlanVerdict(None, math.nan, "judge", (why,)))
                continue
            margin = worst - self._config.plan_score
            low = [f"{t} is {s:.3f}" for t, s in scores.items() if s < self._config.plan_score]
            verdicts.append(PlanVerdict(margin >= 0, margin, "judge", tuple(low)))
        return verdicts


def _by_rules(goal: LayoutGoal, plan: Plan) -> PlanVerdict:
    check = check_layout(goal, plan)
    return PlanVerdict(check.holds, check.margin, "rules", check.reasons)
