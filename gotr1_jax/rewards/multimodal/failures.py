"""How often a judge could not be read, as metrics, and when that is reason to stop."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from gotr1_jax.errors import InputError
from gotr1_jax.rewards.multimodal.questions import Question


@dataclass
class AskingCounts:
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
class CountsAnswers(Protocol):
    """A judge that counts what it could not read."""

    def take_figures(self) -> dict[str, float]:
        """The figures of `AskingCounts` since they were last taken."""
        ...


def take_figures(judge: object) -> dict[str, float]:
    """A judge's own figures since they were last taken; none where it keeps none."""
    return judge.take_figures() if isinstance(judge, CountsAnswers) else {}


class FailureTracker:
    """Says when a judge fails too often for training to go on.

    A row has failed when a term of it is NaN (`judge/failed_frac`). The share is over all rows of
    the last `steps` steps; nothing is said before there are as many.
    """

    def __init__(self, limit: float = 0.2, steps: int = 10) -> None:
        """limit: the share above which training is to stop, 0..1; 1 never stops it."""
        if not 0 <= limit <= 1 or steps < 1:
            raise InputError(
                f"a failure limit of {limit} over {steps} steps is none; use 0 to 1 and 1 step or "
                "more"
            )
        self._limit = limit
        self._window: deque[tuple[int, int]] = deque(maxlen=steps)

    def add(self, failed: int, rows: int) -> str | None:
        """Take in a step's rows; a line that says why to stop, or None to go on."""
        if not 0 <= failed <= rows:
            raise ValueError(f"{failed} failed of {rows} rows")
        self._window.append((failed, rows))
        bad, total = (sum(column) for column in zip(*self._window))
        steps = self._window.maxlen
        if len(self._window) < (steps or 0) or bad <= self._limit * total:
            return None
        return (
            f"the judge could not score {bad} of {total} samples of the last {steps} steps "
            f"({bad / total:.0%}, more than the {self._limit:.0%} allowed): see the judge's words "
            "in samples/, and correct the judge or raise the limit"
        )
