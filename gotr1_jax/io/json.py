"""JSON files, read with one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gotr1_jax.errors import InputError


def read_json(file: Path) -> Any:
    """The parsed content of a JSON file; InputError if it cannot be read or is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON: {error}") from error


def parse_json_object(text: str | bytes, where: str) -> dict[str, Any]:
    """The JSON object that `text` holds; InputError, naming `where`, if it holds none."""
    try:
        value = json.loads(text)
    except ValueError as error:  # of JSON, or of UTF-8
        raise InputError(f"{where} is not JSON in UTF-8: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{where} is not a JSON object")
    return value
