"""Benchmarks whose questions have one right word each: what is asked, and what is kept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gotr1_jax.evaluation.benchmark import Answers, ImageScore
from gotr1_jax.evaluation.queries import ModelQuery
from gotr1_jax.evaluation.results import ResultRow
from gotr1_jax.vlm_engine.base import FirstWords, ImageInput


@dataclass(frozen=True)
class WordQuestion:
    """A question about an image.

    Attributes:
        text: of the question, as it is asked behind the image.
        answers: answers that count and the value of each; any other is worth 0.
        weight: of the question within its caption.
        tags: what it is about, for the rows of the table.
        instruction: what is said before the image.
        name: of the question in records.
    """

    text: str
    answers: tuple[tuple[FirstWords, float], ...]
    weight: float = 1.0
    tags: tuple[str, ...] = ()
    instruction: str = ""
    name: str = ""

    def queries(self, image: ImageInput) -> list[ModelQuery]:
        """One for each answer that counts."""
        return [
            ModelQuery("word", image, self.text, words=words, instruction=self.instruction)
            for words, _ in self.answers
        ]

    def value(self, image: ImageInput, answers: Answers) -> float:
        """The sum of the answers' values times their probabilities; NaN where one is missing."""
        pairs = zip(self.queries(image), self.answers)
        return math.fsum(answers[query.key] * value for query, (_, value) in pairs)


Combine = Callable[[Sequence[WordQuestion], Sequence[float]], Mapping[str, float]]
"""An image's scores from its questions and their values, none of them NaN."""


class WordRules:
    """Queries and scores of questions of one right word each.

    Attributes:
        values: of each caption, for each image scored so far the values of its questions.
    """

    def __init__(self, questions: Sequence[Sequence[WordQuestion]], combine: Combine) -> None:
        """questions: of each caption, at least one."""
        self._questions, self._combine = questions, combine
        self.values: list[list[list[float]]] = [[] for _ in questions]

    def queries(self, caption: int, image: ImageInput, answers: Answers) -> list[ModelQuery]:
        """All questions at once."""
        return [query for question in self._questions[caption] for query in question.queries(image)]

    def score(self, caption: int, image: ImageInput, answers: Answers) -> ImageScore:
        """As `combine` says; NaN where an answer is missing."""
        questions = self._questions[caption]
        values = [question.value(image, answers) for question in questions]
        self.values[caption].append(values)
        missing = sum(map(math.isnan, values))
        if missing:
            names = self._combine(questions, [0.0] * len(values))
            nan = dict.fromkeys(names, math.nan)
            return ImageScore(nan, f"{missing} of {len(values)} questions without an answer")
        wrong = [f"{q.name or q.text} {v:.2f}" for q, v in zip(questions, values) if v < 0.5]
        return ImageScore(self._combine(questions, values), "; ".join(wrong))

    def tag_rows(self) -> list[ResultRow]:
        """A row for each tag, by name: the mean over its questions, each over its images.

        Its groups hold a value a question. `failed` counts images without an answer to one.
        """
        found: dict[str, list[float]] = {}
        images: Counter[str] = Counter()
        failed: Counter[str] = Counter()
        for questions, scored in zip(self._questions, self.values):
            places: dict[str, list[int]] = {}
            for i, question in enumerate(questions):
                known = [values[i] for values in scored if not math.isnan(values[i])]
                for tag in question.tags:
                    places.setdefault(tag, []).append(i)
                    mean = math.fsum(known) / len(known) if known else math.nan
                    found.setdefault(tag, []).append(mean)
            for tag, indices in places.items():
                images[tag] += len(scored)
                failed[tag] += sum(any(math.isnan(v[i]) for i in indices) for v in scored)
        return [
            ResultRow(tag, (np.array(values),), images[tag], failed[tag], "")
            for tag, values in sorted(found.items())
        ]
