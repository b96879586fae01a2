"""Parses a model's answers: scores and verdicts; boxes are in `box_answers`.

Models wrap their JSON in fences and prose, use single or typographic quotes, write "8/10". All of
that is read, where the form says that the answer stands. What is ambiguous is not read: two
different answers, two numbers without a name, a range, another denominator, a percentage.

`material` is the text that was judged, as far as others than this project wrote it. Where it holds
what looks like an answer, an answer must be in its form and nothing else, so that no quotation of
it is read. The `parse_` functions raise UnreadableError, whose text says why, and nothing else; the
`read_` functions return None instead.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any, NamedTuple

from gotr1_jax.rewards.multimodal.box_answers import AnswerBox, parse_boxes
from gotr1_jax.rewards.multimodal.json_values import CONFLICT, blank, values
from gotr1_jax.rewards.multimodal.quotations import is_quoted, looks_like_answer, plain
from gotr1_jax.rewards.multimodal.thoughts import UnreadableError, answer_text

_NUMBER = r"([-+]?\d{1,9}(?:\.\d{1,9})?)"
# A number that goes on is no score: 7-8, 7 or 8, 80%, 7,5, 3.4.5.
_WHOLE = r"(?!\s?[%\d]|\s*-\s*\d|[.,]\d|\s*(?:/|out of))"
_SINGLE = rf"{_WHOLE}(?!,?\s(?:or|to)\s+\d)"
_OUT_OF = r"(?:\s*(?:/|out of)\s*(\d{1,9})(?:\.0+)?)?"
_VALUE = re.compile(rf"\s*{_NUMBER}{_OUT_OF}{_WHOLE}\s*")
_KEYED = re.compile(
    rf"\b(?:score|rating)\b(?:\s{{0,9}}\(?(?:[01]-|out of )10\)?)?[\"'*_\s]{{0,9}}"
    rf"(?:[:=>]|\bis\b|\bof\b|\bwould be\b|\s-\s)[\"'*_\s]{{0,9}}{_NUMBER}{_OUT_OF}{_SINGLE}",
    re.IGNORECASE,
)
_RATIO = re.compile(rf"(?<![\d./+-]){_NUMBER}\s*(?:/|out of)\s*(\d{{1,9}})(?:\.0+)?{_WHOLE}")
# A number is the answer only where nothing else is written: "1 cat, no dog" is no score of 1.
_ALONE = re.compile(
    rf"(?:```\w*)?[^\w+-]*(?:(?:(?:my|the|final|overall|score|rating|answer|is|boxed)[^\w+-]+)"
    rf"{{0,5}}){_NUMBER}(?:\s*(?:/|out of)\s*(\d{{1,9}})(?:\.0+)?)?[^\w%+-]*(?:points?\W*)?",
    re.IGNORECASE,
)
_REASON = re.compile(r"\breason\b[\"'\s]{0,9}[:=][\"'\s]{0,9}([^\"}]*)", re.IGNORECASE)
_FENCE_START = re.compile(r"\s*(?:json\b)?\s*", re.IGNORECASE)
# Of an object that is no valid JSON, mostly for a quotation in its reason: the score comes first.
_FIRST_KEY = re.compile(
    rf"\{{\s*[\"']?score[\"']?\s*:\s*[\"']?{_NUMBER}{_OUT_OF}{_WHOLE}[\"']?\s*([,}}])",
    re.IGNORECASE,
)
_LINE_END = re.compile(r"\}[ \t]*(?:\n|\Z)")

_BOXED = re.compile(r"boxed\s{0,9}\{([^{}]{0,40}(?:\{[^{}]{0,40}\}[^{}]{0,9})?)\}")
_BIT = re.compile(r"[+]?([01])(?:\.0+)?")
_LATEX_TEXT = re.compile(r"\\?(?:text|mathbf|mathrm|textbf)\s*\{([^{}]*)\}")
_LAST_LINE = re.compile(
    r"[\s$*_#>.()\\\[\]\"']*(?:(?:the|my|final|decision|answer|verdict|is)[\s:*_$\\]{1,9}){0,5}",
    re.IGNORECASE,
)


_MAY_QUOTE = "what was judged looks like an answer, and this may quote it"


class ScoreReading(NamedTuple):
    """A score on the judge's own scale and its reason, empty where none was given."""

    score: float
    reason: str


def parse_score(text: str, low: float, high: float, material: str = "") -> ScoreReading:
    """The score in an answer, within [low, high].

    A JSON object at the beginning counts, by its first key where it is no valid JSON; else the
    objects with a "score" and the numbers named as the score, if they all say the same; else a
    number out of `high`; else a bare number.
    """
    answer = answer_text(text, material)
    # Unchanged first: with plain quotes, a quotation inside the reason would end its string.
    for form in (answer, plain(answer)):
        found = _leading_object(form, low, high, material)
        if found is not None:
            return found
    answer = plain(answer)
    if answer.startswith((">", "<<<")):
        raise UnreadableError("it is a quotation")
    alone = _ALONE.fullmatch(answer)
    if alone:
        if any(map(str.isalpha, answer)):
            _check_own(answer.strip(" .*`\n"), material)
        return ScoreReading(_checked(_in_range(alone.group(1), alone.group(2), low, high)), "")
    if looks_like_answer(material, "score"):
        raise UnreadableError(_MAY_QUOTE)
    named = _named_scores(answer, low, high)
    if not named:
        ratios = [m for m in _RATIO.finditer(answer) if not is_quoted(answer, *m.span())]
        found_ratios = {_in_range(m[1], m[2], low, high) for m in ratios}
        named = [value for value in found_ratios if value is not None]
    match = _REASON.search(answer)
    return ScoreReading(_agreed(named), _line(match.group(1)) if match else "")


def parse_verdict(text: str, material: str = "") -> ScoreReading:
    """The decision, 0.0 or 1.0, with the whole answer as its reason."""
    answer = answer_text(text, material)
    return ScoreReading(_verdict(answer, material), " ".join(answer.split()))


def _verdict(answer: str, material: str) -> float:
    """0.0 or 1.0: what is boxed, everywhere the same, or an answer that is nothing else."""
    answer = _LATEX_TEXT.sub(r"\1", plain(answer))
    boxed = list(_BOXED.finditer(answer))
    line = answer.rstrip().rpartition("\n")[2]
    last = _LAST_LINE.match(line)
    assert last is not None
    if not boxed:
        named = re.search("decision|answer|verdict", last[0], re.IGNORECASE)
        if looks_like_answer(material) or not named:
            return _checked(_bit(answer))
        return _checked(_bit(line[last.end() :]))
    alone = _BOXED.match(line, last.end())
    if looks_like_answer(material, "verdict") and not alone:
        raise UnreadableError("the last line is not the decision alone")
    if is_quoted(answer, *boxed[-1].span()):
        raise UnreadableError("the last boxed value is a quotation")
    bits = [_bit(m[1]) for m in boxed if not is_quoted(answer, *m.span())]
    _checked(bits[-1])
    return _agreed([bit for bit in bits if bit is not None])


def _leading_object(text: str, low: float, high: float, material: str) -> ScoreReading | None:
    """The object with a score with which an answer begins; None where it begins otherwise.

    One that stands in the material too, to the letter, is none: a judge writes its own reason.
    """
    opening = _FENCE_START.match(plain(text.replace("```", "   ")))
    start = opening.end() if opening else 0
    if text[start : start + 1] != "{":
        return None
    first = next(values(text[start:]), None)
    end_at = None if first is None or first.start else start + first.end
    if end_at is not None:
        _check_own(text[start:end_at], material)
    if first is None or end_at is None:
        match = _FIRST_KEY.match(text, start)
        if match is None:
            return None
        _check_own(match[0], material)
        value = _checked(_in_range(match[1], match[2], low, high))
        # The rest of its line is its reason.
        end = match if match[3] == "}" else _LINE_END.search(text, match.end())
        _agreed([value, *_named_scores(text[end.end() :] if end else "", low, high)])
        reason = _REASON.search(plain(text))
        return ScoreReading(value, _line(reason.group(1)) if reason else "")
    scores = _scores_in(first.value)
    if not scores:
        return None
    value = _checked(_agreed([_value(score, low, high) for score in scores]))
    _agreed([value, *_named_scores(plain(text[end_at:]), low, high)])
    reason = first.value.get("reason") if isinstance(first.value, dict) else None
    return ScoreReading(value, _line(reason))


def _check_own(found: str, material: str) -> None:
    """UnreadableError where what was found stands in the material, and so may be quoted."""
    bare = [re.sub(r"[\W_]+", "", plain(part)).casefold() for part in (found, material)]
    if re.search(re.escape(bare[0]) + r"(?!\d)", bare[1]):
        raise UnreadableError(_MAY_QUOTE)


def _named_scores(text: str, low: float, high: float) -> list[float | None]:
    """The scores of JSON objects and numbers named as the score, without those that are quoted."""
    found: list[float | None] = []
    spans = []
    for item in values(text):
        spans.append((item.start, item.end))
        if not is_quoted(text, item.start, item.end):
            found += [_value(score, low, high) for score in _scores_in(item.value)]
    rest = blank(text, spans)
    for match in _KEYED.finditer(rest):
        if not is_quoted(text, *match.span()):
            found.append(_in_range(match[1], match[2], low, high))
    return found


def _scores_in(value: Any, depth: int = 0) -> list[Any]:
    """What stands under "score" in a JSON value, at most three levels deep."""
    if isinstance(value, list) and depth < 3:
        return [score for item in value[:9] for score in _scores_in(item, depth + 1)]
    if not isinstance(value, dict):
        return []
    keys = {k: re.sub(r"[\W_]+", " ", k).strip().lower() for k in value}
    own = [v for k, v in value.items() if keys[k] in ("score", "rating")]
    own = own or [v for k, v in value.items() if keys[k] in ("final score", "overall score")]
    if own or depth == 3:
        return own
    return [score for item in value.values() for score in _scores_in(item, depth + 1)]


def _agreed(found: list[float | None]) -> float:
    """The one value of all; UnreadableError where there is none or more than one."""
    if len(set(found)) > 1:
        raise UnreadableError("two different answers")
    return _checked(found[0] if found else None)


def _checked(value: float | None) -> float:
    if value is None:
        raise UnreadableError
    return value


def _bit(text: str) -> float | None:
    match = _BIT.fullmatch(text.strip(" \t\r\n.$*\"'"))
    return float(match.group(1)) if match else None


def _value(value: Any, low: float, high: float) -> float | None:
    """A JSON value as a score: a number, or text that is one."""
    if value is CONFLICT:
        raise UnreadableError("two different answers")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if low <= value <= high else None
    match = _VALUE.fullmatch(value[:99]) if isinstance(value, str) else None
    return _in_range(match.group(1), match.group(2), low, high) if match else None


def _in_range(number: str, out_of: str | None, low: float, high: float) -> float | None:
    value = float(number)
    if out_of and float(out_of) != high:
        return None
    return value if low <= value <= high else None


def _line(value: Any) -> str:
    """A reason as one short line."""
    return " ".join(value.split())[:300] if isinstance(value, str) else ""


def read_score(text: str, low: float, high: float, material: str = "") -> ScoreReading | None:
    """`parse_score`; None for what cannot be read."""
    with suppress(UnreadableError):
        return parse_score(text, low, high, material)
    return None


def read_verdict(text: str, material: str = "") -> float | None:
    """`parse_verdict`, its score alone; None for what cannot be read."""
    with suppress(UnreadableError):
        return parse_verdict(text, material).score
    return None


def read_boxes(text: str, material: str = "") -> list[AnswerBox] | None:
    """`parse_boxes`; None for what cannot be read."""
    with suppress(UnreadableError):
        return parse_boxes(text, material)
    return None
