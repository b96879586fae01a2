"""How often a judge could not be read, as metrics, and when that is reason to stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from gotr1_jax.vlm_engine.base import Question


@dataclass
class QuestionCounts:
    """Questions since the figures were last taken; different ones count once a call.

    Attributes:
        asked: put to the engine.
        cached: answered from the cache instead.
        again: asked once more, because the first answer was unreadable.
        failed: without a readable answer in the end, by kind.
        silent: those of them for which the engine had no answer at all.
        by_kind: put to the engine, by kind.
    """

    asked: int = 0
    cached: int = 0
    again: int = 0
    silent: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    by_kind: Counter[str] = field(default_factory=Counter)

    def note(
        self, questions: Sequence[Question], again: Sequence[Question],
        failed: Sequence[Question], silent: Set[str],
    ) -> None:  # fmt: skip
        """Count one round of questions."""
        self.asked += len(questions)
        self.again += len(again)
        self.silent += len(silent)
        self.by_kind.update(q.kind for q in questions)
        self.failed.update(q.kind for q in failed)

    def figures(self) -> dict[str, float]:
        """Metrics by name.

        `judge/questions` (put to the engine), `judge/cached_frac` of all, and of those put to
        the engine `judge/asked_twice_frac`, `judge/no_answer_frac` and `judge/unread_frac`, the
        last also for each kind. A share of nothing is left out.
        """
        figures = {"judge/questions": float(self.asked)}
        if self.asked + self.cached:
            figures["judge/cached_frac"] = self.cached / (self.asked + self.cached)
        if self.asked:
            figures["judge/asked_twice_frac"] = self.again / self.asked
            figures["judge/no_answer_frac"] = self.silent / self.asked
            figures["judge/unread_frac"] = self.failed.total() / self.asked
        for kind, number in sorted(self.by_kind.items()):
            figures[f"judge/unread_frac/{kind}"] = self.failed[kind] / number
        return figures


@runtime_checkable
class HasMetrics(Protocol):
    """A judge that counts what it could not read."""

    def pop_metrics(self) -> dict[str, float]:
        """The figures of `QuestionCounts` since they were last taken."""
        ...


def pop_metrics(judge: object) -> dict[str, float]:
    """A judge's own figures since they were last taken; none where it keeps none."""
    return judge.pop_metrics() if isinstance(judge, HasMetrics) else {}
