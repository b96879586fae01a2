"""GenEval's metadata and rules (djghosh13/geneval, evaluation/evaluate_images.py)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gotr1_jax.data.sources import iter_captions
from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.asks import Detection

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
MOST_OBJECTS = 16
_THRESHOLD, _COUNTING_THRESHOLD = 0.3, 0.9
_POSITION = 0.1  # of both sizes: how much of the offset of the middles does not count


@dataclass(frozen=True)
class Wanted:
    """What an image has to show, or not to show.

    Attributes:
        name: of the class.
        count: at least so many, in an exclusion fewer than so many.
        color: of all of them; empty where any will do.
        relation, target: where each of them is, from all objects of the inclusion `target`.
    """

    name: str
    count: int
    color: str = ""
    relation: str = ""
    target: int = 0


@dataclass(frozen=True)
class Metadata:
    """One line of GenEval's file: what is to be drawn, and how it is judged."""

    tag: str
    prompt: str
    include: tuple[Wanted, ...]
    exclude: tuple[Wanted, ...]

    @property
    def names(self) -> list[str]:
        """The classes to be looked for, each once."""
        return list(dict.fromkeys(wanted.name for wanted in (*self.include, *self.exclude)))


def read_metadata(path: Path) -> list[Metadata]:
    """All lines of a metadata file; InputError, naming the line, for what is none of GenEval's."""
    if not path.is_file():
        raise InputError(f"geneval needs its metadata file; there is no file {path}")
    return [
        parse_metadata(entry.line, f"{path}, line {entry.number}")
        for entry in iter_captions(path, json_lines=False)
    ]


def parse_metadata(text: str, where: str) -> Metadata:
    """The metadata in a line of JSON; InputError for anything else."""
    try:
        value = json.loads(text)
        metadata = Metadata(
            value["tag"],
            value["prompt"],
            tuple(map(_wanted, value["include"])),
            tuple(map(_wanted, value.get("exclude", ()))),
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{where} is no line of GenEval's metadata (an object with tag, prompt and include): "
            f"{error!r}"
        ) from error
    if metadata.tag not in TAGS:
        raise InputError(f"{where}: tag {metadata.tag!r} is none of {', '.join(TAGS)}")
    if any(w.relation and w.target >= i for i, w in enumerate(metadata.include)):
        raise InputError(f"{where}: a position refers to an object that comes later")
    return metadata


def _wanted(value: Mapping[str, Any]) -> Wanted:
    relation, target = value.get("position", ("", 0))
    if relation and relation not in RELATIONS:
        raise ValueError(f"unknown position {relation!r}")
    return Wanted(value["class"], int(value["count"]), value.get("color", ""), relation, target)


def kept_objects(metadata: Metadata, found: Sequence[Detection]) -> list[Detection]:
    """The objects of one class that count: above the task's threshold, best first, at most 16."""
    least = _COUNTING_THRESHOLD if metadata.tag == "counting" else _THRESHOLD
    best = sorted(found, key=lambda f: -f.score)
    return [f for f in best if f.score > least][:MOST_OBJECTS]


def colored_objects(wanted: Wanted, objects: Mapping[str, Sequence[Detection]]) -> list[Detection]:
    """The objects whose color decides: the best `count`, if there are so many."""
    best = list(objects[wanted.name][: wanted.count])
    return best if wanted.color and len(best) == wanted.count else []


def judge_image(
    metadata: Metadata,
    objects: Mapping[str, Sequence[Detection]],
    colors: Mapping[tuple[str, Detection], str],
) -> tuple[bool, str]:
    """Whether an image shows what it has to, and what speaks against it.

    Args:
        metadata: what is wanted.
        objects: of each class's name what `kept_objects` kept.
        colors: of each (expected color, object) of `colored_objects`, the one that it has.
    """
    against: list[str] = []
    groups: list[Sequence[Detection] | None] = []
    for wanted in metadata.include:
        best = objects[wanted.name][: wanted.count]
        reason = _against(wanted, best, groups, colors)
        groups.append(None if reason else best)
        against += [reason] if reason else []
    for wanted in metadata.exclude:
        number = len(objects[wanted.name])
        if number >= wanted.count:
            against.append(f"{number} {wanted.name}, fewer than {wanted.count} wanted")
    return not against, "; ".join(against)


def _against(
    wanted: Wanted,
    best: Sequence[Detection],
    groups: Sequence[Sequence[Detection] | None],
    colors: Mapping[tuple[str, Detection], str],
) -> str:
    """What speaks against one inclusion; empty where it holds."""
    if len(best) < wanted.count:
        return f"{len(best)} {wanted.name}, {wanted.count} wanted"
    if wanted.color:
        named = [colors[wanted.color, found] for found in best]
        if named.count(wanted.color) < wanted.count:
            return f"{wanted.name} is {', '.join(named) or 'colorless'}, not {wanted.color}"
    if wanted.relation:
        targets = groups[wanted.target]
        if targets is None:
            return f"nothing for {wanted.name} to be {wanted.relation}"
        for found in best:
            for target in targets:
                true = relations(found, target)
                if wanted.relation not in true:
                    shown = " and ".join(sorted(true)) or "at no side"
                    return f"{wanted.name} is {shown}, not {wanted.relation}"
    return ""


def relations(a: Detection, b: Detection) -> set[str]:
    """Where a is from b, of `RELATIONS`.

    A tenth of both widths (heights) is taken off the middles' offset; what is left, over the
    length of the whole offset, must be more than a half.
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
