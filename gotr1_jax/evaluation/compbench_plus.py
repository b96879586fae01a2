"""T2I-CompBench++'s categories 3d_spatial and numeracy (Karine-Huang/T2I-CompBench:
UniDet_eval/3D_spatial_eval.py and numeracy_eval.py)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.benchmark import Answers, ImageScore
from gotr1_jax.evaluation.compbench_rules import box_iou, person_name, simple_objects
from gotr1_jax.evaluation.detections import Detection, read_detections
from gotr1_jax.evaluation.phrases import CaptionParser
from gotr1_jax.evaluation.queries import ModelQuery, QueryKind, is_failed
from gotr1_jax.io.reading import read_lines
from gotr1_jax.vlm_engine.base import ImageInput

OBJECTS_FILE = "new_objects.txt"
RELATIONS_3D = ("in front of", "behind", "hidden")
_ENOUGH = 0.5  # overlap (IoU) of a full score
_SAME = 0.9
_NUMBERS = {
    "a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
    "eight": 8,
}  # fmt: skip
# What the benchmark looks for in the place of a caption's word.
_DETECTED = {"ship": "boat", "telivision": "tv", "goldfish": "fish", "painting": "picture"}
_WORD = re.compile(r"\w+(?:[-']\w+)*|[^\w\s]")


class Counted(NamedTuple):
    """An object of a caption and how many of it there shall be."""

    name: str
    number: int


def depth_relation(caption: str) -> str | None:
    """The relation in a caption: the first of `RELATIONS_3D` that is in it anywhere."""
    return next((relation for relation in RELATIONS_3D if relation in caption), None)


def depth_score(
    relation: str | None, first: Sequence[Detection], second: Sequence[Detection], nearer: float
) -> float:
    """Each object's score / 4, and half of how well their places fit; nothing is cut off.

    The places fit where the right one is nearer: by the boxes' IoU over 0.5, at most 1; boxes
    that do not touch do not fit, nor does an IoU of 0.5 to the last digit, as published.

    Args:
        relation: of the first object to the second. None: no place fits.
        first, second: detections of each name, best first.
        nearer: mean depth of the first box less that of the second, larger is nearer.
    """
    if not (first and second):
        return math.fsum(found[0].score / 4 for found in (first, second) if found)
    score = (first[0].score + second[0].score) / 4
    sign = {None: 0, "in front of": 1}.get(relation, -1)
    overlap = box_iou(first[0], second[0])
    if sign * nearer <= 0 or overlap == _ENOUGH:
        return score
    return score + min(1.0, overlap / _ENOUGH) / 2


def swap_axes(box: Detection) -> Detection:
    """The box mirrored at the diagonal.

    The published script takes a box's x for rows of the depth map and its y for columns.
    """
    return Detection.from_box((box.y1, box.x1, box.y2, box.x2), box.score)


class DepthRules:
    """Queries and scores of 3d_spatial.

    `score` is that of the published script, which mistakes the axes of the depth map; `upright` is
    with the depths under the boxes.
    """

    kinds: list[QueryKind] = ["find", "nearer"]

    def __init__(self, captions: Sequence[str], parser: CaptionParser) -> None:
        self._relations = [depth_relation(caption) for caption in captions]
        self._names = [simple_objects(parser.parse(caption)) or () for caption in captions]

    def queries(self, caption: int, image: ImageInput, answers: Answers) -> list[ModelQuery]:
        """The objects; after their answers, which one is nearer, if both are there."""
        finds = [ModelQuery("find", image, name) for name in self._names[caption]]
        return finds + self._nearer(caption, image, answers, finds)

    def score(self, caption: int, image: ImageInput, answers: Answers) -> ImageScore:
        """score and upright; NaN where an answer is missing."""
        finds = [ModelQuery("find", image, name) for name in self._names[caption]]
        nearer = self._nearer(caption, image, answers, finds)
        lost = [q.text for q in (*finds, *nearer) if is_failed(answers[q.key])]
        if lost:
            nan = {"score": math.nan, "upright": math.nan}
            return ImageScore(nan, f"no answer: {'; '.join(lost)}")
        found = [read_detections(answers[query.key]) for query in finds]
        first, second = found or ([], [])
        depths = [answers[query.key] for query in nearer] or [0.0, 0.0]
        values = {
            name: depth_score(self._relations[caption], first, second, depth)
            for name, depth in zip(("score", "upright"), depths)
        }
        parts = [f"{q.text} {len(f)} found" for q, f in zip(finds, found)]
        parts += [f"{q.text} {depth:+.3f}" for q, depth in zip(nearer[1:], depths[1:])]
        return ImageScore(values, "; ".join(parts))

    def _nearer(
        self, caption: int, image: ImageInput, answers: Answers, finds: Sequence[ModelQuery]
    ) -> list[ModelQuery]:
        """For `score` and for `upright`; none where an object is missing or not looked for yet."""
        found = [answers.get(query.key, math.nan) for query in finds]
        if any(map(is_failed, found)) or not all(found) or self._relations[caption] is None:
            return []
        if len(finds) != 2:
            return []
        a, b = (read_detections(answer)[0] for answer in found)
        first, second = (query.text for query in finds)
        text = f"is the {first} nearer to the viewer than the {second}?"
        pairs = ((swap_axes(a), swap_axes(b)), (a, b))
        return [ModelQuery("nearer", image, text, target=x, other=y) for x, y in pairs]


def read_object_names(captions: Path) -> dict[str, str]:
    """Singular and plural -> singular, of the list beside a file of captions; empty where none is.

    InputError, naming the line, for anything but `singular - plural`.
    """
    file = captions.with_name(OBJECTS_FILE)
    if not file.is_file():
        return {}
    names: dict[str, str] = {}
    for number, line in read_lines(file, "names of objects"):
        singular, sign, plural = line.lower().partition(" - ")
        if not sign or not singular.strip() or not plural.strip():
            raise InputError(f"{file}, line {number} is {line[:60]!r}, not 'singular - plural'")
        for name in (singular.strip(), plural.strip()):
            names.setdefault(name, singular.strip())
    return names


def counted_objects(
    caption: str, names: Mapping[str, str], parser: CaptionParser | None = None
) -> list[Counted]:
    """The objects of a caption with their numbers: each number word before a known name.

    Names have one word or two. Without `names` the noun phrases of `parser` that begin with a
    number word are taken, and the ending of their last word.
    """
    if not names and parser is not None:
        phrases = (_WORD.findall(phrase) for phrase in parser.parse(caption).phrases)
        found = [(words[-1], _NUMBERS[words[0]]) for words in phrases
                 if len(words) > 1 and words[0] in _NUMBERS]  # fmt: skip
        return [Counted(_detected(_singular(name) if n > 1 else name), n) for name, n in found]
    words = _WORD.findall(caption)
    objects = []
    for i, word in enumerate(words):
        if word not in _NUMBERS:
            continue
        candidates = (" ".join(words[i + 1 : i + 1 + size]) for size in (2, 1))
        name = next((c for c in candidates if c in names), None)
        if name is not None:
            objects.append(Counted(_detected(names[name]), _NUMBERS[word]))
    return objects


def count_score(objects: Sequence[Counted], found: Mapping[str, Sequence[Detection]]) -> float:
    """For each object a half where it is found, and a half where in the right number; the mean.

    0 for a caption that names no object.
    """
    if not objects:
        return 0.0
    numbers = [len(distinct(found[name])) for name, _ in objects]
    points = [(n > 0) / 2 + (n == o.number and n > 0) / 2 for n, o in zip(numbers, objects)]
    return math.fsum(points) / len(points)


def distinct(found: Sequence[Detection]) -> list[Detection]:
    """Without those that are nearly the same as an earlier one, or lie in it, or it in them."""
    kept: list[Detection] = []
    for detection in found:
        if not any(_is_same(detection, other) for other in kept):
            kept.append(detection)
    return kept


def _is_same(a: Detection, b: Detection) -> bool:
    """With sides counted in pixels, both ends included."""
    across = max(0.0, min(a.x2, b.x2) - max(a.x1, b.x1) + 1)
    down = max(0.0, min(a.y2, b.y2) - max(a.y1, b.y1) + 1)
    inside = across * down
    areas = [(d.x2 - d.x1 + 1) * (d.y2 - d.y1 + 1) for d in (a, b)]
    return any(inside / area > _SAME for area in (*areas, sum(areas) - inside))


class NumeracyRules:
    """Queries and scores of numeracy."""

    kinds: list[QueryKind] = ["find"]

    def __init__(
        self, captions: Sequence[str], names: Mapping[str, str], parser: CaptionParser | None
    ) -> None:
        """names: see `read_object_names`; parser: where there are none."""
        self._objects = [counted_objects(caption, names, parser) for caption in captions]

    def queries(self, caption: int, image: ImageInput, answers: Answers) -> list[ModelQuery]:
        """Each object of the caption once."""
        names = dict.fromkeys(name for name, _ in self._objects[caption])
        return [ModelQuery("find", image, name) for name in names]

    def score(self, caption: int, image: ImageInput, answers: Answers) -> ImageScore:
        """score; NaN where an answer is missing."""
        queries = self.queries(caption, image, answers)
        if any(is_failed(answers[query.key]) for query in queries):
            return ImageScore({"score": math.nan}, "a detection failed")
        found = {query.text: read_detections(answers[query.key]) for query in queries}
        parts = [f"{n} {name}: {len(distinct(found[name]))}" for name, n in self._objects[caption]]
        return ImageScore({"score": count_score(self._objects[caption], found)}, "; ".join(parts))


def _detected(name: str) -> str:
    return _DETECTED.get(name, person_name(name))


_ENDINGS = (("ies", "y"), ("ives", "ife"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("s", ""))
_IRREGULAR = {"men": "man", "women": "woman", "people": "person", "mice": "mouse",
              "tomatoes": "tomato"}  # fmt: skip


def _singular(name: str) -> str:
    """The singular of an English plural, by its ending."""
    if name in _IRREGULAR:
        return _IRREGULAR[name]
    ending = next(((e, to) for e, to in _ENDINGS if name.endswith(e) and len(name) > 3), ("", ""))
    return name[: len(name) - len(ending[0])] + ending[1]
