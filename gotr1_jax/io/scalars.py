"""Single values of a configuration: text, yes or no, numbers; how they are read and shown."""

from __future__ import annotations

import math
from typing import Any

from gotr1_jax.errors import ConfigError
from gotr1_jax.io.strict_yaml import PlainScalar, parse_word

# Also what YAML 1.1 takes for booleans: files of before hold them.
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def read_scalar(kind: Any, value: Any, where: str) -> Any:
    """`value` as the type `kind`; a ConfigError that names `where` otherwise."""
    found = value
    if kind is str and isinstance(value, str):
        if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ConfigError(f"{where} is {show_value(value)}; it must be UTF-8 without NUL")
        return str(value)
    if kind in (bool, int, float) and isinstance(value, PlainScalar):
        try:
            found = _BOOLEANS.get(value.lower(), value) if kind is bool else parse_word(value)
        except ValueError:  # thousands of digits
            found = value
    if kind is float and isinstance(found, (int, float)) and not isinstance(found, bool):
        try:
            return float(found)
        except OverflowError:
            return math.inf
    if type(found) is kind if kind in (str, bool, int, float) else isinstance(found, kind):
        return found
    quoted = type(value) is str and value and kind in (bool, int, float)
    hint = " without quotes" if quoted else ""
    raise ConfigError(f"{where} is {show_value(value)}; expected {kind.__name__}{hint}")


def show_value(value: Any) -> str:
    """As messages show it: at most 200 characters."""
    try:
        known = parse_word(value) if isinstance(value, PlainScalar) else value
        text = str(value) if known is not value and not isinstance(known, str) else repr(value)
    except ValueError:  # an integer of thousands of digits
        text = f"an integer of {value.bit_length()} bits" if type(value) is int else str(value)
    text = "null" if value is None else text
    return text if len(text) <= 200 else text[:200] + "…"
