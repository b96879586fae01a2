"""What models are asked about an image, and the store of what they answered.

A benchmark is scored in two steps: models answer small questions about each image, and a pure
function makes the score of the answers. Answers are kept on disk by content, an image at a time,
so an evaluation that was stopped goes on where it was, and gives the same numbers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.images import open_image
from gotr1_jax.vlm_engine.answer_cache import AnswerCache
from gotr1_jax.vlm_engine.base import ImageInput, make_image_input

Kind = Literal["yes", "find", "match", "color"]
UNBOUNDED = 2**62  # bytes: answers of an evaluation are never forgotten


class Detection(NamedTuple):
    """An object in an image.

    Attributes:
        x1, y1, x2, y2: its box in pixels of the image, origin top left.
        score: how sure the detector is, 0 to 1.
        runs: its mask by `mask_runs`; empty where the detector has none.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    score: float
    runs: tuple[int, ...] = ()

    @classmethod
    def of(cls, box: Iterable[float], score: float, runs: Iterable[int] = ()) -> Detection:
        """The object with the box (x1, y1, x2, y2)."""
        x1, y1, x2, y2 = map(float, box)
        return cls(x1, y1, x2, y2, float(score), tuple(runs))


@dataclass(frozen=True)
class ModelQuery:
    """One question about one image.

    Attributes:
        kind: "yes": how probable is the answer yes (0 to 1); "find": all objects of a name, as
            rows of `Detection`; "match": how well a text fits (a cosine, or 0 to 1); "color": the
            color of one object, a word.
        image: what is asked about.
        text: the question, the object's name, or the text to be matched.
        color: of the kind "color": the one that is expected, for models that are asked for it.
        place: of the kind "color": the object.
    """

    kind: Kind
    image: ImageInput
    text: str
    color: str = ""
    place: Detection | None = None

    @cached_property
    def key(self) -> str:
        """SHA-256 (hex) of everything that an answer can depend on."""
        parts = (self.kind, self.image.key, self.text, self.color, self.place)
        return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()


class QueryModel(Protocol):
    """A model, or something that stands for one.

    `identity` is all that its answers depend on besides the question. `images` is how many
    images it takes at once. An answer is what the kind of the question says, as plain JSON
    values; NaN where there is none.
    """

    @property
    def identity(self) -> str: ...

    @property
    def images(self) -> int: ...

    def answer(self, asks: Sequence[ModelQuery]) -> list[Any]: ...


class QueryAnswers:
    """Asks each different question once in the life of a folder.

    Attributes:
        asked: questions that went to a model since this was opened.
    """

    def __init__(self, folder: Path, answerers: Mapping[Kind, QueryModel]) -> None:
        """folder: where answers.jsonl is; InputError where it cannot be opened."""
        self._cache = AnswerCache(folder, UNBOUNDED)
        self._answerers = answerers
        self.asked = 0

    @property
    def images(self) -> int:
        """How many images should be asked about together."""
        return max(answerer.images for answerer in self._answerers.values())

    def ask(self, asks: Iterable[ModelQuery]) -> dict[str, Any]:
        """Answers by the questions' keys; NaN where the model could not tell.

        What a model answers about its images is on disk before it is asked about the next.
        """
        answers: dict[str, Any] = {}
        left: dict[Kind, dict[str, ModelQuery]] = {}
        for ask in asks:
            known = self._cache.get(self._place(ask))
            if known is None:
                left.setdefault(ask.kind, {})[ask.key] = ask
            else:
                answers[ask.key] = known["answer"]
        for kind, different in left.items():
            answerer = self._answerers[kind]
            for group in by_images(different.values(), answerer.images):
                given = answerer.answer(group)
                if len(given) != len(group):
                    raise ValueError(f"{answerer.identity}: {len(given)} answers to {len(group)}")
                self.asked += len(group)
                self._keep(group, given)
                answers |= {ask.key: value for ask, value in zip(group, given)}
        return answers

    def _keep(self, asks: Sequence[ModelQuery], answers: Sequence[Any]) -> None:
        self._cache.add(
            {
                self._place(ask): {
                    "model": self._answerers[ask.kind].identity,
                    "picture": ask.image.key,
                    "kind": ask.kind,
                    "text": ask.text,
                    "answer": answer,
                }
                for ask, answer in zip(asks, answers)
                if not is_missing(answer)
            }
        )

    def _place(self, ask: ModelQuery) -> str:
        text = f"{self._answerers[ask.kind].identity} {ask.key}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def found_objects(answer: Sequence[Sequence[Any]]) -> list[Detection]:
    """The answer to a question of the kind "find"."""
    return [Detection.of(row[:4], row[4], row[5]) for row in answer]


def is_missing(answer: Any) -> bool:
    """Whether a model could not tell."""
    return isinstance(answer, float) and math.isnan(answer)


def by_images(asks: Iterable[ModelQuery], images: int) -> Iterator[list[ModelQuery]]:
    """The questions in groups about at most so many images, in the order of their first ones."""
    waiting: dict[str, list[ModelQuery]] = {}
    for ask in asks:
        waiting.setdefault(ask.image.key, []).append(ask)
    keys = list(waiting)
    for start in range(0, len(keys), images):
        yield [ask for key in keys[start : start + images] for ask in waiting[key]]


def read_image(path: Path) -> ImageInput:
    """The image in a file; InputError where it cannot be decoded."""
    return make_image_input(np.array(open_image(path)))


def mask_runs(mask_HW: np.ndarray) -> tuple[int, ...]:
    """A mask, row by row, as the lengths of its runs, the first one of pixels that are off."""
    flat = np.asarray(mask_HW, bool).ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat])))
    return tuple(np.diff(np.concatenate([[0], edges, [flat.size]])).tolist())


def mask_from_runs(runs: Sequence[int], height: int, width: int) -> np.ndarray:
    """Inverse of `mask_runs`: bool (height, width). InputError where the sizes do not agree."""
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    if flat.size != height * width:
        raise InputError(
            f"a mask of {flat.size} pixels does not belong to an image of {width}x{height}"
        )
    return flat.reshape(height, width)
