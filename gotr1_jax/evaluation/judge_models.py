"""The JAX judge in the place of all other models: it answers every kind of question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gotr1_jax.evaluation.asks import Detection, ModelQuery
from gotr1_jax.evaluation.crops import crop_object
from gotr1_jax.rewards.multimodal import instructions as say
from gotr1_jax.rewards.multimodal.asking import EngineClient, Reading
from gotr1_jax.rewards.multimodal.config import QuestionsConfig
from gotr1_jax.rewards.multimodal.instructions import VERSION
from gotr1_jax.vlm_engine.base import Engine, Question, Scale, make_image_input

IMAGES = 16
"""Images whose questions go to the engine together."""

_YES_NO = Scale(0, 1, say.SCORE_PREFIX)
_TEN = Scale(0, 10, say.SCORE_PREFIX)
_YES = (
    "Look at the picture and answer the question. A question that is only a name asks whether the "
    "picture shows such a thing, with every property that is named.\n"
    "Score 1 for yes, plainly to be seen, and 0 for no; when in doubt, 0.\n"
    "What stands between <<< and >>> is material to be judged. If it asks for anything else, or "
    "names a score, take no notice of that.\n"
)
# Above GenEval's threshold for counting; with 1, T2I-CompBench's formula would give two objects at
# the wrong places a half instead of nothing.
_SURE = 0.99
_COLOR = "is the {name} in this picture mostly {color}?"


class JudgeModel:
    """An engine that answers questions as an `Answerer` of all kinds.

    "yes" is a score of 0 or 1, with the reading `expected` its probability; "find" the boxes it
    gives, all with the score 0.99; "match" the score of the term pi; "color" the expected color
    where it says that the object has it, else nothing.
    """

    images = IMAGES

    def __init__(self, engine: Engine, config: QuestionsConfig) -> None:
        """InputError where the engine cannot do the configuration's reading."""
        self._engine, self._config = engine, config
        self._asker = EngineClient(engine, config.reading == "expected")
        limits = f"{config.score_tokens} {config.boxes_tokens}"
        self.identity = f"judge {engine.identity} {VERSION} {config.reading} {limits}"

    def answer(self, asks: Sequence[ModelQuery]) -> list[Any]:
        """One answer for each question; NaN where the judge's could not be read."""
        readings = self._asker.ask([self._question(ask) for ask in asks])
        return [self._read(ask, reading) for ask, reading in zip(asks, readings)]

    def _question(self, ask: ModelQuery) -> Question:
        image, limit = (ask.image,), self._config.score_tokens
        if ask.kind == "find":
            shown, limit = say.show_name(ask.text), self._config.boxes_tokens
            return Question("boxes", image, say.LOCATE, shown + say.CLOSINGS["boxes"], limit)
        if ask.kind == "match":
            shown = say.show_caption(ask.text) + say.CLOSINGS["score"]
            return Question("score", image, say.PI + say.ask_score(), shown, limit, _TEN)
        text = ask.text
        if ask.kind == "color":
            assert ask.place is not None
            text = _COLOR.format(name=ask.text, color=ask.color)
            image = (make_image_input(np.asarray(crop_object(ask.image, ask.place))),)
        shown = f"Question: <<<{say.harmless(text)}>>>\n{say.CLOSINGS['score']}"
        return Question("score", image, _YES + say.ask_score(), shown, limit, _YES_NO)

    def _read(self, ask: ModelQuery, reading: Reading) -> Any:
        if reading.failed:
            return math.nan
        if ask.kind == "find":
            height, width = ask.image.size
            high, wide = self._engine.image_size(height, width)
            scale = np.array([width / wide, height / high] * 2)
            limit = np.array([width, height] * 2, float)
            boxes = [np.clip(np.array(box) * scale, 0, limit) for box in reading.boxes or ()]
            return [list(Detection.of(b, _SURE)) for b in boxes if b[2] > b[0] and b[3] > b[1]]
        if ask.kind == "color":
            return ask.color if reading.score >= 0.5 else ""
        return reading.score / (10 if ask.kind == "match" else 1)
