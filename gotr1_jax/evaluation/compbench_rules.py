"""T2I-CompBench's formulas (Karine-Huang/T2I-CompBench: BLIPvqa_eval, UniDet_eval, 3_in_1_eval).

Pure functions of captions and of the models' answers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from gotr1_jax.data.captions import iter_captions
from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.detections import Detection
from gotr1_jax.evaluation.phrases import ParsedCaption, Word

MAX_PHRASES = 8
_NOT_ASKED = ("top", "the side", "the left", "the right")
_SHORT_SIDE, _LONG_SIDE = 479, 480  # pixels: images are resized to these before detection
_NEAR = 150  # of those pixels
_OVERLAP = 0.1
# The first of this list that a caption contains counts. The last has no defined position.
RELATIONS = ("on side of", "next to", "near", "on the left of", "on the right of",
          "on the bottom of", "on the top of", "on top of")  # fmt: skip
_PREPOSITIONS = ("on top of", "on bottom of", "on the left", "on the right", "next to",
                 "on side of", "near")  # fmt: skip
_PERSONS = ("girl", "boy", "man", "woman")

ComplexKind = Literal["spatial", "action", "both"]


def phrase_questions(caption: ParsedCaption) -> list[str]:
    """The questions about an image: its caption's noun phrases, at most eight, each as `...?`."""
    phrases = [phrase for phrase in caption.phrases if phrase not in _NOT_ASKED]
    return [f"{phrase}?" for phrase in phrases[:MAX_PHRASES]]


def attribute_score(yes_probs: Sequence[float]) -> float:
    """The product of the probabilities of yes; NaN if one is NaN."""
    return math.prod(yes_probs)


def spatial_relation(caption: str) -> str | None:
    """The relation in a caption: the first of `RELATIONS` that is in it anywhere."""
    return next((relation for relation in RELATIONS if relation in caption), None)


def simple_objects(caption: ParsedCaption) -> tuple[str, str] | None:
    """A spatial caption's objects: its first and its last noun."""
    nouns = [word.text for word in caption.words if word.pos == "NOUN"]
    return (person_name(nouns[0]), person_name(nouns[-1])) if nouns else None


def complex_objects(caption: ParsedCaption) -> tuple[str, str] | None:
    """A complex caption's objects: the nouns around its relation; None unless there are two."""
    words = caption.words
    objects: list[str] = []
    for i in range(len(words)):
        length = next((k for k in (3, 2, 1) if _text(words[i : i + k]) in _PREPOSITIONS), 0)
        if not length:
            continue
        before = [w.text for w in words[:i] if w.pos in ("NOUN", "PROPN")]
        objects += before[-1:]
        following = words[i + length :]
        nouns = [word.text for word in following if word.pos == "NOUN"]
        # Of a proper name of several words, the last one.
        names = [a.text for a, b in zip(following, following[1:]) if a.pos == "PROPN" != b.pos]
        objects += (nouns or names)[:1]
    return (person_name(objects[0]), person_name(objects[1])) if len(objects) == 2 else None


def without_adjectives(caption: ParsedCaption) -> str:
    """The text that CLIP compares with the image of a complex caption."""
    return " ".join(word.text for word in caption.words if word.pos != "ADJ")


def spatial_score(
    relation: str | None,
    first: Sequence[Detection],
    second: Sequence[Detection],
    size: tuple[int, int],
) -> float:
    """position / 2 + each object's score / 4; a sum below 0.5 counts as 0.

    Args:
        relation: of the first object to the second, in the caption.
        first, second: detections of each name, best first, in pixels of the image.
        size: (height, width) of the image.
    """
    if first and second:
        score = (first[0].score + second[0].score) / 4
        score += position_score(relation, first[0], second[0], size) / 2
    else:
        score = sum(found[0].score / 4 for found in (first, second) if found)
    return score if score >= 0.5 else 0.0


def position_score(
    relation: str | None, a: Detection, b: Detection, size: tuple[int, int]
) -> float:
    """How well the position of box a relative to box b fits the relation, 0 to 1.

    Next to: 1 where either distance of the centers is below 150 pixels, of an image resized to
    479 pixels; else 150 over the larger distance. Left, right, bottom and top: the offset of the
    centers must have that direction, more than any other, and overlap (IoU) above 0.1 lowers the
    score to 0.1 / IoU. Other relations score 0, "on top of" among them.
    """
    dx = (b.x1 + b.x2 - a.x1 - a.x2) / 2
    dy = (b.y1 + b.y2 - a.y1 - a.y2) / 2
    if relation in ("next to", "on side of", "near"):
        scale = min(_SHORT_SIDE / min(size), _LONG_SIDE / max(size))
        across, down = abs(dx) * scale, abs(dy) * scale
        return 1.0 if min(across, down) < _NEAR else _NEAR / max(across, down)
    ahead = {
        "on the right of": (-dx, dy), "on the left of": (dx, dy),
        "on the bottom of": (-dy, dx), "on the top of": (dy, dx),
    }.get(relation or "")  # fmt: skip
    if ahead is None or ahead[0] <= 0 or ahead[0] <= abs(ahead[1]):
        return 0.0
    overlap = box_iou(a, b)
    return 1.0 if overlap < _OVERLAP else _OVERLAP / overlap


def classify_complex(
    captions: Sequence[str], lists: Mapping[ComplexKind, Sequence[str]]
) -> list[ComplexKind]:
    """Which parts each caption has besides attributes; its score is the mean of all (3-in-1).

    lists: the benchmark's complex_val_spatial.txt and complex_val_action.txt. Without them,
    no relation gives "action", a relation after a form of "to be" "spatial", any other "both".
    """
    if not lists:
        return [_classify_by_words(caption) for caption in captions]
    spatial, action = ({_plain(line) for line in lists[k]} for k in ("spatial", "action"))
    return [
        "spatial" if _plain(c) in spatial else "action" if _plain(c) in action else "both"
        for c in captions
    ]


def read_complex_lists(captions: Path) -> dict[ComplexKind, list[str]]:
    """The lists next to a file of complex captions; empty where both are missing.

    InputError where only one exists.
    """
    names: tuple[ComplexKind, ComplexKind] = ("spatial", "action")
    files = {n: captions.with_name(f"{captions.stem}_{n}.txt") for n in names}
    existing = [file for file in files.values() if file.is_file()]
    if not existing:
        return {}
    if len(existing) == 1:
        missing = next(file for file in files.values() if file not in existing)
        raise InputError(f"{existing[0]} exists, but not {missing}; give both or neither")
    return {name: [line.text for line in iter_captions(file)] for name, file in files.items()}


_BE_RELATION = re.compile(rf"\b(?:is|are|was|were) (?:{'|'.join(RELATIONS)})\b")
_ANY_RELATION = re.compile(rf"\b(?:{'|'.join(RELATIONS)})\b")


def _classify_by_words(caption: str) -> ComplexKind:
    if not _ANY_RELATION.search(caption):
        return "action"
    return "spatial" if _BE_RELATION.search(caption) else "both"


def _plain(caption: str) -> str:
    return caption.split(".")[0].lower()


def person_name(name: str) -> str:
    """What a detector calls a person."""
    return "person" if name in _PERSONS else name


def _text(words: Sequence[Word]) -> str:
    return " ".join(word.text for word in words)


def box_iou(a: Detection, b: Detection) -> float:
    """Intersection over union of two boxes."""
    across = max(0.0, min(a.x2, b.x2) - max(a.x1, b.x1))
    down = max(0.0, min(a.y2, b.y2) - max(a.y1, b.y1))
    areas = [(f.x2 - f.x1) * (f.y2 - f.y1) for f in (a, b)]
    union = sum(areas) - across * down
    return across * down / union if union > 0 else 0.0
