"""Labels of samples and of pairs of samples, from a file of JSON lines.

A line is one of
- a sample: `image`, `caption`, `labels` by term (numbers; null: not known), and if wanted `plan`,
  `id` and `group` (samples that belong together; else those of one caption do). A line of
  `gotr1 judge --out` is one too: its `scores` are the labels.
- a pair: `images` [a, b], `caption`, `preferred` "a", "b" or "tie", and if wanted `plans` [a, b];
- thresholds: `thresholds` by term, the labels from which on a sample is a positive one.
Images are found from the folder of the file, else from the working directory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import parse_json_object, read_lines
from gotr1_jax.rewards.stored_samples import StoredSample
from gotr1_jax.tokenizers.janus import without_boi

LEAST_SAMPLES = 3
_LARGEST = 1e9  # of a label; squares of larger ones lose their digits
_PREFERRED = {"a": 1.0, "b": 0.0, "tie": 0.5}


@dataclass(frozen=True)
class LabelledSample:
    """A sample with labels by term; NaN where one is not known."""

    sample: StoredSample
    labels: Mapping[str, float]


@dataclass(frozen=True)
class LabelledPair:
    """Two samples of a caption; `first_wins` is 1 or 0, or 0.5 for a tie."""

    first: StoredSample
    second: StoredSample
    first_wins: float


@dataclass(frozen=True)
class Labels:
    """What a file of labels holds.

    `required` are the terms that people have labelled: the judge must give them. Those of scores
    are used where it does.
    """

    samples: tuple[LabelledSample, ...]
    pairs: tuple[LabelledPair, ...]
    thresholds: Mapping[str, float] = field(default_factory=dict)
    required: frozenset[str] = frozenset()

    @property
    def terms(self) -> tuple[str, ...]:
        """All labelled terms, in the order of their first line."""
        return tuple(dict.fromkeys(term for s in self.samples for term in s.labels))


def read_labels(path: Path) -> Labels:
    """The labels of a file.

    InputError, with file and line, for a line that is none of the three kinds, and where an image
    is missing; also for fewer than three samples where there are no pairs either.
    """
    samples, pairs = list[LabelledSample](), list[LabelledPair]()
    thresholds, required = dict[str, float](), set[str]()
    for number, line in read_lines(path, "labels"):
        where = f"{path}, line {number}"
        value = parse_json_object(line, where)
        if "thresholds" in value:
            thresholds |= _numbers(value, "thresholds", where)
        elif "preferred" in value:
            pairs.append(_read_pair(value, path, where, len(pairs)))
        else:
            key = "labels" if "labels" in value else "scores"
            labels = _numbers(value, key, where, nullable=True)
            if key == "labels":
                required |= labels.keys()
            samples.append(LabelledSample(_read_sample(value, path, where, number), labels))
    if len(samples) < LEAST_SAMPLES and not pairs:
        raise InputError(
            f"{path} has {len(samples)} labelled samples and no pairs; a comparison needs "
            f"{LEAST_SAMPLES} samples or more"
        )
    return Labels(tuple(samples), tuple(pairs), thresholds, frozenset(required))


def _read_sample(value: Mapping[str, Any], path: Path, where: str, number: int) -> StoredSample:
    caption = _text(value, "caption", where)
    plan = value.get("plan", value.get("plan_text", ""))
    if not isinstance(plan, str):
        raise InputError(f"{where}: plan is no text")
    name = str(value.get("id", value.get("sample", number)))
    image = _find_image(_text(value, "image", where), path, where)
    group = value.get("group")
    if group is None and "scores" in value:
        group = Path(name).parent.as_posix()  # a step's folder, of what gotr1 judge wrote
    return StoredSample(name, caption, without_boi(plan), image, f"{group} {caption}")


def _read_pair(value: Mapping[str, Any], path: Path, where: str, number: int) -> LabelledPair:
    caption, preferred = _text(value, "caption", where), value["preferred"]
    if not isinstance(preferred, str) or preferred not in _PREFERRED:
        raise InputError(f"{where}: preferred is {preferred!r}; use a, b or tie")
    images, plans = value.get("images"), value.get("plans", ["", ""])
    for key, texts in (("images", images), ("plans", plans)):
        if (
            not isinstance(texts, list)
            or len(texts) != 2
            or not all(isinstance(text, str) for text in texts)
        ):
            raise InputError(f"{where}: {key} is no list of two texts, [a, b]")
    assert isinstance(images, list)
    first, second = (
        StoredSample(
            f"pair {number} {side}", caption, without_boi(plan),
            _find_image(image, path, where), f"pair {number}",
        )
        for side, image, plan in zip("ab", images, plans)
    )  # fmt: skip
    return LabelledPair(first, second, _PREFERRED[preferred])


def _find_image(name: str, path: Path, where: str) -> Path:
    for found in (path.parent / name, Path(name)):
        if found.is_file():
            return found
    raise InputError(f"{where}: there is no image {path.parent / name}")


def _numbers(
    value: Mapping[str, Any], key: str, where: str, nullable: bool = False
) -> dict[str, float]:
    numbers = value.get(key)
    if not isinstance(numbers, dict) or not numbers:
        raise InputError(
            f"{where} has no {key} of terms; a line holds image, caption and labels, or images, "
            "caption and preferred, or thresholds"
        )
    found = {}
    for term, number in numbers.items():
        if number is None and nullable:
            found[term] = math.nan
        elif _is_usable(number):
            found[term] = float(number)
        else:
            raise InputError(
                f"{where}: the {key} of {term} is {str(number)[:40]!r}; use a number of at most "
                f"{_LARGEST:g}"
            )
    return found


def _is_usable(number: Any) -> bool:
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    return is_number and bool(abs(number) <= _LARGEST)


def _text(value: Mapping[str, Any], key: str, where: str) -> str:
    text = value.get(key)
    if not isinstance(text, str) or not text:
        raise InputError(f"{where} has no {key}, a text")
    return text
