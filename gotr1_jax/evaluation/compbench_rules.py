"""T2I-CompBench's formulas (Karine-Huang/T2I-CompBench: BLIPvqa_eval, UniDet_eval, 3_in_1_eval).

Everything here is a pure function of captions and of what models answered.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from gotr1_jax.data.sources import iter_captions
from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.asks import Detection
from gotr1_jax.evaluation.phrases import Word, Wording

MOST_PHRASES = 8
_NOT_ASKED = ("top", "the side", "the left", "the right")
_SIDE, _LONGEST = 479, 480  # pixels to which images are brought before objects are looked for
_NEAR = 150  # of those pixels
_OVERLAP = 0.1
# The first that a caption holds counts. The last is none that positions are known of.
PLACES = ("on side of", "next to", "near", "on the left of", "on the right of",
          "on the bottom of", "on the top of", "on top of")  # fmt: skip
_PREPOSITIONS = ("on top of", "on bottom of", "on the left", "on the right", "next to",
                 "on side of", "near")  # fmt: skip
_PERSONS = ("girl", "boy", "man", "woman")

Parts = Literal["spatial", "action", "both"]


def phrase_questions(wording: Wording) -> list[str]:
    """What is asked about an image: its caption's noun phrases, at most eight, each as `...?`."""
    phrases = [phrase for phrase in wording.phrases if phrase not in _NOT_ASKED]
    return [f"{phrase}?" for phrase in phrases[:MOST_PHRASES]]


def attribute_score(shares: Sequence[float]) -> float:
    """The product of the questions' yes-probabilities; NaN if one could not be told."""
    return math.prod(shares)


def place_word(caption: str) -> str | None:
    """The relation in a caption: the first of `PLACES` that is in it anywhere."""
    return next((place for place in PLACES if place in caption), None)


def simple_objects(wording: Wording) -> tuple[str, str] | None:
    """A spatial caption's objects: its first and its last noun."""
    nouns = [word.text for word in wording.words if word.kind == "NOUN"]
    return (_person(nouns[0]), _person(nouns[-1])) if nouns else None


def complex_objects(wording: Wording) -> tuple[str, str] | None:
    """A complex caption's objects: the nouns around its place word; None unless there are two."""
    words = wording.words
    objects: list[str] = []
    for i in range(len(words)):
        length = next((k for k in (3, 2, 1) if _text(words[i : i + k]) in _PREPOSITIONS), 0)
        if not length:
            continue
        before = [w.text for w in words[:i] if w.kind in ("NOUN", "PROPN")]
        objects += before[-1:]
        behind = words[i + length :]
        nouns = [word.text for word in behind if word.kind == "NOUN"]
        # Of a proper name of several words, the last one.
        names = [a.text for a, b in zip(behind, behind[1:]) if a.kind == "PROPN" != b.kind]
        objects += (nouns or names)[:1]
    return (_person(objects[0]), _person(objects[1])) if len(objects) == 2 else None


def without_adjectives(wording: Wording) -> str:
    """The text whose cosine with the image counts for a complex caption."""
    return " ".join(word.text for word in wording.words if word.kind != "ADJ")


def spatial_score(
    place: str | None,
    first: Sequence[Detection],
    second: Sequence[Detection],
    size: tuple[int, int],
) -> float:
    """Half the position, a quarter each object's score; less than a half counts 0.

    Args:
        place: the caption's relation of the first object to the second.
        first, second: what was found of each name, best first, in pixels of the image.
        size: (height, width) of the image.
    """
    if first and second:
        score = (first[0].score + second[0].score) / 4
        score += position_score(place, first[0], second[0], size) / 2
    else:
        score = sum(found[0].score / 4 for found in (first, second) if found)
    return score if score >= 0.5 else 0.0


def position_score(place: str | None, a: Detection, b: Detection, size: tuple[int, int]) -> float:
    """How well box a stands to box b as `place` says, 0 to 1.

    Next to: 1 where either distance of the middles is below 150 pixels, of an image brought to
    479 pixels; else 150 over the larger distance. Left, right, bottom and top: the middles must
    lie so, further apart in that direction than in the other, and overlap (IoU) above 0.1 counts
    against it. Other relations score 0, "on top of" among them.
    """
    dx = (b.x1 + b.x2 - a.x1 - a.x2) / 2
    dy = (b.y1 + b.y2 - a.y1 - a.y2) / 2
    if place in ("next to", "on side of", "near"):
        scale = min(_SIDE / min(size), _LONGEST / max(size))
        across, down = abs(dx) * scale, abs(dy) * scale
        return 1.0 if min(across, down) < _NEAR else _NEAR / max(across, down)
    ahead = {
        "on the right of": (-dx, dy), "on the left of": (dx, dy),
        "on the bottom of": (-dy, dx), "on the top of": (dy, dx),
    }.get(place or "")  # fmt: skip
    if ahead is None or ahead[0] <= 0 or ahead[0] <= abs(ahead[1]):
        return 0.0
    overlap = _iou(a, b)
    return 1.0 if overlap < _OVERLAP else _OVERLAP / overlap


def complex_parts(captions: Sequence[str], lists: Mapping[Parts, Sequence[str]]) -> list[Parts]:
    """Which parts each caption has; its score is their mean, attributes are always one (3-in-1).

    lists: the benchmark's complex_val_spatial.txt and complex_val_action.txt; without them a
    caption goes by its words: no place word is "action"; one behind a form of to be is "spatial",
    any other "both".
    """
    if not lists:
        return [_parts_by_words(caption) for caption in captions]
    spatial, action = ({_plain(line) for line in lists[k]} for k in ("spatial", "action"))
    return [
        "spatial" if _plain(c) in spatial else "action" if _plain(c) in action else "both"
        for c in captions
    ]


def read_part_lists(captions: Path) -> dict[Parts, list[str]]:
    """The lists beside a file of complex captions; empty where both are missing.

    InputError where only one is there.
    """
    names: tuple[Parts, Parts] = ("spatial", "action")
    files = {n: captions.with_name(f"{captions.stem}_{n}.txt") for n in names}
    there = [file for file in files.values() if file.is_file()]
    if not there:
        return {}
    if len(there) == 1:
        missing = next(file for file in files.values() if file not in there)
        raise InputError(f"{there[0]} is there, but not {missing}; give both or neither")
    return {name: [line.text for line in iter_captions(file)] for name, file in files.items()}


_BE_PLACE = re.compile(rf"\b(?:is|are|was|were) (?:{'|'.join(PLACES)})\b")
_ANY_PLACE = re.compile(rf"\b(?:{'|'.join(PLACES)})\b")


def _parts_by_words(caption: str) -> Parts:
    if not _ANY_PLACE.search(caption):
        return "action"
    return "spatial" if _BE_PLACE.search(caption) else "both"


def _plain(caption: str) -> str:
    return caption.split(".")[0].lower()


def _person(name: str) -> str:
    return "person" if name in _PERSONS else name


def _text(words: Sequence[Word]) -> str:
    return " ".join(word.text for word in words)


def _iou(a: Detection, b: Detection) -> float:
    across = max(0.0, min(a.x2, b.x2) - max(a.x1, b.x1))
    down = max(0.0, min(a.y2, b.y2) - max(a.y1, b.y1))
    areas = [(f.x2 - f.x1) * (f.y2 - f.y1) for f in (a, b)]
    union = sum(areas) - across * down
    return across * down / union if union > 0 else 0.0
