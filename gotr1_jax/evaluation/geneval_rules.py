"""GenEval's metadata and rules (djghosh13/geneval, evaluation/evaluate_images.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gotr1_jax.data.captions import iter_captions
from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.detections import Detection
from gotr1_jax.io.reading import parse_json

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
MAX_OBJECTS = 16
_THRESHOLD, _COUNTING_THRESHOLD = 0.3, 0.9
_POSITION = 0.1  # tolerance: share of both sizes subtracted from the centers' offset


@dataclass(frozen=True)
class Requirement:
    """Objects of one class that an image must show, or must not.

    Attributes:
        name: of the class.
        count: at least this many; in an exclusion, fewer than this many.
        color: of all of them; empty where any color is right.
        relation, target: the position of each of them relative to all objects of the requirement
            `include[target]`; empty where any position is right.
    """

    name: str
    count: int
    color: str = ""
    relation: str = ""
    target: int = 0


@dataclass(frozen=True)
class GenevalPrompt:
    """One line of GenEval's metadata file: the prompt and what its image must show."""

    tag: str
    prompt: str
    include: tuple[Requirement, ...]
    exclude: tuple[Requirement, ...]

    @property
    def names(self) -> list[str]:
        """The classes to detect, each once."""
        return list(dict.fromkeys(required.name for required in (*self.include, *self.exclude)))


def read_prompts(path: Path) -> list[GenevalPrompt]:
    """All lines of a metadata file; InputError, naming the line, for one that is not GenEval's."""
    if not path.is_file():
        raise InputError(f"geneval needs its metadata file; there is no file {path}")
    return [
        parse_prompt(entry.line, f"{path}, line {entry.number}")
        for entry in iter_captions(path, json_lines=False)
    ]


def parse_prompt(text: str, where: str) -> GenevalPrompt:
    """The prompt in a line of JSON; InputError for anything else."""
    try:
        value = parse_json(text, "it")
        if not isinstance(value["include"], list):
            raise ValueError("include is no list of objects")
        if not all(isinstance(value[name], str) for name in ("tag", "prompt")):
            raise ValueError("tag and prompt are texts")
        prompt = GenevalPrompt(
            value["tag"],
            value["prompt"],
            tuple(map(_requirement, value["include"])),
            tuple(map(_requirement, value.get("exclude", ()))),
        )
    except (InputError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{where} is no line of GenEval's metadata (an object with tag, prompt and include): "
            f"{error!r}"
        ) from error
    if prompt.tag not in TAGS:
        raise InputError(f"{where}: tag {prompt.tag!r} is none of {', '.join(TAGS)}")
    if not prompt.include:
        raise InputError(f"{where}: include names no object")
    if any(required.relation and required.target >= i for i, required in enumerate(prompt.include)):
        raise InputError(f"{where}: a position refers to an object that comes later")
    return prompt


def _requirement(value: Mapping[str, Any]) -> Requirement:
    relation, target = value.get("position", ("", 0))
    if relation and relation not in RELATIONS:
        raise ValueError(f"unknown position {relation!r}")
    name, count, color = value["class"], value["count"], value.get("color", "")
    if not isinstance(name, str) or not isinstance(color, str):
        raise ValueError("class and color are texts")
    if type(count) is not int or count < 1 or type(target) is not int or target < 0:
        raise ValueError("a count is a whole number from 1, the place of an object one from 0")
    return Requirement(name, count, color, relation, target)


def filter_detections(prompt: GenevalPrompt, found: Sequence[Detection]) -> list[Detection]:
    """The detections of one class above the task's threshold, best first, at most 16."""
    threshold = _COUNTING_THRESHOLD if prompt.tag == "counting" else _THRESHOLD
    best = sorted(found, key=lambda detection: -detection.score)
    return [d for d in best if d.score > threshold][:MAX_OBJECTS]


def objects_to_color(
    required: Requirement, objects: Mapping[str, Sequence[Detection]]
) -> list[Detection]:
    """The objects to classify by color: the best `count`; none if there are fewer."""
    best = list(objects[required.name][: required.count])
    return best if required.color and len(best) == required.count else []


def check_image(
    prompt: GenevalPrompt,
    objects: Mapping[str, Sequence[Detection]],
    colors: Mapping[tuple[str, Detection], str],
) -> tuple[bool, str]:
    """Whether an image shows what its prompt requires, and each violation.

    Args:
        prompt: the requirements.
        objects: by class name, the result of `filter_detections`.
        colors: by (expected color, object) of `objects_to_color`, the color that it has.
    """
    violations: list[str] = []
    groups: list[Sequence[Detection] | None] = []
    for required in prompt.include:
        best = objects[required.name][: required.count]
        violation = _violation(required, best, groups, colors)
        groups.append(None if violation else best)
        violations += [violation] if violation else []
    for excluded in prompt.exclude:
        number = len(objects[excluded.name])
        if number >= excluded.count:
            violations.append(f"{number} {excluded.name}, fewer than {excluded.count} wanted")
    return not violations, "; ".join(violations)


def _violation(
    required: Requirement,
    best: Sequence[Detection],
    groups: Sequence[Sequence[Detection] | None],
    colors: Mapping[tuple[str, Detection], str],
) -> str:
    """What is wrong with the objects of one requirement; empty where it holds."""
    if len(best) < required.count:
        return f"{len(best)} {required.name}, {required.count} wanted"
    if required.color:
        named = [colors[required.color, found] for found in best]
        if named.count(required.color) < required.count:
            return f"{required.name} is {', '.join(named) or 'colorless'}, not {required.color}"
    if required.relation:
        targets = groups[required.target]
        if targets is None:
            return f"nothing for {required.name} to be {required.relation}"
        for found in best:
            for target in targets:
                true = relations(found, target)
                if required.relation not in true:
                    shown = " and ".join(sorted(true)) or "at no side"
                    return f"{required.name} is {shown}, not {required.relation}"
    return ""


def relations(a: Detection, b: Detection) -> set[str]:
    """The position of a relative to b, out of `RELATIONS`.

    A tenth of both widths (heights) is subtracted from the centers' offset. The rest, divided by
    the length of the whole offset, must be more than a half.
    """
    first, second = np.array(a[:4]).reshape(2, 2), np.array(b[:4]).reshape(2, 2)
    offset = first.mean(axis=0) - second.mean(axis=0)
    sizes = np.abs(first[1] - first[0]) + np.abs(second[1] - second[0])
    left = np.maximum(np.abs(offset) - _POSITION * sizes, 0) * np.sign(offset)
    if np.all(np.abs(left) < 1e-3):
        return set()
    dx, dy = left / np.linalg.norm(offset)
    held = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {relation for relation, holds in held.items() if holds}
