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
