"""Questions for a model that reads images and text, and the engines that answer them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from gotr1_jax.errors import InputError

Kind = Literal["score", "boxes", "verdict"]


@dataclass(frozen=True)
class ImageInput:
    """An image that questions refer to; equal to any other with the same pixels.

    Attributes:
        pixels: uint8 (H, W, 3) RGB.
        key: SHA-256 (hex) of size and pixels: an engine encodes a key once.
    """

    pixels: np.ndarray = field(repr=False, compare=False)
    key: str

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


def make_image_input(pixels: np.ndarray) -> ImageInput:
    """The image of uint8 (H, W, 3) pixels; InputError for any other array."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise InputError(f"an image is uint8 (H, W, 3), not {pixels.dtype} {pixels.shape}")
    digest = hashlib.sha256(f"{pixels.shape[0]}x{pixels.shape[1]} ".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return ImageInput(pixels, digest.hexdigest())


@dataclass(frozen=True)
class Scale:
    """The whole numbers that a score can be, and how an answer that gives one begins.

    `answer_prefix` is text that the score's digits follow at once. An engine that reads the
    score's distribution puts it behind the question. With a tokenizer of single digits, 1 and 10
    begin alike: the digit after a "1" tells them apart, and one pass over the prefix and a "1"
    gives both distributions.
    """

    low: int
    high: int
    answer_prefix: str


@dataclass(frozen=True)
class Question:
    """One user turn: `instruction`, then the images, then `text`; then the model answers.

    What all questions of a kind have in common stands first, and what questions about the same
    image have in common next: an engine can read both once for all of them. No text holds "<|":
    no special token can stand in it, however it is tokenised.

    Attributes:
        kind: "score" (a JSON object with a score), "boxes" (a JSON list of boxes) or "verdict"
            (reasons, then a boxed 0 or 1).
        images: shown behind the instruction, in this order.
        instruction: what is asked and how to answer.
        text: the material, and what is this question's own.
        max_answer_tokens: an answer that is longer is cut, and said to be.
        scale: of a score; None for the other kinds.
    """

    kind: Kind
    images: tuple[ImageInput, ...]
    instruction: str
    text: str
    max_answer_tokens: int
    scale: Scale | None = None

    @cached_property
    def key(self) -> str:
        """SHA-256 (hex) of everything that the answer can depend on."""
        words = (self.instruction, self.text, self.max_answer_tokens, self.scale)
        parts = (self.kind, tuple(p.key for p in self.images), *words)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def with_reminder(self, reminder: str) -> Question:
        """The same question, asked again with a remark at its end."""
        return replace(self, text=f"{self.text}\n\n{reminder}")


@dataclass(frozen=True)
class Answer:
    """What an engine answers to one question.

    Attributes:
        text: the model's words, without special tokens.
        truncated: the answer was cut at `max_answer_tokens`.
        finite: False when the logits were not finite; the text then means nothing.
        error: why there is no answer at all (a server that could not be reached), else "". Such
            a question is not asked again: the engine has done what could be done.
    """

    text: str = ""
    truncated: bool = False
    finite: bool = True
    error: str = ""


class Engine(Protocol):
    """Answers questions in batches; greedy, so that an answer depends on its question alone."""

    @property
    def identity(self) -> str:
        """What the answers depend on besides the questions: model, weights, dtype."""
        ...

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer for each question, in their order, of any number and mixture."""
        ...

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the model's coordinates refer to, for an image of this size."""
        ...


@runtime_checkable
class ScoringEngine(Engine, Protocol):
    """An engine that can read a score without decoding."""

    def expected_scores(self, questions: Sequence[Question]) -> list[float]:
        """The probability-weighted mean over `scale.low`..`scale.high` of each question.

        Each question is of kind "score". One forward pass over the question and its answer
        prefix; NaN where the logits are not finite.
        """
        ...
