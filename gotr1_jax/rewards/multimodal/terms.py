"""The reward terms of a judge that reads images and text (GoT-R1, arXiv 2505.17022, section 3).

sem      score 0..10 of caption and plan text, over 10. A plan without a letter is 0, unasked.
spa      score 1..10 of caption and the sketch of the plan's boxes, (score - 1) / 9, so that the
         scale's ends are 0 and 1. A plan without a readable box is 0, unasked. `layout: text`
         shows the boxes as text instead, which GoT-R1 found to be worse.
pi       score 0..10 of caption and image, over 10.
verdict  0 or 1 of caption and image, with reasons (ReasonGen-R1, arXiv 2505.24875).
ri       mean over all the plan's objects of the IoU of the planned box and the one detected. Each
         name is searched for once, and where it is planned more than once the instances are
         assigned to the boxes for the largest sum. 0 for an object that is not found, that has no
         name, no readable box or one without area, that lies past `max_objects` by size (ties:
         the earlier in the plan), or past the plan parser's cap. A plan without objects is 0.

A term is NaN where an answer that it needs could not be had or read after the second try; for ri
that is the answer to any of its searches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gotr1_jax.errors import InputError
from gotr1_jax.plan import Box, box_from_pixels, match_objects
from gotr1_jax.rewards.base import JudgeRequest, JudgeResult, needs_main_thread
from gotr1_jax.rewards.multimodal import instructions
from gotr1_jax.rewards.multimodal.client import EngineClient, ParsedAnswer
from gotr1_jax.rewards.multimodal.questions import (
    MULTIMODAL_TERMS,
    QuestionsConfig,
    distinct_names,
    make_questions,
    searched_objects,
)
from gotr1_jax.rewards.published import MEANINGS
from gotr1_jax.vlm_engine.answer_cache import AnswerCache
from gotr1_jax.vlm_engine.base import Engine, Question

_SHOWN_REASON = 200  # characters of a reason in the line that the report shows


@dataclass(frozen=True)
class _TermScore:
    """The score of one term of one sample, a line about it, the raw answers, the detections."""

    score: float
    line: str
    raw_answers: str = ""
    detections: tuple[tuple[str, Box], ...] = ()


class MultimodalJudge:
    """Scores any of `MULTIMODAL_TERMS` by asking an engine about all samples at once.

    Attributes:
        terms: those that it scores.
        identity: the engine's identity, the version of the instructions, and the settings.
        detecting_terms: those for which the objects in the image are looked for.
    """

    meanings = MEANINGS
    detecting_terms = ("ri",)

    def __init__(
        self,
        engine: Engine,
        terms: Sequence[str],
        config: QuestionsConfig = QuestionsConfig(),  # noqa: B008 - frozen
        cache: AnswerCache | None = None,
    ) -> None:
        """InputError for unknown terms, and for a reading that the engine does not support."""
        unknown = [t for t in terms if t not in MULTIMODAL_TERMS]
        if unknown or not terms:
            raise InputError(
                f"a multimodal judge scores {', '.join(MULTIMODAL_TERMS)}, not "
                f"{', '.join(unknown) or 'nothing'}"
            )
        self.terms: tuple[str, ...] = tuple(terms)
        self._engine, self._config = engine, config
        self.needs_main_thread = needs_main_thread(engine)
        self._client = EngineClient(engine, config.reading == "expected", cache)
        self.identity = f"{engine.identity} instructions={instructions.VERSION} {config}"
        if config.layout == "text":
            self.identity += f" layout={instructions.TEXT_VERSION}"

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        """One result for each request; the module's docstring defines the scores."""
        questions = [make_questions(r, self.terms, self._config) for r in requests]
        every = [q for by_term in questions for group in by_term.values() for q in group]
        parsed = iter(self._client.ask(every))
        results = []
        for request, by_term in zip(requests, questions):
            answers = {term: [next(parsed) for _ in group] for term, group in by_term.items()}
            results.append(self._result(request, by_term, answers))
        return results

    def introduce(self) -> None:
        """See `base.introduce`."""
        self._client.introduce()

    def pop_metrics(self) -> dict[str, float]:
        """Rates of failure since the last call; see `QuestionCounts.metrics`."""
        return self._client.pop_counts().metrics()

    def _result(
        self,
        request: JudgeRequest,
        questions: Mapping[str, Sequence[Question]],
        answers: Mapping[str, Sequence[ParsedAnswer]],
    ) -> JudgeResult:
        scored: dict[str, _TermScore] = {}
        for term in self.terms:
            if term == "ri":
                scored[term] = self._score_ri(request, answers[term])
            else:
                scored[term] = _score_one(questions[term], answers[term])
        return JudgeResult(
            scores={term: s.score for term, s in scored.items()},
            detections=tuple(item for s in scored.values() for item in s.detections),
            rationale=" | ".join(f"{term} {s.line}" for term, s in scored.items()),
            raw_answers={term: s.raw_answers for term, s in scored.items()},
        )

    def _score_ri(self, request: JudgeRequest, answers: Sequence[ParsedAnswer]) -> _TermScore:
        plan = request.plan
        number = len(plan.objects) + plan.num_dropped
        if not number:
            return _TermScore(0.0, "0: no object is planned")
        searched = searched_objects(plan, self._config)
        names = distinct_names(searched)
        raw_answers = "\n".join(f"{name}: {a.text}" for name, a in zip(names, answers))
        detections = tuple(
            (name, box)
            for name, answer in zip(names, answers)
            for box in self._to_plan(answer, request)
        )
        failed = [f"{name}: {a.reason}" for name, a in zip(names, answers) if a.failed]
        if failed:
            return _TermScore(math.nan, f"failed: {'; '.join(failed)}", raw_answers, detections)
        matches = match_objects(searched, detections)
        score = sum(overlap for _, _, overlap in matches) / number
        parts = [
            f"{searched[i][0]} {'not found' if j is None else f'{overlap:.2f}'}"
            for i, j, overlap in matches
        ]
        if number > len(searched):
            parts.append(f"{number - len(searched)} not searched for count 0")
        return _TermScore(score, f"{score:.2f}: {', '.join(parts)}", raw_answers, detections)

    def _to_plan(self, answer: ParsedAnswer, request: JudgeRequest) -> list[Box]:
        """Detected boxes in thousandths, clipped to the image."""
        height, width = self._engine.image_size(*request.image.shape[:2])
        return [box_from_pixels(*box, width, height) for box in answer.boxes or ()]


def _score_one(questions: Sequence[Question], answers: Sequence[ParsedAnswer]) -> _TermScore:
    """A term of one question; without a question it is 0."""
    if not questions:
        return _TermScore(0.0, "0: the plan gives nothing to judge")
    (question,), (answer,) = questions, answers
    if answer.failed:
        return _TermScore(math.nan, f"failed: {answer.reason}", answer.text)
    scale, score = question.scale, answer.score
    shown = f"{score:g}" if scale is None else f"{score:.3g}/{scale.high}"
    if scale is not None:
        score = (score - scale.low) / (scale.high - scale.low)
    line = f"{shown}: {_short(answer.reason)}" if answer.reason else shown
    return _TermScore(score, line, answer.text)


def _short(reason: str) -> str:
    """The end of a long reason, where the decision stands."""
    return reason if len(reason) <= _SHOWN_REASON else "..." + reason[3 - _SHOWN_REASON :]
