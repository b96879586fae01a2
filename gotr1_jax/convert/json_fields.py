"""Reading and checking the fields of a parsed config.json; ValueError for what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Fields = Mapping[str, Any]


def section(data: Fields, key: str) -> Fields:
    """The object under `key`."""
    value = data.get(key)
    if not isinstance(value, dict):
        raise ValueError(f"the section {key} is missing")
    return value


def expect(data: Fields, key: str, value: Any, where: str = "") -> None:
    """That `key` has this value, if it is there; `where` is the section, for the message."""
    if key in data and data[key] != value:
        raise ValueError(f"{_name(key, where)} is {data[key]!r}; {value!r} is needed")


def whole_number(data: Fields, key: str, where: str = "") -> int:
    """The int of 1 or more under `key`."""
    value = data.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{_name(key, where)} is {value!r}; a whole number of 1 or more is needed")
    return value


def positive_number(data: Fields, key: str, where: str = "") -> float:
    """The number above 0 under `key`."""
    value = data.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise ValueError(f"{_name(key, where)} is {value!r}; a number above 0 is needed")
    return float(value)


def _name(key: str, where: str) -> str:
    return f"{where}.{key}" if where else key
