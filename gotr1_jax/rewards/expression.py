"""The language of `reward.total`: names, numbers, + - * / **, min, max and parentheses.

Precedence and associativity are those of Python: -a ** 2 is -(a ** 2), a ** b ** c is
a ** (b ** c). A text is only ever parsed, never run as Python.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gotr1_jax.errors import ConfigError

FUNCTIONS: Mapping[str, Callable[..., np.ndarray]] = {"min": np.minimum, "max": np.maximum}
MOST_CHARACTERS = 10_000
LARGEST = 1e30  # sums over groups stay finite in float32
_MOST_DEPTH = 40
_MOST_HEIGHT = 200  # operations that wait for each other, as in a + a + a
_OPERATORS: Mapping[str, Callable[..., np.ndarray]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "**": np.power,
}
_TOKEN = re.compile(
    r"(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![A-Za-z_]))"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign>\*\*|[-+*/(),])",
    re.ASCII,
)


class Token(NamedTuple):
    """A word of an expression, and its first character's place, counted from 1."""

    kind: str  # number, name, sign or end
    text: str
    place: int


@dataclass(frozen=True)
class Node:
    """A part of an expression: a constant, a name, or a function of other parts."""

    place: int
    value: float | None = None
    name: str = ""
    function: Callable[..., np.ndarray] | None = None
    parts: tuple[Node, ...] = ()
    height: int = 0


@dataclass(frozen=True)
class Expression:
    """A parsed expression.

    Attributes:
        names: those that it holds, with the place of each name's first character, from 1.
    """

    text: str
    root: Node
    names: Mapping[str, int]

    def evaluate(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """The expression's value in each row, computed in float64.

        Args:
            values: float (B,) for at least each of `names`; NaN where unknown.

        Returns:
            float32 (B,). NaN where any named value is NaN, whatever it is multiplied with, and
            where the result of any operation in it is not finite (a division by zero, a root of a
            negative number, an overflow) or the total is beyond ±1e30.
        """
        columns = {name: np.asarray(values[name], np.float64) for name in self.names}
        with np.errstate(all="ignore"):
            result, known = _evaluate(self.root, columns)
            result = result.astype(np.float32)
            known = known & (np.abs(result) <= LARGEST)
        for column in columns.values():
            known = known & ~np.isnan(column)
        return np.where(known, result, np.float32("nan"))


def parse_expression(text: str) -> Expression:
    """The expression in `text`; a ConfigError that names the place of the first mistake."""
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"has {len(text)} characters; use at most {MOST_CHARACTERS}")
    parser = _Parser(text)
    root = parser.sum(0)
    if parser.token.kind != "end":
        raise parser.error(parser.token, f"{parser.token.text!r} does not belong here")
    return Expression(text, root, parser.names)


def _evaluate(
    node: Node, columns: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray | bool]:
    """A node's value, and where all operations in it gave finite numbers.

    The latter, as some of them lose it: max(a / 0, 1), 1 / (a / 0) and nan ** 0 are finite.
    """
    if node.function is None:
        return columns[node.name] if node.name else np.asarray(node.value, np.float64), True
    result, known = _evaluate(node.parts[0], columns)
    for part in node.parts[1:]:
        value, is_finite = _evaluate(part, columns)
        result = np.asarray(node.function(result, value))
        known = known & is_finite & np.isfinite(result)
    return result, known


class _Parser:
    """Recursive descent: sum > product > sign > power > atom; `depth` counts open parentheses."""

    def __init__(self, text: str) -> None:
        self.text, self.names = text, dict[str, int]()
        self.token = self._read(0)

    def error(self, token: Token, what: str) -> ConfigError:
        shown = self.text if len(self.text) <= 120 else self.text[:120] + "…"
        return ConfigError(f"is {shown!r}; character {token.place}: {what}")

    def _read(self, start: int) -> Token:
        while start < len(self.text) and self.text[start].isspace():
            start += 1
        self._end = start
        if start == len(self.text):
            return Token("end", "", start + 1)
        match = _TOKEN.match(self.text, start)
        if match is None:
            letter = Token("sign", self.text[start], start + 1)
            raise self.error(
                letter, f"{letter.text!r} cannot stand here; use names, numbers, + - * / **, min, "
                "max and parentheses"
            )  # fmt: skip
        self._end = match.end()
        return Token(str(match.lastgroup), match.group(), start + 1)

    def _take(self) -> Token:
        token, self.token = self.token, self._read(self._end)
        return token

    def _apply(self, sign: Token, parts: tuple[Node, ...]) -> Node:
        function = FUNCTIONS.get(sign.text) or _OPERATORS[sign.text]
        height = 1 + max(part.height for part in parts)
        if height > _MOST_HEIGHT:
            raise self.error(sign, f"more than {_MOST_HEIGHT} operations in a row")
        node = Node(sign.place, function=function, parts=parts, height=height)
        if all(part.value is not None for part in parts):
            with np.errstate(all="ignore"):
                value = float(_evaluate(node, {})[0])
            if not math.isfinite(value):
                raise self.error(sign, f"{sign.text!r} gives no finite number")
            return Node(sign.place, value=value)
        if sign.text == "/" and parts[1].value == 0:
            raise self.error(sign, "a division by zero")
        return node

    def sum(self, depth: int) -> Node:
        left = self._product(depth)
        while self.token.text in ("+", "-"):
            sign = self._take()
            left = self._apply(sign, (left, self._product(depth)))
        return left

    def _product(self, depth: int) -> Node:
        left = self._signed(depth)
        while self.token.text in ("*", "/"):
            sign = self._take()
            left = self._apply(sign, (left, self._signed(depth)))
        return left

    def _signed(self, depth: int) -> Node:
        if depth > _MOST_DEPTH:
            raise self.error(self.token, f"more than {_MOST_DEPTH} levels within each other")
        if self.token.text == "-":
            sign = self._take()
            return self._apply(
                Token("sign", "-", sign.place), (Node(sign.place, 0.0), self._signed(depth + 1))
            )
        base = self._atom(depth)
        if self.token.text == "**":
            sign = self._take()
            return self._apply(sign, (base, self._signed(depth + 1)))
        return base

    def _atom(self, depth: int) -> Node:
        token = self._take()
        if token.kind == "number":
            value = float(token.text)
            if not math.isfinite(value):
                raise self.error(token, f"{token.text[:40]} is no finite number")
            return Node(token.place, value=value)
        if token.kind == "name" and token.text in FUNCTIONS:
            return self._call(token, depth)
        if token.kind == "name":
            if self.token.text == "(":
                raise self.error(token, f"{token.text} is no function; there are min and max")
            self.names.setdefault(token.text, token.place)
            return Node(token.place, name=token.text)
        if token.text == "(":
            inner = self.sum(depth + 1)
            self._close(token)
            return inner
        found = repr(token.text) if token.text else "the end"
        raise self.error(token, f"a name, a number or '(' is missing before {found}")

    def _call(self, name: Token, depth: int) -> Node:
        opening = self._take()
        if opening.text != "(":
            raise self.error(name, f"{name.text} is a function: {name.text}(a, b)")
        parts = [self.sum(depth + 1)]
        while self.token.text == ",":
            self._take()
            parts.append(self.sum(depth + 1))
        self._close(opening)
        if len(parts) < 2:
            raise self.error(name, f"{name.text} needs two values or more")
        return self._apply(name, tuple(parts))

    def _close(self, opening: Token) -> None:
        if self.token.text != ")":
            found = repr(self.token.text) if self.token.text else "the end"
            raise self.error(
                self.token, f"')' is missing before {found} (opened at character {opening.place})"
            )
        self._take()
