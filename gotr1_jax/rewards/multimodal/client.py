"""From questions to parsed answers: the cache, one retry of what cannot be read, and the counts."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from gotr1_jax.errors import InputError
from gotr1_jax.rewards.base import introduce
from gotr1_jax.rewards.multimodal.answers import parse_score, parse_verdict
from gotr1_jax.rewards.multimodal.box_answers import fit_boxes, parse_boxes
from gotr1_jax.rewards.multimodal.instructions import REMINDERS, VERSION, judged_text
from gotr1_jax.rewards.multimodal.thoughts import UnreadableError
from gotr1_jax.rewards.multimodal.words import parse_word
from gotr1_jax.vlm_engine.answer_cache import AnswerCache
from gotr1_jax.vlm_engine.base import (
    Answer,
    Engine,
    FirstTokenEngine,
    Kind,
    Question,
    ScoringEngine,
)

_log = logging.getLogger(__name__)
_ENOUGH_BOXES = 64
_NEAR = 0.6  # of a side; pixels of 392 by 392, read as thousandths, all end before 0.4

PixelBox = tuple[float, float, float, float]


@dataclass(frozen=True)
class ParsedAnswer:
    """The outcome of one question.

    Attributes:
        score: of a score (on its own scale) or verdict; NaN where it could not be read.
        boxes: of a search, in pixels of the processed image; None where unreadable.
        reason: the model's reason, one line; where it failed, what went wrong.
        text: the model's answer, the second one where it was asked twice.
        missing: the engine gave no answer at all.
    """

    score: float = math.nan
    boxes: tuple[PixelBox, ...] | None = None
    reason: str = ""
    text: str = ""
    missing: bool = False

    @property
    def failed(self) -> bool:
        """Whether nothing could be read."""
        return self.boxes is None and math.isnan(self.score)


@dataclass
class QuestionCounts:
    """Questions since the metrics were last taken; equal ones count once a call.

    Attributes:
        asked: put to the engine.
        cached: answered from the cache instead.
        again: asked once more, because the first answer was unreadable.
        missing: without any answer of the engine.
        failed: without a readable answer in the end, `missing` included, by kind.
        by_kind: put to the engine, by kind.
        tokens_in, tokens_out: read and written for these, second tries included, where the
            engine counts them.
    """

    asked: int = 0
    cached: int = 0
    again: int = 0
    missing: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    by_kind: Counter[str] = field(default_factory=Counter)
    tokens_in: int = 0
    tokens_out: int = 0

    def metrics(self) -> dict[str, float]:
        """Metrics by name.

        `judge/questions` (put to the engine), `judge/cached_frac` of all, and of those put to
        the engine `judge/asked_twice_frac`, `judge/no_answer_frac` and `judge/unread_frac`, the
        last also for each kind. A share of nothing is left out. `judge/tokens_in` and
        `judge/tokens_out` where the engine counts them.
        """
        metrics = {"judge/questions": float(self.asked)}
        if self.asked + self.cached:
            metrics["judge/cached_frac"] = self.cached / (self.asked + self.cached)
        if self.asked:
            metrics["judge/asked_twice_frac"] = self.again / self.asked
            metrics["judge/no_answer_frac"] = self.missing / self.asked
            metrics["judge/unread_frac"] = self.failed.total() / self.asked
        for kind, number in sorted(self.by_kind.items()):
            metrics[f"judge/unread_frac/{kind}"] = self.failed[kind] / number
        if self.tokens_in or self.tokens_out:
            metrics["judge/tokens_in"] = float(self.tokens_in)
            metrics["judge/tokens_out"] = float(self.tokens_out)
        return metrics


class EngineClient:
    """Asks an engine each different question once, and once more where the answer is unreadable.

    What could be read is kept in the cache, under the first question's key, the engine's
    identity and the version of the instructions; failures are not, so that they are asked again.
    """

    def __init__(
        self, engine: Engine, expected: bool = False, cache: AnswerCache | None = None,
        words_only: bool = False,
    ) -> None:  # fmt: skip
        """expected: read scores without decoding. words_only: only questions of the kind "word" are
        asked. InputError where the engine cannot."""
        self._by_first_token = expected and isinstance(engine, FirstTokenEngine)
        if expected and not isinstance(engine, ScoringEngine):
            if not self._by_first_token:
                raise InputError(
                    f"questions.reading is 'expected', which {engine.identity} cannot; use 'text'"
                )
            if not words_only:
                raise InputError(
                    f"questions.reading is 'expected', which {engine.identity} can only where one "
                    "word answers (soft_tifa, gotr1 eval geneval2 and checklist); use 'text'"
                )
        self._engine, self._expected, self._cache = engine, expected, cache
        self._counts = QuestionCounts()
        self._num_boxes, self._farthest, self._warned = 0, 0.0, False

    def introduce(self) -> None:
        """Puts questions to an engine elsewhere, before anything depends on the answers; see
        `rewards.base.introduce`."""
        introduce(self._engine)
        if self._by_first_token:
            assert isinstance(self._engine, FirstTokenEngine)
            self._engine.introduce_words()

    def ask(self, questions: Sequence[Question]) -> list[ParsedAnswer]:
        """One parsed answer for each question, in their order."""
        different = {q.key: q for q in questions}
        parsed = {k: p for k, q in different.items() if (p := self._stored(q)) is not None}
        self._counts.cached += len(parsed)
        new = [q for k, q in different.items() if k not in parsed]
        for expected in (True, False):
            parsed |= self._ask_twice([q for q in new if self._reads_expected(q) == expected])
        return [parsed[q.key] for q in questions]

    def pop_counts(self) -> QuestionCounts:
        """The counts since the last call."""
        counts, self._counts = self._counts, QuestionCounts()
        return counts

    def _ask_twice(self, questions: Sequence[Question]) -> dict[str, ParsedAnswer]:
        """Parsed answers by key; the questions are all read in the same way."""
        parsed = dict(zip([q.key for q in questions], self._send(questions)))
        missing = sum(answer.missing for answer in parsed.values())
        again = [q for q in questions if parsed[q.key].failed and not parsed[q.key].missing]
        reminded = [q.with_reminder(REMINDERS[q.kind]) for q in again]
        parsed |= zip([q.key for q in again], self._send(reminded))
        counts = self._counts
        counts.asked += len(questions)
        counts.again += len(again)
        counts.missing += missing
        counts.by_kind.update(q.kind for q in questions)
        counts.failed.update(q.kind for q in questions if parsed[q.key].failed)
        if self._cache is not None:
            self._cache.add(
                {
                    self._cache_key(q): p.score if self._reads_expected(q) else p.text
                    for q in questions
                    if not (p := parsed[q.key]).failed
                }
            )
        return parsed

    def _send(self, questions: Sequence[Question]) -> list[ParsedAnswer]:
        """Put to the engine at once; all of them are read in the same way."""
        if not questions:
            return []
        if self._reads_expected(questions[0]) and isinstance(self._engine, ScoringEngine):
            scores = self._engine.expected_scores(questions)
            self._check_number(questions, scores)
            return [_parse_expected(q, score) for q, score in zip(questions, scores)]
        by_token = self._reads_expected(questions[0])
        if by_token:
            assert isinstance(self._engine, FirstTokenEngine)
            answers = self._engine.word_answers(questions)
        else:
            answers = self._engine.answer(questions)
        self._check_number(questions, answers)
        self._counts.tokens_in += sum(answer.tokens_in for answer in answers)
        self._counts.tokens_out += sum(answer.tokens_out for answer in answers)
        if by_token:
            return [_parse_probability(q, answer) for q, answer in zip(questions, answers)]
        parsed = [_parse(self._engine, q, answer) for q, answer in zip(questions, answers)]
        self._watch_units(questions, parsed)
        return parsed

    def _watch_units(self, questions: Sequence[Question], parsed: Sequence[ParsedAnswer]) -> None:
        """Warns once where all of many boxes end in the first part of each side.

        Pixels of a small image can all be thousandths: no single answer shows that they are not.
        """
        for question, answer in zip(questions, parsed):
            if not (answer.boxes and question.images):
                continue
            height, width = self._engine.image_size(*question.images[0].size)
            for _, _, x2, y2 in answer.boxes:
                self._num_boxes += 1
                self._farthest = max(self._farthest, x2 / width, y2 / height)
        if not self._warned and self._num_boxes >= _ENOUGH_BOXES and self._farthest < _NEAR:
            self._warned = True
            _log.warning(
                "none of %d boxes of %s reaches beyond %.0f %% of a side; does the model answer in "
                "other units (judge.http.coordinates)?",
                self._num_boxes, self._engine.identity, 100 * self._farthest,
            )  # fmt: skip

    def _check_number(self, questions: Sequence[Question], answers: Sequence[object]) -> None:
        if len(answers) != len(questions):
            raise ValueError(
                f"{self._engine.identity} gave {len(answers)} answers to {len(questions)} questions"
            )

    def _stored(self, question: Question) -> ParsedAnswer | None:
        value = None if self._cache is None else self._cache.get(self._cache_key(question))
        if value is None:
            return None
        if not self._reads_expected(question):
            parsed = _parse(self._engine, question, Answer(str(value)))
        else:
            parsed = _parse_expected(question, value if isinstance(value, float) else math.nan)
        return None if parsed.failed else parsed

    def _reads_expected(self, question: Question) -> bool:
        return self._expected and question.kind in ("score", "word")

    def _cache_key(self, question: Question) -> str:
        how = "expected" if self._reads_expected(question) else "text"
        place = f"{self._engine.identity} {VERSION} {how} {question.key}"
        return hashlib.sha256(place.encode()).hexdigest()[:40]


def _parse_expected(question: Question, value: float) -> ParsedAnswer:
    low, high = (0, 1) if question.scale is None else (question.scale.low, question.scale.high)
    if not low <= value <= high:  # NaN is not either
        return ParsedAnswer(reason="the logits are not finite")
    return ParsedAnswer(float(value), reason="expected score")


def _parse_probability(question: Question, answer: Answer) -> ParsedAnswer:
    if answer.error:
        return ParsedAnswer(reason=answer.error, missing=True)
    if answer.probability is None:
        return ParsedAnswer(reason=answer.note or "no probability")
    return _parse_expected(question, answer.probability)


def _parse(engine: Engine, question: Question, answer: Answer) -> ParsedAnswer:
    text = answer.text
    if answer.error:
        return ParsedAnswer(reason=answer.error, text=text, missing=True)
    problem = _problem(question, answer)
    if problem:
        return ParsedAnswer(reason=problem, text=text)
    judged = judged_text(question)
    try:
        if question.kind == "boxes":
            return ParsedAnswer(boxes=_read_boxes(engine, question, text, judged), text=text)
        if question.kind == "verdict":
            found = parse_verdict(text, judged)
        elif question.words is not None:
            found = parse_word(text, question.words)
        else:
            assert question.scale is not None
            found = parse_score(text, question.scale.low, question.scale.high, judged)
        return ParsedAnswer(found.score, reason=found.reason, text=text)
    except UnreadableError as error:
        cause = f": {error}" if str(error) else ""
        return ParsedAnswer(reason=f"unreadable answer{cause}", text=text)


def _read_boxes(engine: Engine, question: Question, text: str, judged: str) -> tuple[PixelBox, ...]:
    boxes = parse_boxes(text, judged.strip())
    if not question.images:
        return tuple(boxes)
    return tuple(fit_boxes(boxes, engine.image_size(*question.images[0].size)))


def _problem(question: Question, answer: Answer) -> str:
    if not answer.finite:
        return "the logits are not finite"
    more = f"raise judge.questions.{_LIMITS[question.kind]}"
    empty = not answer.text.strip()
    note = f" ({answer.note})" if answer.note else ""
    if answer.truncated:
        what = "the answer is empty" if empty else "the answer was cut off"
        return f"{what}, cut at {question.max_answer_tokens} tokens{note}: {more}"
    return f"the answer is empty{note}" if empty else ""


_LIMITS: dict[Kind, str] = {
    "score": "score_tokens", "boxes": "boxes_tokens", "verdict": "verdict_tokens",
    "word": "score_tokens",
}  # fmt: skip
