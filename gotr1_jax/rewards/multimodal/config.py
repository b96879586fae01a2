"""How a multimodal model is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gotr1_jax.errors import InputError


@dataclass(frozen=True)
class QuestionsConfig:
    """What holds for every multimodal judge, wherever its model runs."""

    # text: the score is read from the model's words; expected: the mean of its distribution, one
    # forward pass without decoding and without words (needs an engine that can).
    reading: Literal["text", "expected"] = "text"
    # Objects of a plan that ri asks about, those with the largest boxes. The others count as not
    # found: a plan does not gain by having more.
    max_objects: int = 8
    # Longer side in pixels of the sketch of the boxes that spa shows.
    canvas: int = 448
    # Longest answers, in tokens.
    score_tokens: int = 96
    boxes_tokens: int = 256
    verdict_tokens: int = 512

    def check(self) -> None:
        for name in ("max_objects", "score_tokens", "boxes_tokens", "verdict_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"questions.{name} is {getattr(self, name)}; use 1 or more")
        if not 112 <= self.canvas <= 2048:
            raise InputError(f"questions.canvas is {self.canvas}; use 112 to 2048 pixels")
