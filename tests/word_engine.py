"""Engines that answer questions of one word by a script."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

from gotr1_jax.vlm_engine.base import Answer, Question


class WordEngine:
    """Gives the probability that `says` has for a question; NaN where that is None."""

    def __init__(self, says: Callable[[Question], float | None]) -> None:
        self.identity, self._says = "scripted", says
        self.asked: list[Question] = []

    def expected_scores(self, questions: Sequence[Question]) -> list[float]:
        self.asked += questions
        found = [self._says(question) for question in questions]
        return [float("nan") if p is None else p for p in found]

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        raise AssertionError("text was asked for")

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width


class TalkingEngine:
    """Answers with a text, by the question's text; has no distributions."""

    def __init__(self, says: Mapping[str, str]) -> None:
        self.identity, self._says = "talking", says

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        return [Answer(next(v for k, v in self._says.items() if k in q.text)) for q in questions]

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width


def chance(question: Question) -> float:
    """A probability that hangs on the question alone."""
    return int(hashlib.sha256(question.key.encode()).hexdigest()[:8], 16) / 16**8
