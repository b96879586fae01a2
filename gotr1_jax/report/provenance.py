"""Where a run comes from, as its page tells it: provenance.json, and the seed of config.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import read_json_object
from gotr1_jax.report.settings import read_settings

_LABELS = ("date", "command", "seed", "commit", "versions", "machine")
_LONGEST = 600  # characters of a value


def read_starts(path: Path, problems: list[str]) -> tuple[Mapping[str, Any], ...]:
    """The starts of a run, oldest first; none of runs of earlier versions.

    An unreadable file becomes a line of `problems`.
    """
    try:
        starts = read_json_object(path, missing_ok=True).get("starts", [])
        if isinstance(starts, list) and all(isinstance(start, dict) for start in starts):
            return tuple(starts)
        problems.append(f"{path.name} holds no starts of a run")
    except InputError as error:
        problems.append(str(error))
    return ()


def describe_provenance(
    starts: Sequence[Mapping[str, Any]], config_text: str
) -> list[tuple[str, str]]:
    """(label, text) of the last start, and how often the run was started; what is not known is
    left out."""
    last = {"seed": read_settings(config_text).get("seed"), **(starts[-1] if starts else {})}
    found = [(label, _text(last.get(label))) for label in _LABELS]
    if len(starts) > 1:
        steps = ", ".join(_text(start.get("from_step")) or "?" for start in starts)
        found.append(("started", f"{len(starts)} times, at the steps {steps}"))
    return [(label, text) for label, text in found if text]


def _text(value: Any) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool):
        return ""
    text = str(value) if isinstance(value, str) or abs(value) < 10**18 else ""
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
