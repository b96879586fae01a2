"""YAML without surprises: structure from the file, types from the schema.

Every unquoted scalar but null comes as a `PlainScalar`. What it is, a text or a number, the field
that takes it decides (`config.read_value`), or `parse_word` by the core schema of YAML 1.2. So
`on`, 1:30 and 2024-01-01 are no booleans, numbers and dates here. Refused, each with its line: a
key that stands twice, tags of other languages, aliases that contain themselves or multiply,
endless nesting.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import read_text

_PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
"""Where the configurations of this project are: of an installed package, of a checkout."""
_MAX_DEPTH = 50
_MAX_VALUES = 100_000  # with every alias counted as what it stands for
_MAX_CHARACTERS = 2_000_000

_INT = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NAMED = {
    "null": None, "~": None, "": None, "true": True, "false": False,
    ".inf": float("inf"), "+.inf": float("inf"), "-.inf": float("-inf"), ".nan": float("nan"),
}  # fmt: skip


class PlainScalar(str):
    """An unquoted scalar of YAML, or a value of the command line; its type is not known yet."""

    __slots__ = ()


class CommandWord(PlainScalar):
    """A value of the command line, where a list may stand without brackets."""

    __slots__ = ()


def parse_word(word: str) -> Any:
    """None, bool, int, float or the text itself, by the core schema of YAML 1.2 (and 10_000).

    010 is 10. Raises ValueError for an integer of thousands of digits.
    """
    if word in _NAMED or word in (word.capitalize(), word.upper()) and word.lower() in _NAMED:
        return _NAMED[word.lower()]
    if _INT.fullmatch(word):
        return int(word)
    if re.fullmatch("0o[0-7]+|0x[0-9a-fA-F]+", word):
        return int(word, 0)
    return float(word) if _FLOAT.fullmatch(word) else str(word)


def read_yaml(text: str, where: str) -> Any:
    """The values of a document; unquoted scalars are `PlainScalar`s, an empty document is None.

    `where` names it in messages. Raises InputError.
    """
    if len(text) > _MAX_CHARACTERS:
        raise InputError(f"{where} has {len(text)} characters; {_MAX_CHARACTERS} at most")
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _measure(root, {}, set())
        return loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        context = f" {error.context}" if error.context else ""
        raise InputError(f"{where} is not valid YAML: {line}{error.problem}{context}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error


def read_yaml_file(path: Path) -> Any:
    """`read_yaml` of a file, or of a configuration that ships, by its name without ending."""
    found = find_configuration(Path(path))
    return read_yaml(read_text(found, "configuration"), str(found))


def find_configuration(path: Path) -> Path:
    """The file of a name such as `gotr1_7b_grpo`, unless `path` is there or is no bare name.

    InputError for a bare name that neither is.
    """
    if path.exists() or path.name != str(path) or path.suffix:
        return path
    shipped = {file.stem: file for folder in SHIPPED for file in sorted(folder.glob("*.yaml"))}
    if str(path) not in shipped:
        raise InputError(
            f"{path} is no file, and no configuration of that name ships; there are "
            f"{', '.join(shipped)}"
        )
    return shipped[str(path)]


class _Loader(yaml.SafeLoader):
    _depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _fault(self.peek_event().start_mark, f"more than {_MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {
    "<": [("tag:yaml.org,2002:merge", re.compile("^<<$"))],
    None: [("!word", re.compile(""))],
}
_Loader.yaml_constructors = {
    **{
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("str", "seq", "map")
    },
    **{
        tag: lambda loader, node: _word(loader.construct_scalar(node))
        for tag in ("!word", *(f"tag:yaml.org,2002:{n}" for n in ("null", "bool", "int", "float")))
    },
}


def _word(text: str) -> PlainScalar | None:
    return None if text in ("", "~", "null", "Null", "NULL") else PlainScalar(text)


def _measure(node: Node, known: dict[int, tuple[int, int]], above: set[int]) -> tuple[int, int]:
    """Values and levels below `node`, aliases written out; refuses keys that stand twice.

    An alias comes after what it stands for, which is `known` by then: no deep recursion.
    """
    if id(node) in above:
        raise _fault(node.start_mark, "a value that contains itself")
    if id(node) not in known:
        children = []
        if isinstance(node, SequenceNode):
            children = list(node.value)
        elif isinstance(node, MappingNode):
            _check_keys(node)
            children = [child for _, child in node.value]
        above.add(id(node))
        sizes = [_measure(child, known, above) for child in children]
        above.discard(id(node))
        values = 1 + sum(count for count, _ in sizes)
        levels = 1 + max((levels for _, levels in sizes), default=0)
        if values > _MAX_VALUES or levels > _MAX_DEPTH:
            raise _fault(
                node.start_mark,
                f"aliases written out give over {_MAX_VALUES} values or {_MAX_DEPTH} levels",
            )
        known[id(node)] = values, levels
    return known[id(node)]


def _check_keys(node: MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, ScalarNode):
            raise _fault(key.start_mark, "a key must be a word")
        if key.value in lines:
            first = lines[key.value]
            raise _fault(key.start_mark, f"the key {key.value!r} stands in line {first} already")
        lines[key.value] = line


def _fault(mark: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
