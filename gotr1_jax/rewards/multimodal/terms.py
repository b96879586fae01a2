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
from dataclasses import dataclass

from gotr1_jax.errors import InputError
from gotr1_jax.plan import Box, Plan, box_from_pixels, match_objects, normalise_name
from gotr1_jax.rewards.base import JudgeRequest, JudgeResult
from gotr1_jax.rewards.multimodal import instructions as say
from gotr1_jax.rewards.multimodal.asking import EngineClient, Reading
from gotr1_jax.rewards.multimodal.canvas import draw_canvas
from gotr1_jax.rewards.multimodal.config import QuestionsConfig
from gotr1_jax.rewards.multimodal.counts import QuestionCounts
from gotr1_jax.vlm_engine.answer_cache import AnswerCache
from gotr1_jax.vlm_engine.base import Engine, ImageInput, Question, Scale, make_image_input

MULTIMODAL_TERMS = ("sem", "spa", "ri", "pi", "verdict")
_TEN = Scale(0, 10, say.SCORE_PREFIX)
_FROM_ONE = Scale(1, 10, say.SCORE_PREFIX)
_SHOWN_REASON = 200  # characters of a reason in the line that the report shows


@dataclass(frozen=True)
class _Scored:
    """The score of one term of one sample, a line about it, the raw answers, the detections."""

    score: float
    line: str
    raw_answers: str = ""
    detections: tuple[tuple[str, Box], ...] = ()


class MultimodalJudge:
    """Scores any of `MULTIMODAL_TERMS` by asking an engine; all samples are asked about at once.

    Attributes:
        terms: those it scores.
        identity: the engine's, and the version of the instructions and settings.
    """

    def __init__(
        self,
        engine: Engine,
        terms: Sequence[str],
        config: QuestionsConfig = QuestionsConfig(),  # noqa: B008 - frozen
        cache: AnswerCache | None = None,
    ) -> None:
        """InputError for unknown terms, and for a way of reading that the engine lacks."""
        unknown = [t for t in terms if t not in MULTIMODAL_TERMS]
        if unknown or not terms:
            raise InputError(
                f"a multimodal judge scores {', '.join(MULTIMODAL_TERMS)}, not "
                f"{', '.join(unknown) or 'nothing'}"
            )
        self.terms: tuple[str, ...] = tuple(terms)
        self._engine, self._config = engine, config
        self._asker = EngineClient(engine, config.reading == "expected", cache)
        self.identity = f"{engine.identity} instructions={say.VERSION} {config}"

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        """One result for each request; see the module's text."""
        asked = [self._questions(request) for request in requests]
        flat = [q for by_term in asked for group in by_term.values() for q in group]
        readings = iter(self._asker.ask(flat))
        results = []
        for request, by_term in zip(requests, asked):
            answers = {term: [next(readings) for _ in group] for term, group in by_term.items()}
            results.append(self._result(request, by_term, answers))
        return results

    def pop_metrics(self) -> dict[str, float]:
        """Rates of failure since they were last taken; see `QuestionCounts.figures`."""
        counts, self._asker.counts = self._asker.counts, QuestionCounts()
        return counts.figures()

    def _questions(self, request: JudgeRequest) -> dict[str, list[Question]]:
        """What is asked about one sample, by term; nothing where the score is known without."""
        raw_image = make_image_input(request.image)
        plan = request.plan
        by_term: dict[str, list[Question]] = {}
        for term in self.terms:
            if term == "sem":
                by_term[term] = [self._ask_sem(request)] if _says_anything(plan) else []
            elif term == "spa":
                by_term[term] = [self._ask_spa(request, raw_image)] if plan.boxes else []
            elif term == "ri":
                names = _different_names(self._searched(plan))
                by_term[term] = [self._ask_where(name, raw_image) for name in names]
            else:
                by_term[term] = [self._ask_image(term, request, raw_image)]
        return by_term

    def _ask_sem(self, request: JudgeRequest) -> Question:
        material = say.show_caption(request.caption) + say.show_plan(request.plan.text)
        return self._ask_score((), say.SEM, material, _TEN)

    def _ask_spa(self, request: JudgeRequest, image: ImageInput) -> Question:
        height, width = image.size
        sheet = make_image_input(draw_canvas(request.plan, self._config.canvas, width / height))
        return self._ask_score((sheet,), say.SPA, say.show_caption(request.caption), _FROM_ONE)

    def _ask_image(self, term: str, request: JudgeRequest, image: ImageInput) -> Question:
        caption = say.show_caption(request.caption)
        if term == "pi":
            return self._ask_score((image,), say.PI, caption, _TEN)
        text, limit = caption + say.CLOSINGS["verdict"], self._config.verdict_tokens
        return Question("verdict", (image,), say.VERDICT, text, limit)

    def _ask_score(
        self, images: tuple[ImageInput, ...], instruction: str, material: str, scale: Scale
    ) -> Question:
        return Question(
            "score", images, instruction + say.ask_score(), material + say.CLOSINGS["score"],
            self._config.score_tokens, scale,
        )  # fmt: skip

    def _ask_where(self, name: str, image: ImageInput) -> Question:
        text, limit = say.show_name(name) + say.CLOSINGS["boxes"], self._config.boxes_tokens
        return Question("boxes", (image,), say.LOCATE, text, limit)

    def _searched(self, plan: Plan) -> list[tuple[str, Box]]:
        """(name, box) of the planned objects that are looked for, largest first."""
        wanted = [(n, b) for n, b in plan.boxes if say.show_name(n) != say.show_name("") and b.area]
        wanted.sort(key=lambda item: -item[1].area)
        return wanted[: self._config.max_objects]

    def _result(
        self,
        request: JudgeRequest,
        questions: Mapping[str, Sequence[Question]],
        readings: Mapping[str, Sequence[Reading]],
    ) -> JudgeResult:
        scored: dict[str, _Scored] = {}
        for term in self.terms:
            if term == "ri":
                scored[term] = self._score_ri(request, readings[term])
            else:
                scored[term] = _score_one(questions[term], readings[term])
        return JudgeResult(
            scores={term: s.score for term, s in scored.items()},
            detections=tuple(item for s in scored.values() for item in s.detections),
            rationale=" | ".join(f"{term} {s.line}" for term, s in scored.items()),
            raw_answers={term: s.raw_answers for term, s in scored.items()},
        )

    def _score_ri(self, request: JudgeRequest, readings: Sequence[Reading]) -> _Scored:
        plan = request.plan
        number = len(plan.objects) + plan.num_dropped
        if not number:
            return _Scored(0.0, "0: no object is planned")
        searched = self._searched(plan)
        names = _different_names(searched)
        raw_answers = "\n".join(f"{name}: {r.text}" for name, r in zip(names, readings))
        detections = tuple(
            (name, box)
            for name, reading in zip(names, readings)
            for box in self._to_plan(reading, request)
        )
        failed = [f"{name}: {r.reason}" for name, r in zip(names, readings) if r.failed]
        if failed:
            return _Scored(math.nan, f"failed: {'; '.join(failed)}", raw_answers, detections)
        matches = match_objects(searched, detections)
        score = sum(overlap for _, _, overlap in matches) / number
        parts = [
            f"{searched[i][0]} {'not found' if j is None else f'{overlap:.2f}'}"
            for i, j, overlap in matches
        ]
        if number > len(searched):
            parts.append(f"{number - len(searched)} not searched for count 0")
        return _Scored(score, f"{score:.2f}: {', '.join(parts)}", raw_answers, detections)

    def _to_plan(self, reading: Reading, request: JudgeRequest) -> list[Box]:
        """Detected boxes in thousandths, clipped to the image."""
        height, width = self._engine.image_size(*request.image.shape[:2])
        return [box_from_pixels(*box, width, height) for box in reading.boxes or ()]


def _different_names(searched: Sequence[tuple[str, Box]]) -> list[str]:
    """Names that are not the same to `match_objects`, each as it was first written."""
    first: dict[str, str] = {}
    for name, _ in searched:
        first.setdefault(normalise_name(name), name)
    return list(first.values())


def _says_anything(plan: Plan) -> bool:
    return any(c.isalpha() for c in say.show_plan(plan.text).removeprefix("Plan:"))


def _score_one(questions: Sequence[Question], readings: Sequence[Reading]) -> _Scored:
    """A term that one question decides; without a question it is 0."""
    if not questions:
        return _Scored(0.0, "0: the plan gives nothing to judge")
    (question,), (reading,) = questions, readings
    if reading.failed:
        return _Scored(math.nan, f"failed: {reading.reason}", reading.text)
    scale, score = question.scale, reading.score
    shown = f"{score:g}" if scale is None else f"{score:.3g}/{scale.high}"
    if scale is not None:
        score = (score - scale.low) / (scale.high - scale.low)
    line = f"{shown}: {_short(reading.reason)}" if reading.reason else shown
    return _Scored(score, line, reading.text)


def _short(reason: str) -> str:
    """The end of a long reason: that is where it comes to a decision."""
    return reason if len(reason) <= _SHOWN_REASON else "..." + reason[3 - _SHOWN_REASON :]
