"""The reward terms of a run as its page tells them: terms.json, and what earlier runs left out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import read_json_object
from gotr1_jax.rewards import published

TOTAL = "total"
NEVER_TRAINED_ON = "watched, never trained on"
_USUAL = 2.0  # the highest total of scores up to 1: v1 adds two of them
_METRIC = re.compile(r"reward/([^/]+)/mean")


def read_meanings(path: Path, problems: list[str]) -> dict[str, str]:
    """Meaning of the total and of each term, in the page's order.

    Those of the run's terms.json first, where there is one; then the published terms, which runs
    of earlier versions had. An unreadable file becomes a line of `problems`.
    """
    try:
        stored = read_json_object(path, missing_ok=True)
    except InputError as error:
        problems.append(str(error))
        stored = {}
    own = _own_terms(stored)
    formula = stored.get("formula")
    total = formula if isinstance(formula, str) and own else "all terms combined"
    return {TOTAL: total, **own, **{n: t for n, t in published.MEANINGS.items() if n not in own}}


def _own_terms(stored: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for kind, note in (("terms", ()), ("watched", (NEVER_TRAINED_ON,))):
        entries = stored.get(kind)
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict) and isinstance(name := entry.get("name"), str):
                meaning = entry.get("meaning")
                parts = [meaning] if isinstance(meaning, str) and meaning else []
                found.setdefault(name, "; ".join([*parts, *_settings(entry), *note]))
    return found


def _settings(entry: Mapping[str, Any]) -> list[str]:
    """Weight, scale and clip where they are not the usual ones, and whether it is trained on."""
    parts = [f"{k} {entry[k]:g}" for k in ("weight", "scale") if _is_unusual(entry.get(k))]
    clip = entry.get("clip")
    if isinstance(clip, list) and len(clip) == 2:
        parts.append(f"clipped to [{clip[0]}, {clip[1]}]")
    return parts + ["watched, not in the total"] * (entry.get("in_total") is False)


def is_usual(scores: Iterable[float]) -> bool:
    """Whether those that are finite lie where scores from 0 to 1 and their totals do."""
    return all(0 <= score <= _USUAL for score in scores if math.isfinite(score))


def _is_unusual(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value != 1


def reward_names(metrics: Iterable[str], meanings: Mapping[str, str]) -> list[str]:
    """The total and the terms that metrics exist of: in the order of `meanings`, then others."""
    found = [match[1] for name in metrics if (match := _METRIC.fullmatch(name))]
    return [name for name in dict.fromkeys([*meanings, *found]) if name in found]
