"""An engine that looks every answer up: no model, no chance."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from gotr1_jax.plan import Box, format_object, parse_plan
from gotr1_jax.rewards import JudgeRequest
from gotr1_jax.vlm_engine.base import Answer, Question

CUT, NAN = Answer('{"score": 7, "reason": "it', truncated=True), Answer("7", finite=False)
SILENT = Answer(error="status 503")
Script = Mapping[str, "Sequence[str | Answer]"]


def topic(question: Question) -> str:
    """sem, spa, pi, verdict, or the name that is searched for."""
    if question.kind == "boxes":
        return re.findall("<<<(.*?)>>>", question.text)[0]
    if question.kind == "verdict":
        return "verdict"
    assert question.scale is not None
    if not question.images:
        return "sem"
    return "spa" if question.scale.low == 1 else "pi"


class LookupEngine:
    """Answers by topic; the n-th time a topic comes up it gives the n-th answer.

    Attributes:
        asked: topics in the order asked, one list a call.
        questions: all of them.
    """

    def __init__(self, script: Script, size: tuple[int, int] = (500, 1000)) -> None:
        self.identity = "lookup"
        self.asked: list[list[str]] = []
        self.questions: list[Question] = []
        self._left = {name: list(answers) for name, answers in script.items()}
        self._size = size

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        self.asked.append([topic(q) for q in questions])
        self.questions += questions
        found = [self._left[name].pop(0) for name in self.asked[-1]]
        return [Answer(a) if isinstance(a, str) else a for a in found]

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        return self._size


class ScoringLookup(LookupEngine):
    """One that reads distributions too: scripted means."""

    def expected_scores(self, questions: Sequence[Question]) -> list[float]:
        return [
            math.nan if a == "nan" else float(str(a))
            for a in (self._left[topic(q)].pop(0) for q in questions)
        ]


def plan_text(*objects: tuple[str, tuple[int, int, int, int] | None]) -> str:
    """A plan's text; an object without a box is only named."""
    parts = [
        f"<|obj_start|>{name}<|obj_end|>" if box is None else format_object(name, Box(*box))
        for name, box in objects
    ]
    return "A picture of " + " and ".join(parts)


def request(plan: str, caption: str = "a cat", shade: int = 0) -> JudgeRequest:
    return JudgeRequest(caption, parse_plan(plan), np.full((100, 200, 3), shade, np.uint8))
