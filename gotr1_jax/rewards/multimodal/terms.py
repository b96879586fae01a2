"""The reward terms of a judge that reads images and text (GoT-R1, arXiv 2505.17022, section 3).

sem      score 0..10 of caption and plan text, over 10. A plan without a letter is 0, unasked.
spa      score 1..10 of caption and the sketch of the plan's boxes, (score - 1) / 9, so that the
         scale's ends are 0 and 1. A plan without a readable box is 0, unasked.
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
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from gotr1_jax.config import CheckedConfig
from gotr1_jax.errors import InputError
from gotr1_jax.limits import Range, TokenCount
from gotr1_jax.plan import Box, Plan, box_from_pixels, match_objects, normalise_name
from gotr1_jax.rewards.base import JudgeRequest, JudgeResult
from gotr1_jax.rewards.multimodal import instructions
from gotr1_jax.rewards.multimodal.canvas import draw_canvas
from gotr1_jax.rewards.multimodal.client import EngineClient, ParsedAnswer, QuestionCounts
from gotr1_jax.rewards.published import MEANINGS
from gotr1_jax.vlm_engine.answer_cache import AnswerCache
from gotr1_jax.vlm_engine.base import Engine, ImageInput, Question, Scale, make_image_input

MULTIMODAL_TERMS = ("sem", "spa", "ri", "pi", "verdict")
_ZERO_TO_TEN = Scale(0, 10, instructions.SCORE_PREFIX)
_ONE_TO_TEN = Scale(1, 10, instructions.SCORE_PREFIX)
_SHOWN_REASON = 200  # characters of a reason in the line that the report shows


@dataclass(frozen=True)
class QuestionsConfig(CheckedConfig):
    """The questions of a multimodal judge, wherever its model runs.

    A judge's identity, and so the keys of kept results, holds this class's `repr`.
    """

    # text: the score is read from the model's words; expected: the mean of its distribution, one
    # forward pass without decoding and without words (needs an engine that can).
    reading: Literal["text", "expected"] = "text"
    # Objects of a plan that ri asks about, those with the largest boxes. The others count as not
    # found: a plan does not gain by having more.
    max_objects: Annotated[int, Range("[1, 10000]")] = 8
    # Longer side in pixels of the sketch of the boxes that spa shows.
    canvas: Annotated[int, Range("[112, 2048]")] = 448
    # Longest answers, in tokens.
    score_tokens: TokenCount = 96
    boxes_tokens: TokenCount = 256
    verdict_tokens: TokenCount = 512

    def answer_tokens(self, term: str) -> int:
        """Tokens of the longest answer about a term."""
        by_term = {"ri": self.boxes_tokens, "verdict": self.verdict_tokens}
        return by_term.get(term, self.score_tokens)


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
        self._client = EngineClient(engine, config.reading == "expected", cache)
        self.identity = f"{engine.identity} instructions={instructions.VERSION} {config}"

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        """One result for each request; the module's docstring defines the scores."""
        questions = [self._questions(request) for request in requests]
        every = [q for by_term in questions for group in by_term.values() for q in group]
        parsed = iter(self._client.ask(every))
        results = []
        for request, by_term in zip(requests, questions):
            answers = {term: [next(parsed) for _ in group] for term, group in by_term.items()}
            results.append(self._result(request, by_term, answers))
        return results

    def pop_metrics(self) -> dict[str, float]:
        """Rates of failure since the last call; see `QuestionCounts.metrics`."""
        counts, self._client.counts = self._client.counts, QuestionCounts()
        return counts.metrics()

    def _questions(self, request: JudgeRequest) -> dict[str, list[Question]]:
        """The questions about one sample, by term; none where the score is known without."""
        image = make_image_input(request.image)
        plan = request.plan
        by_term: dict[str, list[Question]] = {}
        for term in self.terms:
            if term == "sem":
                by_term[term] = [self._sem_question(request)] if _has_letters(plan) else []
            elif term == "spa":
                by_term[term] = [self._spa_question(request, image)] if plan.boxes else []
            elif term == "ri":
                names = _distinct_names(self._searched_objects(plan))
                by_term[term] = [self._search_question(name, image) for name in names]
            else:
                by_term[term] = [self._image_question(term, request, image)]
        return by_term

    def _sem_question(self, request: JudgeRequest) -> Question:
        caption = instructions.show_caption(request.caption)
        material = caption + instructions.show_plan(request.plan.text)
        return self._score_question((), instructions.SEM, material, _ZERO_TO_TEN)

    def _spa_question(self, request: JudgeRequest, image: ImageInput) -> Question:
        height, width = image.size
        sketch = make_image_input(draw_canvas(request.plan, self._config.canvas, width / height))
        caption = instructions.show_caption(request.caption)
        question = self._score_question((sketch,), instructions.SPA, caption, _ONE_TO_TEN)
        return replace(question, image_text="\n".join(name for name, _ in request.plan.boxes))

    def _image_question(self, term: str, request: JudgeRequest, image: ImageInput) -> Question:
        caption = instructions.show_caption(request.caption)
        if term == "pi":
            return self._score_question((image,), instructions.PI, caption, _ZERO_TO_TEN)
        text, limit = caption + instructions.CLOSINGS["verdict"], self._config.verdict_tokens
        return Question("verdict", (image,), instructions.VERDICT, text, limit)

    def _score_question(
        self, images: tuple[ImageInput, ...], instruction: str, material: str, scale: Scale
    ) -> Question:
        text = material + instructions.CLOSINGS["score"]
        instruction += instructions.ask_score()
        return Question("score", images, instruction, text, self._config.score_tokens, scale)

    def _search_question(self, name: str, image: ImageInput) -> Question:
        text = instructions.show_name(name) + instructions.CLOSINGS["boxes"]
        return Question("boxes", (image,), instructions.LOCATE, text, self._config.boxes_tokens)

    def _searched_objects(self, plan: Plan) -> list[tuple[str, Box]]:
        """(name, box) of the planned objects that are searched for, largest first."""
        nameless = instructions.show_name("")
        wanted = [(n, b) for n, b in plan.boxes if instructions.show_name(n) != nameless and b.area]
        wanted.sort(key=lambda item: -item[1].area)
        return wanted[: self._config.max_objects]

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
        searched = self._searched_objects(plan)
        names = _distinct_names(searched)
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


def _distinct_names(searched: Sequence[tuple[str, Box]]) -> list[str]:
    """Names that differ for `match_objects`, each as it was first written."""
    first: dict[str, str] = {}
    for name, _ in searched:
        first.setdefault(normalise_name(name), name)
    return list(first.values())


def _has_letters(plan: Plan) -> bool:
    return any(c.isalpha() for c in instructions.show_plan(plan.text).removeprefix("Plan:"))


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
