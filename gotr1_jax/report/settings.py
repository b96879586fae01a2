"""The settings of a run, from the text of its config.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gotr1_jax.errors import InputError
from gotr1_jax.io.strict_yaml import read_yaml


def read_settings(config_text: str) -> dict[str, Any]:
    """The values of a configuration by their dotted names; empty where it cannot be read."""
    try:
        values = read_yaml(config_text, "config.yaml")
    except InputError:
        return {}
    return dict(_by_dotted_name(values, "")) if isinstance(values, Mapping) else {}


def _by_dotted_name(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _by_dotted_name(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
