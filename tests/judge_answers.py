"""The parsers of a judge's answers, with None for an answer that cannot be read."""

from __future__ import annotations

from contextlib import suppress

from gotr1_jax.rewards.multimodal.answers import ScoreReading, parse_score, parse_verdict
from gotr1_jax.rewards.multimodal.box_answers import AnswerBox, parse_boxes
from gotr1_jax.rewards.multimodal.thoughts import UnreadableError


def read_score(text: str, low: float, high: float, material: str = "") -> ScoreReading | None:
    with suppress(UnreadableError):
        return parse_score(text, low, high, material)
    return None


def read_verdict(text: str, material: str = "") -> float | None:
    with suppress(UnreadableError):
        return parse_verdict(text, material).score
    return None


def read_boxes(text: str, material: str = "") -> list[AnswerBox] | None:
    with suppress(UnreadableError):
        return parse_boxes(text, material)
    return None
