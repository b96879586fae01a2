"""The collectives of a compiled program, read from its HLO text.

Bytes are those of a collective's result on one device. The body of a loop is counted once for each
iteration if the text gives their number: `known_trip_count`, or a condition that compares a counter
with a constant. Otherwise the caller may give it; the default is once.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field

KINDS = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
    "collective-broadcast", "ragged-all-to-all",
)  # fmt: skip
_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4,
    "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16, "f8e4m3fn": 1, "f8e5m2": 1,
}  # fmt: skip
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"\b(?:calls|to_apply|body)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")


@dataclass(frozen=True)
class CollectiveTraffic:
    """How often a kind of collective runs, and the bytes of all its results on one device."""

    count: int
    bytes: int


@dataclass(frozen=True)
class _Operation:
    name: str
    shape: str
    opcode: str
    rest: str
    is_root: bool


@dataclass
class _Module:
    entry: str = ""
    computations: dict[str, list[_Operation]] = field(default_factory=dict)


def shape_bytes(shape: str) -> int:
    """Bytes of an HLO shape, tuples summed: 'bf16[2,3]{1,0}' -> 12."""
    total = 0
    for kind, sizes in _SHAPE.findall(shape):
        if kind not in _BYTES:
            continue
        total += math.prod(map(int, filter(None, sizes.split(",")))) * _BYTES[kind]
    return total


def collectives(text: str, iterations: int | None = None) -> dict[str, CollectiveTraffic]:
    """Traffic of the HLO module `text`, by kind of collective.

    iterations: of the loops directly in the entry computation; None: as the text says.
    """
    module = _parse(text)
    counts, sizes = Counter[str](), Counter[str]()
    seen: set[str] = set()

    def add(kind: str, op: _Operation, times: int) -> None:
        counts[kind] += times
        sizes[kind] += shape_bytes(op.shape) * times

    def walk(name: str, times: int) -> None:
        for op in module.computations.get(name, ()):
            kind = op.opcode.removesuffix("-done")
            channel = _CHANNEL.search(op.rest)
            # An asynchronous collective has several instructions with one channel.
            if kind in KINDS and not (channel and channel.group(1) in seen):
                seen.update(channel.groups() if channel else ())
                add(kind, op, times)
            inner = times
            if op.opcode == "while":
                given = iterations if name == module.entry else None
                inner *= _trip_count(module, op) if given is None else given
            for called in _called(op):
                if called.startswith("all-reduce-scatter"):
                    # A TPU compiles reduce-scatter to an all-reduce; each device keeps a part.
                    seen.update(_channels(module, called))
                    add("reduce-scatter", op, inner)
                else:
                    walk(called, inner)

    walk(module.entry, 1)
    return {kind: CollectiveTraffic(counts[kind], sizes[kind]) for kind in KINDS if kind in counts}


def _parse(text: str) -> _Module:
    module, current = _Module(), ""
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            current = header.group(2)
            module.computations[current] = []
            if header.group(1):
                module.entry = current
            continue
        body = _INSTRUCTION.match(line)
        if body and current:
            op = _operation(body.group(2), body.group(3), bool(body.group(1)))
            if op is not None:
                module.computations[current].append(op)
    return module


def _operation(name: str, text: str, is_root: bool) -> _Operation | None:
    """Parses 'bf16[2]{0} all-gather(%x), ...'; the shape may be a tuple."""
    end = _tuple_end(text) if text.startswith("(") else text.find(" ")
    found = re.match(r"\s*([\w\-]+)\(", text[end:])
    if found is None:
        return None
    return _Operation(name, text[:end], found.group(1), text[end:], is_root)


def _tuple_end(text: str) -> int:
    """Index after the parenthesis that closes the first one."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place + 1
    return len(text)


def _called(op: _Operation) -> list[str]:
    """Computations that an operation calls; those of collectives are arithmetic, left out."""
    if op.opcode in KINDS or op.opcode.endswith(("-done", "-update")):
        return []
    names = []
    for one, several in _CALLED.findall(op.rest):
        names += [one] if one else [n.strip().lstrip("%") for n in several.split(",")]
    return names


def _channels(module: _Module, name: str) -> set[str]:
    lines = (op.rest for op in module.computations.get(name, ()))
    return {found.group(1) for found in map(_CHANNEL.search, lines) if found}


def _trip_count(module: _Module, op: _Operation) -> int:
    known = _TRIPS.search(op.rest)
    if known:
        return int(known.group(1))
    condition = _CONDITION.search(op.rest)
    body = module.computations.get(condition.group(1), []) if condition else []
    constants = {
        o.name: int(found.group(1))
        for o in body
        if o.opcode == "constant" and (found := re.match(r"\s*constant\((\d+)\)", o.rest))
    }
    for o in body:
        if o.is_root and o.opcode == "compare" and "direction=LT" in o.rest:
            operands = re.findall(r"%([\w.\-]+)", o.rest.partition("(")[2].partition(")")[0])
            limits = [constants[name] for name in operands if name in constants]
            if limits:
                return limits[0]
    return 1
