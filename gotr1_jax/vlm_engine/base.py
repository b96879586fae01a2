"""Questions for a model that reads images and text, answers, and the engines' protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from gotr1_jax.errors import InputError

Kind = Literal["score", "boxes", "verdict", "word"]


@dataclass(frozen=True)
class ImageInput:
    """An image that questions refer to; equal to any other with the same pixels.

    Attributes:
        pixels: uint8 (H, W, 3) RGB.
        key: SHA-256 (hex) of size and pixels; an engine encodes images of equal key once.
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
    score's distribution appends it to the question. With a tokenizer of single digits, 1 and 10
    begin with the same token: one pass over the prefix and a "1" gives the distributions of both
    digits. The `repr` of a scale is part of cache keys.
    """

    low: int
    high: int
    answer_prefix: str


@dataclass(frozen=True)
class FirstWords:
    """The right answer to a question that one word answers, and the wrong ones.

    An engine that reads distributions gives the probability that an answer begins with the first
    token of any form of the right one, out of all tokens (Soft-TIFA, arXiv 2512.16853). The `repr`
    is part of cache keys.

    Attributes:
        right: forms of the right answer, blanks in front included: "Yes", "yes", " Yes", " yes".
        wrong: answers that are read from text as wrong, in lower case; others are unreadable.
    """

    right: tuple[str, ...]
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """One user turn: `instruction`, then the images, then `text`; then the model answers.

    The text that all questions of a kind share comes first, then what questions about the same
    image share: an engine can read both once for all of them. No text of others in it holds a word
    that a chat format takes for a mark.

    Attributes:
        kind: "score" (a JSON object with a score), "boxes" (a JSON list of boxes), "verdict"
            (reasons, then a boxed 0 or 1) or "word" (one word, 1 where it is the right one).
        images: shown after the instruction, in this order.
        instruction: what is asked and how to answer.
        text: the material, and the rest of the question.
        max_answer_tokens: a longer answer is cut and marked as truncated.
        scale: of a score; None for the other kinds.
        image_text: text that is known to be written in the images (names in a sketch), by which
            an answer is told from a quotation. The images' keys cover it.
        words: of the kind "word"; None for the other kinds.
    """

    kind: Kind
    images: tuple[ImageInput, ...]
    instruction: str
    text: str
    max_answer_tokens: int
    scale: Scale | None = None
    image_text: str = ""
    words: FirstWords | None = None

    @cached_property
    def key(self) -> str:
        """SHA-256 (hex) of everything in the question that the answer can depend on."""
        rest = (self.instruction, self.text, self.max_answer_tokens, self.scale)
        words = () if self.words is None else (self.words,)
        parts = (self.kind, tuple(p.key for p in self.images), *rest, *words)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def with_reminder(self, reminder: str) -> Question:
        """The same question with a remark at its end, to be asked again."""
        return replace(self, text=f"{self.text}\n\n{reminder}")


@dataclass(frozen=True)
class Answer:
    """An engine's answer to one question.

    Attributes:
        text: what the model wrote, without special tokens.
        truncated: the answer was cut at `max_answer_tokens`.
        tokens_in, tokens_out: of question and answer; 0 where the engine does not say.
        note: what the engine knows of an answer that is empty, else "".
        finite: False when the logits were not finite; the text is then meaningless.
        error: why there is no answer at all (a server that could not be reached), else "". Such
            a question is not asked again: the engine has retried already.
        probability: of the right word, where it was asked for (`FirstTokenEngine`) and is known.
    """

    text: str = ""
    truncated: bool = False
    finite: bool = True
    error: str = ""
    note: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    probability: float | None = None


class Engine(Protocol):
    """Answers questions in batches; greedy, so that an answer depends on its question alone."""

    @property
    def identity(self) -> str:
        """Everything besides the questions that answers depend on: model, weights, dtype."""
        ...

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer for each question, in their order; any number and mixture of questions."""
        ...

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the model's coordinates refer to, for an image of this size."""
        ...


@runtime_checkable
class ScoringEngine(Engine, Protocol):
    """An engine that can read a score without decoding."""

    def expected_scores(self, questions: Sequence[Question]) -> list[float]:
        """The probability-weighted mean over `scale.low`..`scale.high` of each question.

        Of the kind "word" the probability of the right answer, see `FirstWords`. One forward pass
        over the question and its answer prefix; NaN where the logits are not finite.
        """
        ...


@runtime_checkable
class FirstTokenEngine(Engine, Protocol):
    """An engine that knows the likeliest first tokens of an answer, not a score's distribution."""

    def word_answers(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers to questions of the kind "word" with `probability`, that of the right word.

        None there, and the cause in `note`, where an answer came without. RunError where the
        engine never gives any.
        """
        ...

    def introduce_words(self) -> None:
        """One such question of our own, before anything depends on the answers; RunError as above,
        UnreachableError where there is no answer."""
        ...
