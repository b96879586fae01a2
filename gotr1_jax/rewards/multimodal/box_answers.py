"""Parses the boxes in a model's answer, and fits them to the image that they refer to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gotr1_jax.rewards.multimodal.denials import is_denial
from gotr1_jax.rewards.multimodal.json_values import blank, values, whole_value
from gotr1_jax.rewards.multimodal.quotations import is_quoted, looks_like_answer, plain
from gotr1_jax.rewards.multimodal.thoughts import UnreadableError, answer_text

AnswerBox = tuple[float, float, float, float]

MAX_BOXES = 64
_LARGEST = 1e7  # of a coordinate
_OUTSIDE = 1.25  # of a side: up to here a box may leave the image
_COORDINATE = r"\s{0,9}([-+]?\d{1,7}(?:\.\d{0,9})?)\s{0,9}"
_CORNERS = (
    rf"[\[(]{_COORDINATE},{_COORDINATE}[\])]?\s{{0,9}},\s{{0,9}}[\[(]?{_COORDINATE},"
    rf"{_COORDINATE},?\s{{0,9}}[\])]"
)
_JUST_NUMBERS = r"(?:,|\s)".join([_COORDINATE] * 4)
_BOX = re.compile(_CORNERS)
_KEYED_BOX = re.compile(rf"\bb?box(?:_2d|es)?[\"']?\s{{0,9}}:\s{{0,9}}{_CORNERS}", re.IGNORECASE)
_NUMBERS = re.compile(_JUST_NUMBERS)
# Words around four numbers where no list is written: tags, names of the corners.
_TAGGED_BOX = re.compile(
    rf"(?:\A|<box>)\s{{0,9}}{_JUST_NUMBERS}\s{{0,9}}(?:\Z|</box>)", re.IGNORECASE
)
_BETWEEN = rf"[^\w+-]{{1,4}}{_COORDINATE}[^\w+-]{{0,4}}"
_SPELLED_BOX = re.compile(
    rf"\bx_?(?:1|min)\b{_BETWEEN}\by_?(?:1|min)\b{_BETWEEN}\bx_?(?:2|max)\b{_BETWEEN}"
    rf"\by_?(?:2|max)\b{_BETWEEN}"
    rf"|\btop[ -]?left(?: corner)?[^\w+-]{{1,4}}{_COORDINATE},{_COORDINATE}\)\W{{1,4}}(?:and )?"
    rf"(?:the )?bottom[ -]?right(?: corner)?[^\w+-]{{1,4}}{_COORDINATE},{_COORDINATE}\)",
    re.IGNORECASE,
)
# Of an object that has several, the first counts.
_KEYS = ("bbox_2d", "bbox", "box", "bounding_box", "boundingbox", "bbox2d")
_CORNER_KEYS = (
    ("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"), ("left", "top", "right", "bottom"),
)  # fmt: skip
_SIZE_KEYS = (("x", "y", "width", "height"), ("x", "y", "w", "h"))  # as COCO's: the corner first
_FENCE = re.compile(r"```\w*")
_NOTHING = {"none", "no", "n/a", "null", "{}", "[]", "empty list", "empty"}


def parse_boxes(text: str, material: str = "") -> list[AnswerBox]:
    """(x1, y1, x2, y2) of every box in an answer, x1 <= x2 and y1 <= y2; at most MAX_BOXES.

    An empty list, null, the bare word "none" or a sentence that plainly denies it (see `denials`)
    means no boxes. Units and range are the model's. `material` is the name that was searched for.
    UnreadableError where it cannot be read.
    """
    answer = answer_text(text, material)
    bare = _FENCE.sub("", plain(answer)).strip(" \t\r\n.!\"'")
    if bare.lower() in _NOTHING:
        return []
    for form in (answer, plain(answer)):
        whole = whole_value(form)
        if whole is not None:
            found = _boxes_in(whole)
            if found is None:
                raise UnreadableError("no boxes in the JSON")
            return found[:MAX_BOXES]
    denied = is_denial(plain(answer), material)
    if looks_like_answer(material, "boxes"):
        if denied:
            return []
        raise UnreadableError("the name that was searched for looks like an answer")
    boxes = _boxes_in_text(answer)
    if denied and boxes:
        raise UnreadableError("it denies the object and has boxes")
    if boxes is None and not denied:
        raise UnreadableError
    return (boxes or [])[:MAX_BOXES]


def fit_boxes(boxes: Sequence[AnswerBox], frame: tuple[int, int]) -> list[AnswerBox]:
    """The boxes in the units of a frame, in which the model should answer.

    Shares of the sides (all of 0 to 1) are scaled, and a box may leave the frame a little. Raises
    UnreadableError for a box that has no part in the frame or leaves it far: it is in other units,
    which is not certain, and a wrong guess would be a confident 0.

    Args:
        boxes: by `parse_boxes`.
        frame: (height, width) that coordinates refer to.
    """
    height, width = frame
    if any(map(any, boxes)) and all(0 <= value <= 1 for box in boxes for value in box):
        return [(x1 * width, y1 * height, x2 * width, y2 * height) for x1, y1, x2, y2 in boxes]
    for box in boxes:
        if not any(box):
            continue  # the zeros of "not there"
        x1, y1, x2, y2 = box
        if min(box) >= 0 and max(box) <= 1:
            raise UnreadableError("some boxes are shares of the sides and others are not")
        inside = x1 < width and y1 < height and x2 > 0 and y2 > 0
        over = max(x2 / width, y2 / height, 1 - x1 / width, 1 - y1 / height)
        if not inside or over > _OUTSIDE:
            shown = ", ".join(f"{value:g}" for value in box)
            raise UnreadableError(
                f"the box [{shown}] is not one of an image of {width}x{height}; does the model "
                "answer in other units (judge.http.coordinates)?"
            )
    return list(boxes)


def _boxes_in_text(answer: str) -> list[AnswerBox] | None:
    """The boxes of JSON values and of bare coordinates among words; None where there are none."""
    shown = plain(answer)
    spans, lists, single, bare = [], [], [], []
    for item in values(shown):
        spans.append((item.start, item.end))
        found = _boxes_in(item.value)
        if found is None or is_quoted(shown, item.start, item.end):
            continue
        if not _has_key(item.value) and found:
            bare += found
        elif isinstance(item.value, list):
            lists.append(found)
        else:
            single += found
    different = {frozenset(found) for found in [*lists, *([single] if single and lists else [])]}
    if len(different) > 1:
        raise UnreadableError("two different answers")
    if lists or single:
        return lists[0] if lists else single
    rest = blank(shown, spans)
    # An object that is no valid JSON; then bare coordinates.
    for shape in (_KEYED_BOX, _BOX, _TAGGED_BOX, _SPELLED_BOX):
        matches = [m for m in shape.finditer(rest) if not is_quoted(shown, *m.span())]
        if matches:
            bare += [_sorted([float(value) for value in m.groups() if value]) for m in matches]
            break
    return bare or None


def _has_key(value: Any) -> bool:
    if isinstance(value, list):
        return any(_has_key(item) for item in value[:MAX_BOXES])
    return isinstance(value, dict)


def _boxes_in(value: Any, depth: int = 0) -> list[AnswerBox] | None:
    """The boxes of a JSON value; empty where it says so, None where it says nothing of them."""
    if isinstance(value, Mapping):
        return _boxes_of_object(value, depth)
    if not isinstance(value, list) or depth > 4:
        return None
    if not value:
        return []
    box = _corners(value)
    if box is not None:
        return [box]
    if any(isinstance(item, int | float | str) for item in value):
        return None
    if len(value) > 2 and all(_is_pair(item) for item in value):
        return None  # a polygon
    found = [boxes for item in value if (boxes := _boxes_in(item, depth + 1)) is not None]
    return [box for boxes in found for box in boxes] if found else None


def _boxes_of_object(value: Mapping[str, Any], depth: int) -> list[AnswerBox] | None:
    keys = {key.strip().lower(): item for key, item in value.items()}
    for key in (name for name in _KEYS if name in keys):
        item = keys[key]
        if isinstance(item, str):
            match = _NUMBERS.fullmatch(item[:99].strip(" []()"))
            return None if match is None else [_sorted([float(value) for value in match.groups()])]
        return [] if item is None else _boxes_in(item, depth + 1)
    for names in _CORNER_KEYS:
        if all(name in keys for name in names):
            box = _corners([keys[name] for name in names])
            return None if box is None else [box]
    for names in _SIZE_KEYS:
        if all(name in keys for name in names):
            x, y, wide, tall = (_number(keys[name]) for name in names)
            if x is None or y is None or not wide or not tall or min(wide, tall) < 0:
                return None
            return [(x, y, x + wide, y + tall)]
    if not keys:
        return []
    # "box_2d" is Gemini's, with y first, and none of these.
    inner = [v for key, v in keys.items() if isinstance(v, list | dict) and key != "box_2d"]
    found = [boxes for item in inner if (boxes := _boxes_in(item, depth + 1)) is not None]
    return [box for boxes in found for box in boxes] if found else None


def _corners(value: Sequence[Any]) -> AnswerBox | None:
    if len(value) == 2 and all(_is_pair(item) for item in value):
        value = [*value[0], *value[1]]
    numbers = [_number(item) for item in value] if len(value) == 4 else []
    known = [number for number in numbers if number is not None]
    return _sorted(known) if len(known) == 4 else None


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and None not in map(_number, value)


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        match = re.fullmatch(r"\s*[-+]?\d{1,7}(?:\.\d{1,9})?\s*", value[:40])
        return float(value) if match else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < _LARGEST else None


def _sorted(values_: Sequence[float]) -> AnswerBox:
    x1, y1, x2, y2 = values_
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
