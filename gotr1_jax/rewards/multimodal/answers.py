"""Parses a model's answers: scores, boxes and verdicts. Nothing here raises.

Models wrap their JSON in fences and prose, use single or typographic quotes, write "8/10". All
of that is read. What is ambiguous is not: two numbers without a name, a range, another
denominator, a percentage.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

MAX_CHARACTERS = 20_000
"""Of a longer answer its end is read: the result stands there."""
MAX_BOXES = 64
_MAX_STARTS = 64  # positions at which JSON is searched for

# Typographic and full-width characters that stand for plain ones.
_PLAIN = str.maketrans(
    {
        **dict.fromkeys("“”„‟«»＂″", '"'),
        **dict.fromkeys("‘’‚‛`´′＇", "'"),
        **dict.fromkeys("−–—", "-"),
        **{chr(0xFF10 + i): str(i) for i in range(10)},
        **dict(zip("：，．／［］｛｝（）", ":,./[]{}()")),
        "\u00a0": " ",
    }
)
_NUMBER = r"([-+]?\d{1,9}(?:\.\d{1,9})?)"
# A number that goes on is no score: 7-8, 80%, 7,5, 3.4.5.
_WHOLE = r"(?!\s?[%\d]|\s*-\s*\d|[.,]\d|\s*/)"
_OUT_OF = r"(?:\s*(?:/|out of)\s*(\d{1,9})(?:\.0+)?)?"
_VALUE = re.compile(rf"\s*{_NUMBER}{_OUT_OF}{_WHOLE}\s*")
_KEYED = re.compile(
    rf"\b(?:score|rating)\b[\"'*_\s]{{0,9}}(?:[:=]|\bis\b|\bof\b)[\"'*_\s]{{0,9}}"
    rf"{_NUMBER}{_OUT_OF}{_WHOLE}",
    re.IGNORECASE,
)
_RATIO = re.compile(rf"(?<![\d./+-]){_NUMBER}\s*(?:/|out of)\s*(\d{{1,9}})(?:\.0+)?{_WHOLE}")
# A number is the answer only where nothing else is written: "1 cat, no dog" is no score of 1.
_ALONE = re.compile(
    rf"(?:```\w*)?[^\w+-]*(?:(?:final|score|rating|answer)[^\w+-]+){{0,3}}{_NUMBER}[^\w%+-]*"
    r"(?:points?\W*)?",
    re.IGNORECASE,
)
_REASON = re.compile(r"\breason\b[\"'\s]{0,9}[:=][\"'\s]{0,9}([^\"}]*)", re.IGNORECASE)

_COORDINATE = r"\s{0,9}([-+]?\d{1,7}(?:\.\d{0,9})?)\s{0,9}"
_BOX = re.compile(
    rf"[\[(]{_COORDINATE},{_COORDINATE}[\])]?\s{{0,9}},\s{{0,9}}[\[(]?{_COORDINATE},"
    rf"{_COORDINATE}[\])]"
)
_BOX_KEY = re.compile(r"bbox(?:_2d)?|\bbox\b", re.IGNORECASE)
_EMPTY_LIST = re.compile(r"\[\s{0,99}\]|\bbbox(?:_2d)?[\"'\s]{1,9}:\s{0,9}(?:null|None)\b")
_FENCE = re.compile(r"```\w*")
_NOTHING = {"none", "null", "{}"}

_BOXED = re.compile(r"boxed\s{0,9}\{([^{}]{0,40}(?:\{[^{}]{0,40}\}[^{}]{0,9})?)\}")
_BIT = re.compile(r"[+]?([01])(?:\.0+)?")
_LATEX_TEXT = re.compile(r"\\?(?:text|mathbf|mathrm|textbf)\s*\{([^{}]*)\}")


class ScoreReading(NamedTuple):
    """A score on the judge's own scale and its reason, empty where none was given."""

    score: float
    reason: str


def plain(text: str) -> str:
    """`text` with plain quotes, dashes and digits, at most its last MAX_CHARACTERS."""
    return text[-MAX_CHARACTERS:].translate(_PLAIN)


def read_score(text: str, low: float, high: float) -> ScoreReading | None:
    """The score in an answer, or None where there is none, or none within [low, high].

    The last JSON object with a "score" counts; else a number named as the score; else a number
    out of `high`; else a bare number. Two different numbers count as none.
    """
    # Unchanged first: with plain quotes, a quotation inside the reason would end its string.
    for form in (text[-MAX_CHARACTERS:], plain(text)):
        for item in reversed(_objects(form)):
            if "score" in item:
                value = _value(item["score"], low, high)
                return None if value is None else ScoreReading(value, _line(item.get("reason")))
    text = plain(text)
    match = _REASON.search(text)
    reason = _line(match.group(1)) if match else ""
    values = {_in_range(n, d or None, low, high) for n, d in _KEYED.findall(text)}
    if not values:
        ratios = (_in_range(n, d, low, high) for n, d in _RATIO.findall(text))
        values = {value for value in ratios if value is not None}
    if not values:
        alone = _ALONE.fullmatch(text)
        values = {_in_range(alone.group(1), None, low, high)} if alone else set()
    value = values.pop() if len(values) == 1 else None
    return None if value is None else ScoreReading(value, reason)


def read_boxes(text: str) -> list[tuple[float, float, float, float]] | None:
    """(x1, y1, x2, y2) of every box in an answer, x1 <= x2 and y1 <= y2; None where unreadable.

    An empty list, null or the bare word "none" means no boxes. Units and range are the model's.
    At most MAX_BOXES.
    """
    text = plain(text)
    named = _BOX_KEY.search(text)
    found = _BOX.findall(text, named.end() if named else 0) or _BOX.findall(text)
    if found:
        return [_corners(values) for values in found[:MAX_BOXES]]
    bare = _FENCE.sub("", text).strip(" \t\r\n.\"'").lower()
    if bare in _NOTHING or _EMPTY_LIST.search(text):
        return []
    return None


def read_verdict(text: str) -> float | None:
    """0.0 or 1.0: the last boxed one, or an answer that is nothing else; None where unreadable."""
    text = _LATEX_TEXT.sub(r"\1", plain(text))
    boxed = _BOXED.findall(text)
    bit = _BIT.fullmatch((boxed[-1] if boxed else text).strip(" \t\r\n.$*\"'"))
    return float(bit.group(1)) if bit else None


def _objects(text: str) -> list[dict[str, Any]]:
    """The outermost JSON objects in a text, in its order."""
    decoder = json.JSONDecoder()
    found: list[dict[str, Any]] = []
    at = 0
    for _ in range(_MAX_STARTS):
        at = text.find("{", at)
        if at < 0:
            break
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _value(value: Any, low: float, high: float) -> float | None:
    """A JSON value as a score: a number, or text that is one."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if low <= value <= high else None
    match = _VALUE.fullmatch(value[:99]) if isinstance(value, str) else None
    return _in_range(match.group(1), match.group(2), low, high) if match else None


def _in_range(number: str, out_of: str | None, low: float, high: float) -> float | None:
    value = float(number)
    if out_of is not None and float(out_of) != high:
        return None
    return value if low <= value <= high else None


def _corners(values: tuple[str, ...]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = map(float, values)
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _line(value: Any) -> str:
    """A reason as one short line."""
    return " ".join(value.split())[:300] if isinstance(value, str) else ""
