"""Queries to models about an image, and the store of the answers.

A benchmark is scored in two steps: models answer small queries about each image, then a pure
function computes the score from the answers. Answers are stored on disk by content after each
batch of images. A stopped evaluation continues from there and gives the same numbers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from gotr1_jax.evaluation.detections import Detection
from gotr1_jax.vlm_engine.answer_cache import AnswerCache
from gotr1_jax.vlm_engine.base import FirstWords, ImageInput

QueryKind = Literal["yes", "find", "match", "color", "word", "nearer"]
UNBOUNDED = 2**62  # bytes: answers of an evaluation are never dropped


@dataclass(frozen=True)
class ModelQuery:
    """One query about one image.

    Attributes:
        kind: "yes": the probability of the answer yes (0 to 1); "find": all objects of a name, as
            rows of `Detection`; "match": how well a text fits (a cosine, or 0 to 1); "color": the
            color of one object, a word; "word": the probability of the right word (0 to 1), or 1
            or 0 where the answer is read as text; "nearer": how much nearer to the viewer the
            one box is than the other, -1 to 1.
        image: the image.
        text: the question, the object's name, or the text to match.
        color: for "color": the expected color, for models that need it.
        target, other: for "color" the object, and none; for "nearer" both boxes.
        words: for "word": the right answer and wrong ones.
        instruction: for "word": what is said before the image.
    """

    kind: QueryKind
    image: ImageInput
    text: str
    color: str = ""
    target: Detection | None = None
    words: FirstWords | None = None
    instruction: str = ""
    other: Detection | None = None

    @cached_property
    def key(self) -> str:
        """SHA-256 (hex) of everything that the answer can depend on.

        Stored answers are found by it, so the text must not change.
        """
        target, other = map(_describe, (self.target, self.other))
        text = f"({self.kind!r}, {self.image.key!r}, {self.text!r}, {self.color!r}, {target})"
        text += "" if self.other is None else f" {other}"
        text += "" if self.words is None else f" {self.words!r} {self.instruction!r}"
        return _sha256(text)


class QueryModel(Protocol):
    """Anything that answers queries.

    Attributes:
        identity: all that its answers depend on besides the query.
        images_per_call: how many images it takes at once.
    """

    @property
    def identity(self) -> str: ...

    @property
    def images_per_call(self) -> int: ...

    def answer(self, queries: Sequence[ModelQuery]) -> list[Any]:
        """One answer a query, as plain JSON values (see `ModelQuery.kind`); NaN where it failed."""
        ...


class CachedModels:
    """A model for each kind of query. No query goes to a model twice.

    Attributes:
        num_asked: queries that went to a model since this was opened.
    """

    def __init__(self, folder: Path, models: Mapping[QueryKind, QueryModel]) -> None:
        """folder: of answers.jsonl; InputError where it cannot be opened."""
        self._cache = AnswerCache(folder, UNBOUNDED)
        self._models = models
        self.num_asked = 0

    @property
    def images_per_call(self) -> int:
        """How many images to query together."""
        return max(model.images_per_call for model in self._models.values())

    def answer(self, queries: Iterable[ModelQuery]) -> dict[str, Any]:
        """Answers by the queries' keys; NaN where the model failed.

        Each batch of answers is on disk before the next one is asked for.
        """
        answers: dict[str, Any] = {}
        missing: dict[QueryKind, dict[str, ModelQuery]] = {}
        for query in queries:
            stored = self._cache.get(self._storage_key(query))
            if stored is None:
                missing.setdefault(query.kind, {})[query.key] = query
            else:
                answers[query.key] = stored["answer"]
        for kind, unique in missing.items():
            model = self._models[kind]
            for batch in batch_by_image(unique.values(), model.images_per_call):
                new = model.answer(batch)
                if len(new) != len(batch):
                    raise ValueError(f"{model.identity}: {len(new)} answers to {len(batch)}")
                self.num_asked += len(batch)
                self._store(model.identity, batch, new)
                answers |= {query.key: value for query, value in zip(batch, new)}
        return answers

    def _store(self, identity: str, queries: Sequence[ModelQuery], answers: Sequence[Any]) -> None:
        self._cache.add(
            {
                self._storage_key(query): {
                    "model": identity,
                    "picture": query.image.key,
                    "kind": query.kind,
                    "text": query.text,
                    "answer": answer,
                }
                for query, answer in zip(queries, answers)
                if not is_failed(answer)
            }
        )

    def _storage_key(self, query: ModelQuery) -> str:
        return _sha256(f"{self._models[query.kind].identity} {query.key}")[:40]


def is_failed(answer: Any) -> bool:
    """Whether an answer is NaN: the model gave none."""
    return isinstance(answer, float) and math.isnan(answer)


def batch_by_image(queries: Iterable[ModelQuery], images: int) -> Iterator[list[ModelQuery]]:
    """The queries in batches about at most `images` images, in the order of first appearance."""
    by_image: dict[str, list[ModelQuery]] = {}
    for query in queries:
        by_image.setdefault(query.image.key, []).append(query)
    keys = list(by_image)
    for start in range(0, len(keys), images):
        yield [query for key in keys[start : start + images] for query in by_image[key]]


def _describe(box: Detection | None) -> str | None:
    if box is None:
        return None
    return "Found(x1={!r}, y1={!r}, x2={!r}, y2={!r}, score={!r}, runs={!r})".format(*box)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
