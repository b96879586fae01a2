"""From questions to readings: the cache, one more try for what cannot be read, and the counts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from gotr1_jax.errors import InputError
from gotr1_jax.rewards.multimodal.answers import read_boxes, read_score, read_verdict
from gotr1_jax.rewards.multimodal.counts import QuestionCounts
from gotr1_jax.rewards.multimodal.instructions import REMINDERS, VERSION
from gotr1_jax.vlm_engine.answer_cache import AnswerCache
from gotr1_jax.vlm_engine.base import Answer, Engine, Kind, Question, ScoringEngine

PixelBox = tuple[float, float, float, float]


@dataclass(frozen=True)
class Reading:
    """What became of one question.

    Attributes:
        score: of a score (on its own scale) or verdict; NaN where it could not be read.
        boxes: of a search, in pixels of the processed image; None where unreadable.
        reason: the judge's reason, one line; where it failed, what went wrong.
        text: the judge's own words, the last ones where it was asked twice.
    """

    score: float = math.nan
    boxes: tuple[PixelBox, ...] | None = None
    reason: str = ""
    text: str = ""

    @property
    def failed(self) -> bool:
        """Whether nothing could be read."""
        return self.boxes is None and math.isnan(self.score)


class EngineClient:
    """Asks an engine each different question once, and once more where the answer is unreadable.

    What could be read is kept in the cache, under the first question's key, the engine's
    identity and the version of the instructions; failures are not, so that they are tried again.
    """

    def __init__(
        self, engine: Engine, expected: bool = False, cache: AnswerCache | None = None
    ) -> None:
        """expected: read scores without decoding. InputError where the engine cannot."""
        if expected and not isinstance(engine, ScoringEngine):
            raise InputError(
                f"questions.reading is 'expected', which {engine.identity} cannot; use 'text'"
            )
        self._engine, self._expected, self._cache = engine, expected, cache
        self.counts = QuestionCounts()

    def ask(self, questions: Sequence[Question]) -> list[Reading]:
        """One reading for each question, in their order."""
        different = {q.key: q for q in questions}
        readings = {k: r for k, q in different.items() if (r := self._stored(q)) is not None}
        self.counts.cached += len(readings)
        left = [q for k, q in different.items() if k not in readings]
        scored = [q for q in left if self._reads_expected(q)]
        readings |= self._ask_expected(scored)
        readings |= self._ask_text([q for q in left if not self._reads_expected(q)])
        return [readings[q.key] for q in questions]

    def _ask_text(self, questions: Sequence[Question]) -> dict[str, Reading]:
        first = self._answer(questions)
        readings = {q.key: _read(q.kind, q, a) for q, a in zip(questions, first)}
        silent = {q.key for q, a in zip(questions, first) if a.error}
        again = [q for q in questions if readings[q.key].failed and q.key not in silent]
        second = self._answer([q.with_reminder(REMINDERS[q.kind]) for q in again])
        readings |= {q.key: _read(q.kind, q, a) for q, a in zip(again, second)}
        failed = [q for q in questions if readings[q.key].failed]
        self.counts.note(questions, again, failed, silent)
        if self._cache is not None:
            kept = (q for q in questions if not readings[q.key].failed)
            self._cache.add({self._place(q): readings[q.key].text for q in kept})
        return readings

    def _ask_expected(self, questions: Sequence[Question]) -> dict[str, Reading]:
        readings = self._expect(questions, questions)
        again = [q for q in questions if readings[q.key].failed]
        readings |= self._expect(again, [q.with_reminder(REMINDERS[q.kind]) for q in again])
        failed = [q for q in questions if readings[q.key].failed]
        self.counts.note(questions, again, failed, set())
        if self._cache is not None:
            kept = (q for q in questions if not readings[q.key].failed)
            self._cache.add({self._place(q): readings[q.key].score for q in kept})
        return readings

    def _expect(
        self, questions: Sequence[Question], worded: Sequence[Question]
    ) -> dict[str, Reading]:
        """Expected scores of `questions`, put to the engine as `worded`."""
        if not questions:
            return {}
        assert isinstance(self._engine, ScoringEngine)
        values = self._engine.expected_scores(worded)
        _same_number(self._engine, worded, values)
        return {q.key: _read_expected(q, value) for q, value in zip(questions, values)}

    def _answer(self, questions: Sequence[Question]) -> list[Answer]:
        if not questions:
            return []
        answers = self._engine.answer(questions)
        _same_number(self._engine, questions, answers)
        return answers

    def _stored(self, question: Question) -> Reading | None:
        value = None if self._cache is None else self._cache.get(self._place(question))
        if value is None:
            return None
        if self._reads_expected(question):
            reading = _read_expected(question, value) if isinstance(value, float) else Reading()
        else:
            reading = _read(question.kind, question, Answer(str(value)))
        return None if reading.failed else reading

    def _reads_expected(self, question: Question) -> bool:
        return self._expected and question.kind == "score"

    def _place(self, question: Question) -> str:
        how = "expected" if self._reads_expected(question) else "text"
        place = f"{self._engine.identity} {VERSION} {how} {question.key}"
        return hashlib.sha256(place.encode()).hexdigest()[:40]


def _same_number(engine: Engine, questions: Sequence[Question], answers: Sequence[object]) -> None:
    if len(answers) != len(questions):
        raise ValueError(
            f"{engine.identity} gave {len(answers)} answers to {len(questions)} questions"
        )


def _read_expected(question: Question, value: float) -> Reading:
    assert question.scale is not None
    if not question.scale.low <= value <= question.scale.high:  # NaN is not either
        return Reading(reason="the logits are not finite")
    return Reading(float(value), reason="expected score")


def _read(kind: Kind, question: Question, answer: Answer) -> Reading:
    problem = _problem(answer)
    if problem:
        return Reading(reason=problem, text=answer.text)
    unreadable = Reading(reason="unreadable answer", text=answer.text)
    if kind == "boxes":
        boxes = read_boxes(answer.text)
        return unreadable if boxes is None else Reading(boxes=tuple(boxes), text=answer.text)
    if kind == "verdict":
        bit = read_verdict(answer.text)
        reason = " ".join(answer.text.split())
        return unreadable if bit is None else Reading(bit, reason=reason, text=answer.text)
    assert question.scale is not None
    found = read_score(answer.text, question.scale.low, question.scale.high)
    if found is None:
        return unreadable
    return Reading(found.score, reason=found.reason, text=answer.text)


def _problem(answer: Answer) -> str:
    if answer.error:
        return answer.error
    if not answer.finite:
        return "the logits are not finite"
    if answer.truncated:
        return "the answer was cut off"
    return "" if answer.text.strip() else "the answer is empty"
