"""JSON values in a model's answer: the whole of it, or those in its text. Nothing here raises."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_MAX_STARTS = 256  # positions at which a value is searched for
_FENCED = re.compile(r"[`'\"]{0,3}(?:json\b|python\b)?\s*(.*?)\s*[`'\"]{0,3}\s*", re.DOTALL)
_START = re.compile(r"[{\[]")


class JsonValue(NamedTuple):
    """An object or list, and the span [start, end) of the text that it was read from."""

    value: Any
    start: int
    end: int


CONFLICT = object()
"""The value of a key that an object has twice with different values."""


def whole_value(text: str) -> Any | None:
    """The object or list that is all of a text but a code fence or quotes around it."""
    match = _FENCED.fullmatch(text.strip())
    inner = match.group(1) if match else ""
    if not inner.startswith(("{", "[")):
        return None
    found = _decode(inner, 0)
    return found.value if found is not None and not inner[found.end :].strip() else None


def values(text: str) -> Iterator[JsonValue]:
    """The outermost objects and lists in a text, in its order."""
    at = 0
    for _ in range(_MAX_STARTS):
        start = _START.search(text, at)
        if start is None:
            return
        found = _decode(text, start.start())
        at = start.end() if found is None else found.end
        if found is not None:
            yield found


def blank(text: str, spans: list[tuple[int, int]]) -> str:
    """`text` with blanks in place of some spans."""
    for start, end in spans:
        text = text[:start] + " " * (end - start) + text[end:]
    return text


def _decode(text: str, at: int) -> JsonValue | None:
    try:
        value, end = _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None
    return JsonValue(value, at, end)


def _keep_conflicts(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        found[key] = CONFLICT if key in found and found[key] != value else value
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_keep_conflicts)
