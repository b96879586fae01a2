"""The questions that a multimodal judge asks about a sample, term by term; `terms` scores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from gotr1_jax.config import CheckedConfig
from gotr1_jax.limits import CanvasSide, Range, TokenCount
from gotr1_jax.plan import Box, Plan, normalise_name
from gotr1_jax.rewards.base import JudgeRequest
from gotr1_jax.rewards.multimodal import instructions
from gotr1_jax.rewards.multimodal.canvas import draw_canvas
from gotr1_jax.vlm_engine.base import ImageInput, Question, Scale, make_image_input

MULTIMODAL_TERMS = ("sem", "spa", "ri", "pi", "verdict")
LAYOUT_TERM, SEARCH_TERM = "spa", "ri"
"""The term that `QuestionsConfig.layout` is about, and the one that searches for objects."""
_ZERO_TO_TEN = Scale(0, 10, instructions.SCORE_PREFIX)
_ONE_TO_TEN = Scale(1, 10, instructions.SCORE_PREFIX)


@dataclass(frozen=True)
class QuestionsConfig(CheckedConfig):
    """The questions of a multimodal judge, wherever its model runs.

    A judge's identity, and so the keys of kept results, holds this class's `repr`; `layout` is left
    out of it, so that results kept by earlier versions stay known.
    """

    # text: the score is read from the model's words; expected: the mean of its distribution, one
    # forward pass without decoding and without words (needs an engine that can).
    reading: Literal["text", "expected"] = "text"
    # Objects of a plan that ri asks about, those with the largest boxes. The others count as not
    # found: a plan does not gain by having more.
    max_objects: Annotated[int, Range("[1, 10000]")] = 8
    # Longer side in pixels of the sketch of the boxes that spa shows. A checkpoint of `gotr1 train
    # judge` says what it was taught; another side gets a warning.
    canvas: CanvasSide = 448
    # What spa shows of the plan's layout: the sketch of the boxes (canvas), or the boxes as text.
    layout: Literal["canvas", "text"] = field(default="canvas", repr=False)
    # Tokens of the longest answer with a score: sem, spa, pi.
    score_tokens: TokenCount = 96
    # Tokens of the longest answer with boxes: ri.
    boxes_tokens: TokenCount = 256
    # Tokens of the longest answer with a verdict.
    verdict_tokens: TokenCount = 512

    def answer_tokens(self, term: str) -> int:
        """Tokens of the longest answer about a term."""
        by_term = {"ri": self.boxes_tokens, "verdict": self.verdict_tokens}
        return by_term.get(term, self.score_tokens)


def make_questions(
    request: JudgeRequest, terms: Sequence[str], config: QuestionsConfig
) -> dict[str, list[Question]]:
    """The questions about one sample, by term; none where the score is known without."""
    image, plan = make_image_input(request.image), request.plan
    by_term: dict[str, list[Question]] = {}
    for term in terms:
        if term == "sem":
            by_term[term] = [_sem_question(request, config)] if _has_letters(plan) else []
        elif term == LAYOUT_TERM:
            by_term[term] = [_spa_question(request, image, config)] if plan.boxes else []
        elif term == SEARCH_TERM:
            names = distinct_names(searched_objects(plan, config))
            by_term[term] = [search_question(name, image, config) for name in names]
        else:
            by_term[term] = [_image_question(term, request, image, config)]
    return by_term


def search_question(name: str, image: ImageInput, config: QuestionsConfig) -> Question:
    """Where the objects of a name are in an image."""
    text = instructions.show_name(name) + instructions.CLOSINGS["boxes"]
    return Question("boxes", (image,), instructions.LOCATE, text, config.boxes_tokens)


def searched_objects(plan: Plan, config: QuestionsConfig) -> list[tuple[str, Box]]:
    """(name, box) of the planned objects that are searched for, largest first."""
    nameless = instructions.show_name("")
    wanted = [(n, b) for n, b in plan.boxes if instructions.show_name(n) != nameless and b.area]
    wanted.sort(key=lambda item: -item[1].area)
    return wanted[: config.max_objects]


def distinct_names(searched: Sequence[tuple[str, Box]]) -> list[str]:
    """Names that differ for `match_objects`, each as it was first written."""
    first: dict[str, str] = {}
    for name, _ in searched:
        first.setdefault(normalise_name(name), name)
    return list(first.values())


def _sem_question(request: JudgeRequest, config: QuestionsConfig) -> Question:
    caption = instructions.show_caption(request.caption)
    material = caption + instructions.show_plan(request.plan.text)
    return _score_question((), instructions.SEM, material, _ZERO_TO_TEN, config)


def _spa_question(request: JudgeRequest, image: ImageInput, config: QuestionsConfig) -> Question:
    caption = instructions.show_caption(request.caption)
    if config.layout == "text":
        boxes = [(name, box.clean()) for name, box in request.plan.boxes]
        material = caption + instructions.show_layout(boxes)
        return _score_question((), instructions.SPA_TEXT, material, _ONE_TO_TEN, config)
    height, width = image.size
    sketch = make_image_input(draw_canvas(request.plan, config.canvas, width / height))
    question = _score_question((sketch,), instructions.SPA, caption, _ONE_TO_TEN, config)
    return replace(question, image_text="\n".join(name for name, _ in request.plan.boxes))


def _image_question(
    term: str, request: JudgeRequest, image: ImageInput, config: QuestionsConfig
) -> Question:
    caption = instructions.show_caption(request.caption)
    if term == "pi":
        return _score_question((image,), instructions.PI, caption, _ZERO_TO_TEN, config)
    text = caption + instructions.CLOSINGS["verdict"]
    return Question("verdict", (image,), instructions.VERDICT, text, config.verdict_tokens)


def _score_question(
    images: tuple[ImageInput, ...], instruction: str, material: str, scale: Scale,
    config: QuestionsConfig,
) -> Question:  # fmt: skip
    text = material + instructions.CLOSINGS["score"]
    instruction += instructions.ask_score()
    return Question("score", images, instruction, text, config.score_tokens, scale)


def _has_letters(plan: Plan) -> bool:
    return any(c.isalpha() for c in instructions.show_plan(plan.text).removeprefix("Plan:"))
