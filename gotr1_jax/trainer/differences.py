"""What a configuration sets: the fields that differ from their defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import yaml

from gotr1_jax.config import to_plain

_SAME = object()


def differing_yaml(config: Any) -> str:
    """The fields of a configuration that differ from their defaults, as YAML; those that have none
    always. A section holds only what differs from its own defaults, as a file of settings would."""
    found = _differing(config, dataclasses.MISSING)
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True)


def _differing(value: Any, default: Any) -> Any:
    """The part of a value that its default has not, in plain values; _SAME where there is none."""
    if type(value) is type(default) and value == default:
        return _SAME
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {}
        for spec in dataclasses.fields(value):
            part = _differing(getattr(value, spec.name), _default_of(spec))
            if part is not _SAME:
                parts[spec.name] = part
        return parts
    if isinstance(value, Mapping):
        items = {name: _differing(item, dataclasses.MISSING) for name, item in value.items()}
        return {name: {} if item is _SAME else item for name, item in items.items()}
    return to_plain(value)


def _default_of(spec: dataclasses.Field[Any]) -> Any:
    if spec.default_factory is not dataclasses.MISSING:
        return spec.default_factory()
    return spec.default
