"""What every field of a configuration means, read from its class: for `--help` and the manual.

A field's meaning stands in its class, where one who changes the field sees it: in the docstring's
section "Attributes:", in comment lines right above the field, or in a comment at the end of its
line. A section's field has the first paragraph of the section's docstring besides. Type and range
are those that `config.read_value` checks. Only the source files of the package are read.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import io
import re
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from gotr1_jax.config import field_kinds, to_plain
from gotr1_jax.limits import Range, Text

_WORDS = {bool: "yes/no", int: "integer", float: "number", str: "text"}
_MANY = {"integer": "integers", "number": "numbers", "text": "texts", "section": "sections"}


class FieldEntry(NamedTuple):
    """A field of a configuration, for readers.

    Attributes:
      path: dotted, NAME for a name of the user's own, [] for an item of a list.
      kind: its type and range in words.
      default: as it would be written in the file; "" of a section that is always there; null of one
        that is not.
      required: whether it has no default.
      meaning: what it does, without line breaks.
      section: class of the section, or sections, that it holds.
      repeats: the path of the section that it repeats inside of itself, whose fields are not listed
        again.
    """

    path: str
    kind: str
    default: str
    required: bool
    meaning: str
    section: type | None = None
    repeats: str = ""

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a field that has few."""
        if self.kind == "yes/no":
            return "yes", "no"
        first, _, words = self.kind.partition("one of ")
        return () if first or not words else tuple(words.split(",")[0].split("|"))

    @property
    def terms(self) -> str:
        """Type, range and default in one phrase."""
        if self.required:
            return f"{self.kind}, required"
        return f"{self.kind}, default {self.default}" if self.default else self.kind


@functools.cache
def own_fields(schema: type) -> tuple[FieldEntry, ...]:
    """The fields of a class, without those of its sections; `path` is the field's name."""
    found = []
    for spec in dataclasses.fields(schema):
        kind = field_kinds(schema)[spec.name]
        section = _section_of(kind)
        meaning = _meaning(schema, spec.name)
        if section is not None:
            meaning = " ".join(filter(None, (meaning, first_paragraph(section))))
        required = spec.default is spec.default_factory is dataclasses.MISSING
        default = "" if required else _default_word(spec)
        found.append(FieldEntry(spec.name, kind_words(kind), default, required, meaning, section))
    return tuple(found)


def all_fields(
    schema: type, prefix: str = "", inside: Mapping[type, str] | None = None
) -> Iterator[FieldEntry]:
    """All fields with those of sections, single values first, then section after section."""
    inside = {**(inside or {}), schema: prefix.rstrip(".")}
    entries = own_fields(schema)
    yield from (e._replace(path=prefix + e.path) for e in entries if e.section is None)
    for entry in entries:
        if entry.section is None:
            continue
        path, kind = prefix + entry.path, field_kinds(schema)[entry.path]
        if entry.section in inside:
            yield entry._replace(path=path, repeats=inside[entry.section])
            continue
        yield entry._replace(path=path)
        many = ".NAME" if _is_named(kind) else "[]" if _is_list(kind) else ""
        yield from all_fields(entry.section, f"{path}{many}.", inside)


def without_meaning(schema: type) -> list[str]:
    """Paths of fields that nothing is said about."""
    return [entry.path for entry in all_fields(schema) if not entry.meaning]


def fields_text(entries: Sequence[FieldEntry], width: int) -> str:
    """A list for a terminal of so many columns."""
    lines: list[str] = []
    for entry in entries:
        if entry.section is not None and lines:
            lines.append("")
        meaning = entry.meaning
        if entry.repeats:
            meaning += f" Its fields are those of {entry.repeats}."
        lines += _wrap(f"{entry.path}  {entry.terms}", width, "  ", "      ")
        lines += _wrap(meaning, width, "      ", "      ")
    return "\n".join(lines)


def _wrap(text: str, width: int, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, max(40, width), initial_indent=first, subsequent_indent=rest,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def field_help(schema: type) -> dict[str, str]:
    """The help of an option by the dotted name of its field, for argparse."""
    return {
        entry.path: f"{entry.meaning} ({entry.terms})".replace("%", "%%")
        for entry in all_fields(schema)
    }


def fields_table(entries: Sequence[FieldEntry]) -> str:
    """A table of Markdown, a row for each field."""
    rows = ["| field | type | default | meaning |", "|-|-|-|-|"]
    for entry in entries:
        default = "required" if entry.required else f"`{entry.default}`" if entry.default else ""
        cells = (f"`{entry.path}`", entry.kind, default, entry.meaning)
        rows.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    """A text that neither ends a cell nor reads as Markdown or HTML, but for code in backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [re.sub(r"([*_<\[\]|])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [part.replace("|", r"\|") for part in parts[1::2]]
    return "".join(parts)


def kind_words(kind: Any) -> str:
    """A type and its range in words.

    >>> kind_words(Annotated[int, Range("[1, 8]")] | None)
    'integer in [1, 8], or null'
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        limits = [words for limit in args[1:] if (words := _limit_words(limit))]
        return " ".join([kind_words(args[0]), *limits])
    if origin in (typing.Union, types.UnionType):
        kinds = [kind_words(arg) for arg in args if arg is not types.NoneType]
        kinds += ["null"] if types.NoneType in args else []
        return (", or " if any(" " in words for words in kinds) else " or ").join(kinds)
    if origin is Literal:
        return "one of " + "|".join(map(str, args)) if len(args) > 1 else str(args[0])
    if origin is tuple:
        first, space, rest = kind_words(args[0]).removeprefix("one of ").partition(" ")
        return f"list of {_MANY.get(first, first)}{space}{rest}"
    if origin is Mapping:
        return "named " + _MANY[kind_words(args[1])]
    return "section" if dataclasses.is_dataclass(kind) else _WORDS.get(kind, "path")


def _limit_words(limit: Any) -> str:
    if isinstance(limit, Text):
        return f"with {limit.once} once" if limit.once else ""
    return limit.words if isinstance(limit, Range) else ""


def _section_of(kind: Any) -> type | None:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return kind
    return next(filter(None, map(_section_of, typing.get_args(kind))), None)


def _is_named(kind: Any) -> bool:
    return typing.get_origin(kind) is Mapping or any(map(_is_named, typing.get_args(kind)))


def _is_list(kind: Any) -> bool:
    return typing.get_origin(kind) is tuple or any(map(_is_list, typing.get_args(kind)))


def _default_word(spec: dataclasses.Field[Any]) -> str:
    given = spec.default_factory
    value = spec.default if given is dataclasses.MISSING else given()
    return "" if dataclasses.is_dataclass(value) else _value_word(to_plain(value))


def _value_word(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, Mapping)):  # of sections with names those
        names = [item.get("name", "…") if isinstance(item, Mapping) else item for item in value]
        return f"[{', '.join(map(_value_word, names))}]"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:g}"
    # Blanks at an end are seen in quotes only.
    return f'"{value}"' if value == "" or str(value) != str(value).strip() else str(value)


def _meaning(schema: type, name: str) -> str:
    """What the class says, or else the nearest of its bases that has the field."""
    for owner in schema.__mro__:
        if dataclasses.is_dataclass(owner) and (text := _meanings(owner).get(name)):
            return text
    return ""


@functools.cache
def _meanings(schema: type) -> dict[str, str]:
    """Of the fields that the class itself writes down; none where its source is not installed."""
    try:
        source = textwrap.dedent(inspect.getsource(schema))
    except OSError:
        return {}
    tree = typing.cast(ast.ClassDef, ast.parse(source).body[0])
    alone, at_end = _comments(source)
    found = _attributes(ast.get_docstring(tree) or "")
    for node in tree.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        above: list[str] = []
        line = node.lineno - 1
        while line in alone:
            above.insert(0, alone[line])
            line -= 1
        text = " ".join(above) or at_end.get(node.end_lineno or 0, "")
        if text:
            found.setdefault(node.target.id, _with_full_stop(text))
    return found


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Comments by line: those of lines of their own, those behind code."""
    alone: dict[int, str] = {}
    at_end: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        text = token.string.lstrip("# ").rstrip()
        if token.type == tokenize.COMMENT and not text.startswith(("fmt:", "type:", "noqa")):
            (at_end if token.line[: token.start[1]].strip() else alone)[token.start[0]] = text
    return alone, at_end


def _attributes(docstring: str) -> dict[str, str]:
    section = re.search(r"(?ms)^Attributes:\n( +)(.*?)(?=^\S|\Z)", docstring)
    if section is None:
        return {}
    indent, entries = section.groups()
    found: dict[str, str] = {}
    for entry in re.split(rf"(?m)^{indent}(?=\w)", entries):
        names, colon, text = entry.partition(":")
        if colon:
            text = _with_full_stop(text)
            text = text if text.startswith("dtype") else text[:1].upper() + text[1:]
            found.update({name.strip(): text for name in names.split(",")})
    return found


def first_paragraph(schema: type) -> str:
    """The first paragraph of a class's docstring, in one line."""
    paragraph = (inspect.getdoc(schema) or "").split("\n\n")[0]
    return _with_full_stop(paragraph)


def _with_full_stop(text: str) -> str:
    """In one line."""
    text = " ".join(text.split())
    return text if not text or text.endswith((".", "?", "!")) else text + "."
