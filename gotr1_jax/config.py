"""Configurations: one YAML file and `--a.b value` overrides into frozen dataclasses.

A dataclass is the schema: its annotations hold type and range (`limits`) of every field, its
`check()` what fields must fit each other. All is checked whenever one is made:

    @dataclass(frozen=True)
    class OptimizerConfig(CheckedConfig):
        beta1: Annotated[float, Range("[0, 1)")] = 0.9

The field's type decides how a word is read: a text takes it as it stands, `4711` or `exp #3`.
Loading is strict: unknown keys, wrong types and values out of range raise an InputError that names
the field's path, its value and the fix. No device is touched.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import logging
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml

from gotr1_jax.errors import ConfigError, InputError
from gotr1_jax.io.scalars import read_scalar, show_value
from gotr1_jax.io.strict_yaml import CommandWord, PlainScalar, read_yaml, read_yaml_file

_log = logging.getLogger(__name__)

Config = TypeVar("Config")


class CheckedConfig:
    """Base of configurations: every instance has values in range that fit each other."""

    def __post_init__(self) -> None:
        for name, kind in field_kinds(type(self)).items():
            value = read_value(kind, getattr(self, name), name)
            if _named_section(kind) is not None:  # a list of names becomes a dictionary
                object.__setattr__(self, name, value)
        self.check()

    @classmethod
    def from_file(cls, path: Path, overrides: Sequence[str] = ()) -> Self:
        """What a command reads: `load_config`, unless the class has options of its own."""
        return load_config(cls, path, overrides)

    def check(self) -> None:
        """Raise a ConfigError if fields do not fit each other; its text begins with one's name."""


def load_config(schema: type[Config], path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """`schema` of a YAML file (None: no file), then `overrides` (["--a.b", "value", …])."""
    values = None if path is None else read_yaml_file(path)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold keys and values, found {show_value(values)}")
    return from_dict(schema, values, overrides=parse_overrides(overrides))


def parse_overrides(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """["--a.b", "3", "--c=x"] -> [("a.b", "3"), ("c", "x")]; the schema will read the values."""
    pairs: list[tuple[str, str]] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            raise InputError(f"expected --key value, found {argument!r}")
        key, sign, text = argument[2:].partition("=")
        if not sign:
            # The next option is no value: of --flag --steps 3, the flag's was forgotten.
            if not rest or (rest[0].startswith("--") and rest[0][2:3].isalpha()):
                raise InputError(f"--{key} has no value; write --{key}=VALUE")
            text = rest.pop(0)
        pairs.append((key, text))
    return pairs


def from_dict(
    schema: type[Config],
    values: Mapping[str, Any],
    where: str = "",
    overrides: Sequence[tuple[str, str]] = (),
) -> Config:
    """Build `schema` from plain values, then `overrides` (of `parse_overrides`).

    `where` is the dotted path of its section, for messages.
    """
    values = rename_keys(schema, values, where)
    for dotted, text in overrides:
        path = _current_path(schema, dotted)
        _begin_from_default(schema, values, path)
        _set_word(values, path, text)
        values = _move_keys(schema, values, where, replace=True)  # of a section given as a whole
    kinds = field_kinds(schema)
    for key in values:
        if key not in kinds:
            raise InputError(
                f"unknown configuration key {where + str(key)!r}; {_hint(schema, key, where)}"
            )
    given = {
        key: read_value(kinds[key], rename_value(schema, key, value, where), where + key)
        for key, value in values.items()
    }
    for spec in dataclasses.fields(schema):  # type: ignore[arg-type]
        missing = dataclasses.MISSING
        if spec.name not in given and spec.default is spec.default_factory is missing:
            raise InputError(f"configuration key {where + spec.name!r} is missing")
    try:
        return schema(**given)
    except ValueError as error:  # of `check`: it begins with the name of a field
        raise ConfigError(f"{where}{error}") from error


def read_value(kind: Any, value: Any, where: str) -> Any:
    """`value` as the type `kind`, within its limits; an InputError that names `where` otherwise.

    A `PlainScalar` is read as the kind says; numbers are no booleans, and text is no number.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        value = read_value(args[0], value, where)
        complaints = [limit.complaint(value) for limit in args[1:]]
        for complaint in filter(None, complaints):
            raise ConfigError(f"{where} is {show_value(value)}; {complaint}")
        return value
    if origin in (typing.Union, types.UnionType):
        return _read_union(args, value, where)
    if origin is Literal:
        if value not in args or isinstance(value, bool):
            raise ConfigError(
                f"{where} is {show_value(value)}; choose one of {', '.join(map(str, args))}"
            )
        return next(arg for arg in args if arg == value)
    if origin is tuple:
        return _read_list(args[0], value, where)
    if origin is Mapping:
        return _read_named(args[1], value, where)
    if dataclasses.is_dataclass(kind):
        if isinstance(value, typing.cast(type, kind)):
            return value
        value = _parse_flow(value, "{}", where)
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is {show_value(value)}; expected a section with keys")
        return from_dict(typing.cast(Any, kind), value, where + ".")
    return read_scalar(kind, value, where)


def _read_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if type(None) in args and (value is None or isinstance(value, PlainScalar) and value == "null"):
        return None
    kinds = [kind for kind in args if kind is not type(None)]
    if len(kinds) > 1:  # a single value or a list of values
        many = isinstance(value, (list, tuple))
        if isinstance(value, PlainScalar):
            many = value.startswith("[") and value.endswith("]")
            if isinstance(value, CommandWord) and "," in value:  # no choice has one in it
                many |= any(typing.get_origin(kind) is Literal for kind in kinds)
        kinds = [kind for kind in kinds if (typing.get_origin(kind) is tuple) == many]
    return read_value(kinds[0], value, where)


def _read_list(kind: Any, value: Any, where: str) -> tuple[Any, ...]:
    value = _parse_list(value, where)
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where} is {show_value(value)}; expected a list, such as [a, b]")
    return tuple(read_value(kind, item, f"{where}[{i}]") for i, item in enumerate(value))


def _read_named(kind: Any, value: Any, where: str) -> dict[str, Any]:
    """Sections under names of the user's own; a list of names has sections of defaults."""
    value = _names_as_sections(_parse_named(value, where), where)
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{where} is {show_value(value)}; expected names, as in [a, b], or named sections"
        )
    return {
        # "name:" with nothing below it is a section of defaults too.
        str(name): read_value(kind, {} if v is None else v, f"{where}.{name}")
        for name, v in value.items()
    }


def _parse_named(word: Any, where: str) -> Any:
    """The list of names or the sections {...} of a word; anything else as it is."""
    is_section = isinstance(word, PlainScalar) and word[:1] == "{"
    return _parse_flow(word, "{}", where) if is_section else _parse_list(word, where)


def _names_as_sections(value: Any, where: str) -> Any:
    """{name: {}} of a list of names; anything else as it is."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        return value
    double = [name for name in value if value.count(name) > 1]
    if double:
        raise ConfigError(f"{where} holds {double[0]!r} more than once; name each once")
    return {name: {} for name in value}


def _parse_flow(word: Any, brackets: str, where: str) -> Any:
    """The list [...] or section {...} of the command line; anything else as it is."""
    if not isinstance(word, PlainScalar) or word[:1] + word[-1:] != brackets:
        return word
    return read_yaml(word, where)


def _parse_list(word: Any, where: str) -> Any:
    """The list of [a, b], on the command line of a,b or a as well; anything else as it is, as are
    words that may be meant in another way: null, with an empty item, with quotes or brackets."""
    if not isinstance(word, CommandWord) or word[:1] == "[":
        return _parse_flow(word, "[]", where)
    items = [item.strip() for item in word.split(",")]
    if "" in items or items == ["null"] or set(word) & set("[]{}\"'"):
        return word
    return [PlainScalar(item) for item in items]


def field_kinds(schema: Any) -> dict[str, Any]:
    """The annotated types of a configuration's fields, by name."""
    return _find_kinds(schema)


@functools.cache
def _find_kinds(schema: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(schema, include_extras=True)
    return {spec.name: hints[spec.name] for spec in dataclasses.fields(schema)}


def sections_of(kind: Any) -> Iterator[type]:
    """The configuration class that a field holds, or holds a list of."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        yield kind
    for part in typing.get_args(kind):
        yield from sections_of(part)


def _named_section(kind: Any) -> type | None:
    """The configuration class of a `Mapping[str, class]`; None for any other kind."""
    if typing.get_origin(kind) is Mapping:
        return typing.cast(type, typing.get_args(kind)[1])
    return None


def rename_keys(schema: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A copy in which keys, also those of sections, have the names of today."""
    renamed: Mapping[str, str] = getattr(schema, "renamed_keys", {})
    found: dict[str, Any] = {}
    for key, value in _move_keys(schema, values, where).items():
        if key in renamed:
            new = renamed[key]
            if new in values:
                raise InputError(f"{where}{new} is given twice, also by its old name {key}")
            _tell_renamed(where + key, where + new)
            key = new
        kind = field_kinds(schema).get(key)
        section, named = next(sections_of(kind), None), _named_section(kind)
        if named is not None:
            value = _names_as_sections(value, where + key)
            if isinstance(value, Mapping):
                value = {
                    name: rename_keys(named, inner, f"{where}{key}.{name}.")
                    if isinstance(inner, Mapping) and dataclasses.is_dataclass(named)
                    else inner
                    for name, inner in value.items()
                }
        elif section is not None and isinstance(value, Mapping):
            value = rename_keys(section, value, f"{where}{key}.")
        found[key] = value
    return found


def _move_keys(
    schema: type, values: Mapping[str, Any], where: str, replace: bool = False
) -> dict[str, Any]:
    """Values in which an old key `section.key` stands in its section of today."""
    values = dict(values)
    for old, new in getattr(schema, "renamed_keys", {}).items():
        (section, _, key), (target, _, name) = old.partition("."), new.partition(".")
        source, held = (_parse_flow(values.get(at), "{}", at) for at in (section, target))
        if not key or not isinstance(source, Mapping) or key not in source:
            continue
        if held is not None and not isinstance(held, Mapping):
            continue  # an error of its own, when it is read
        if name in (held or {}) and not replace:
            raise InputError(f"{where}{new} is given twice, also by its old name {old}")
        _tell_renamed(where + old, where + new)
        values[section] = {k: v for k, v in source.items() if k != key}
        values[target] = {**(held or {}), name: source[key]}
    return values


def rename_value(schema: type, key: str, value: Any, where: str) -> Any:
    """The name of today of a choice, where `renamed_values` of the schema has another."""
    renamed: Mapping[str, str] = getattr(schema, "renamed_values", {}).get(key, {})
    if not isinstance(value, str) or value not in renamed:
        return value
    _tell_renamed(f"{where}{key}: {value}", f"{where}{key}: {renamed[value]}")
    return renamed[value]


@functools.cache  # a command may read one file many times
def _tell_renamed(old: str, new: str) -> None:
    _log.warning("configuration key %s is called %s now", old, new)


def _current_path(schema: type | None, dotted: str) -> list[str]:
    """The keys of a dotted path, by their names of today."""
    dotted = getattr(schema, "renamed_keys", {}).get(dotted, dotted)
    path, parts = [], dotted.split(".")
    while parts:
        part = parts.pop(0)
        part = getattr(schema, "renamed_keys", {}).get(part, part)
        path.append(part)
        kind = field_kinds(schema).get(part) if schema is not None else None
        schema = next(sections_of(kind), None)
        if _named_section(kind) is not None and parts:
            path.append(parts.pop(0))  # a name of the user's own
    return path


def _begin_from_default(schema: type, values: dict[str, Any], path: Sequence[str]) -> None:
    """An override of one named section adds to the default ones, where none are given."""
    for i, part in enumerate(path[:-1]):
        kind = field_kinds(schema).get(part)
        section = next(sections_of(kind), None)
        if _named_section(kind) is not None and part in values:
            values[part] = _names_as_sections(_parse_named(values[part], part), part)
            return
        if _named_section(kind) is not None:
            spec = next(s for s in dataclasses.fields(schema) if s.name == part)
            if spec.default_factory is not dataclasses.MISSING:
                values[part] = to_plain(spec.default_factory())
            return
        if section is None or not isinstance(values.get(part, {}), dict):
            return
        if part not in values and i + 2 < len(path):
            values[part] = {}
        values, schema = values.get(part, {}), section


def _set_word(values: dict[str, Any], path: Sequence[str], text: str) -> None:
    """Set the value of a path of keys in nested sections; missing sections are created."""
    *parents, last = path
    for part in parents:
        child = values.get(part)
        if isinstance(child, PlainScalar):
            child = _parse_flow(child, "[]" if child.startswith("[") else "{}", part)
            child = _names_as_sections(child, part)
        if child is None or isinstance(child, PlainScalar) and child == "null":
            child = {}
        if not isinstance(child, dict):
            raise InputError(
                f"--{'.'.join(path)}: {part} is a single value ({show_value(child)}), not a section"
            )
        values[part] = child
        values = child
    values[last] = CommandWord(text) if text else text


def _hint(schema: type, key: str, where: str) -> str:
    """Where a wrong key may have been meant to stand."""
    known = list(field_kinds(schema))
    deeper = [path for path in _paths(schema) if path.split(".")[-1] == key]
    near = difflib.get_close_matches(str(key), known, n=1) or deeper[:1]
    return f"did you mean {where + near[0]!r}?" if near else f"known: {', '.join(known)}"


def _paths(schema: type, below: tuple[type, ...] = ()) -> Iterator[str]:
    """The dotted paths of all fields of sections."""
    for name, kind in field_kinds(schema).items():
        section = None if _named_section(kind) else next(sections_of(kind), None)
        if section is None or section in (schema, *below):
            yield name
        else:
            yield from (f"{name}.{path}" for path in _paths(section, (*below, schema)))


def to_yaml(config: Any) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal object."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


def to_plain(value: Any) -> Any:
    """A configuration or value of one as dicts, lists and single values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    return value
