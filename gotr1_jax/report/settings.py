"""The settings of a run, from the text of its config.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gotr1_jax.config import field_kinds, rename_keys, rename_value, sections_of
from gotr1_jax.errors import InputError
from gotr1_jax.io.files import flatten
from gotr1_jax.io.strict_yaml import read_yaml
from gotr1_jax.rewards.judge_config import JudgeConfig

# Former names outside of `judge`, by `renamed_keys` of the jobs, which are of a higher layer.
_FORMER = {
    "plan_buckets": "length_buckets",
    "reward.rule": "reward.total", "loss.advantage": "advantage.kind",
    "update.refill_rounds": "update.resample_rounds", "pictures": "images",
    "eval_pictures": "eval_images",
}  # fmt: skip


def read_settings(config_text: str) -> dict[str, Any]:
    """The values of a configuration by their dotted names; empty where it cannot be read.

    Their names are those of today: runs of different versions are compared.
    """
    try:
        values = read_yaml(config_text, "config.yaml")
        if isinstance(values, Mapping) and isinstance(values.get("judge"), Mapping):
            values = {**values, "judge": _current_names(JudgeConfig, values["judge"])}
    except InputError:
        return {}
    found = flatten(values, ".") if isinstance(values, Mapping) else {}
    return {_FORMER.get(name, name): value for name, value in found.items()}


def _current_names(schema: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """A section in which keys and choices have the names of today, in lists of sections too.

    InputError for what is given twice.
    """
    found: dict[str, Any] = {}
    for key, value in rename_keys(schema, values, "").items():
        section = next(sections_of(field_kinds(schema).get(key)), None)
        if section is not None and isinstance(value, Mapping):
            value = _current_names(section, value)
        elif section is not None and isinstance(value, list):
            value = [_current_names(section, v) if isinstance(v, Mapping) else v for v in value]
        found[key] = rename_value(schema, key, value, "")
    return found
