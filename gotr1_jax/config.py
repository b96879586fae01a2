"""Loading of configurations: one YAML file and `--a.b value` overrides into frozen dataclasses.

Loading is strict: an unknown key, a wrong type or an impossible combination raises an InputError
that names the field, its value and the fix. No device is touched.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from gotr1_jax.errors import InputError

_log = logging.getLogger(__name__)

Config = TypeVar("Config")


def load_config(schema: type[Config], path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Fill `schema` from the YAML file at `path`, then from `overrides` (["--a.b", "value", …]).

    `check()` of every section is called. Raises InputError.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold keys and values, found {type(values).__name__}")
    for key, value in parse_overrides(overrides):
        set_value(values, key, value)
    return from_dict(schema, values)


def parse_overrides(arguments: Sequence[str]) -> list[tuple[str, Any]]:
    """["--a.b", "3", "--c=x"] -> [("a.b", 3), ("c", "x")]; values are parsed as YAML."""
    pairs: list[tuple[str, Any]] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            raise InputError(f"expected --key value, found {argument!r}")
        key, sign, text = argument[2:].partition("=")
        if not sign:
            if not rest:
                raise InputError(f"--{key} has no value; write --{key} VALUE")
            text = rest.pop(0)
        try:
            pairs.append((key, yaml.safe_load(text)))
        except yaml.YAMLError as error:
            raise InputError(f"--{key}: {text!r} is not a YAML value") from error
    return pairs


def set_value(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set the value of a dotted key in nested sections; missing sections are created."""
    *parents, last = dotted.split(".")
    for part in parents:
        child = values.get(part)
        if child is None:
            child = values[part] = {}
        if not isinstance(child, dict):
            raise InputError(f"--{dotted}: {part} is a single value ({child!r}), not a section")
        values = child
    values[last] = value


def from_dict(schema: type[Config], values: dict[str, Any], where: str = "") -> Config:
    """Build `schema` from plain values; `where` is the dotted path of its section, for messages."""
    hints = typing.get_type_hints(schema)
    known = {f.name: f for f in dataclasses.fields(schema)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    renamed: Mapping[str, str] = getattr(schema, "renamed_keys", {})
    for key, value in values.items():
        if key in renamed:
            new = renamed[key]
            if new in values:
                raise InputError(f"{where}{new} is given twice, also by its old name {key}")
            _log.warning("configuration key %s is called %s now", where + key, where + new)
            key = new
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {where + near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise InputError(f"unknown configuration key {where + str(key)!r}; {hint}")
        given[key] = _coerce(hints[key], value, where + key)
    for name, spec in known.items():
        no_default = (
            spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        )
        if name not in given and no_default:
            raise InputError(f"configuration key {where + name!r} is missing")
    try:
        config = schema(**given)
    except ValueError as error:  # from __post_init__, for example of a model's sizes
        raise InputError(f"{where.rstrip('.') or 'configuration'}: {error}") from error
    check = getattr(config, "check", None)
    if check is not None:
        check()
    return config


def _coerce(kind: Any, value: Any, where: str) -> Any:
    """Convert `value` to the type `kind`; numbers are no booleans and text is no number."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        kinds = [a for a in args if a is not type(None)]
        if len(kinds) > 1:  # a single value or a list of values
            many = isinstance(value, (list, tuple))
            kinds = [kind for kind in kinds if (typing.get_origin(kind) is tuple) == many]
        return _coerce(kinds[0], value, where)
    if origin is Literal:
        if value not in args or isinstance(value, bool):
            raise InputError(f"{where} is {value!r}; choose one of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{where} is {value!r}; expected a list")
        return tuple(_coerce(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise InputError(f"{where} is {value!r}; expected a section with keys")
        return from_dict(typing.cast(Any, kind), value, where + ".")
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str):
        # YAML 1.1 reads 1e-5 as text.
        try:
            return float(value)
        except ValueError:
            pass
    if kind in (int, bool, str) and type(value) is kind:
        return value
    raise InputError(f"{where} is {value!r}; expected {kind.__name__}")


def to_yaml(config: Any) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal object."""
    plain = _plain(dataclasses.asdict(config))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def positive(where: str, **values: float) -> None:
    """Raise InputError for the first of `values` that is not above zero, and finite."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise InputError(f"{where}.{name} is {value}; it must be above 0")


def check_seed(seed: int) -> None:
    """Raise InputError unless every random stream can be seeded with `seed`."""
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}; use 0 to {2**32 - 1}")
