"""The collectives of a compiled program, read from its HLO text.

Bytes are those of a collective's result on one device. The body of a loop is counted once for each
iteration if the text gives their number: `known_trip_count`, or a condition that compares a counter
with a constant. Otherwise the caller may give it; the default is once. Of the branches of a choice
the one that moves the most bytes counts.

A collective whose replica groups cross slices goes over the data center network (DCN). For several
TPU slices the compiler writes the program of one slice: what crosses is a transfer through the
host, whose attributes name the collective (seen in the output of libtpu 0.0.42).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

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
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)"
    r"|branch_computations=\{([^}]*)\}"
)
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
# Replica groups: {{0,1},{2,3}}, or [2,2]<=[2,2]T(1,0), or by axes of a mesh of devices:
# mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, where 'b':(1)2 is a part of an axis.
_PARTITIONS = re.compile(r"\bnum_partitions=(\d+)")
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})?\}")
_TRANSPOSED = r"\[[\d,]+\](?:T\([\d,]+\))?"
_IOTA = re.compile(rf"replica_groups=\[([\d,]+)\]<=({_TRANSPOSED})")
_NAMED = re.compile(
    rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(({_TRANSPOSED}|[\d, ]+)\))?"
    r"\s*\{([^}]*)\}"
)
_AXIS = re.compile(r"'(\w+)'(?:=(\d+)|:\((\d+)\)(\d+))?")
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_TRANSFERS = {
    "ALL_GATHER": "all-gather", "ALL_REDUCE": "all-reduce", "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all", "ONE_TO_ONE": "collective-permute",
}  # fmt: skip


@dataclass(frozen=True)
class CollectiveTraffic:
    """How often a kind of collective runs, and the bytes of all its results on one device.

    Attributes:
      count, bytes: over all links.
      dcn_count, dcn_bytes: of those that cross slices.
    """

    count: int
    bytes: int
    dcn_count: int = 0
    dcn_bytes: int = 0


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
    by_name: dict[str, _Operation] = field(default_factory=dict)


@dataclass
class _Walk:
    """Finds the collectives of a module; `seen` are the channels of those that were found."""

    module: _Module
    slices: Sequence[int]
    iterations: int | None
    seen: set[str] = field(default_factory=set)

    def calls(self, name: str, times: int) -> list[tuple[str, bool, int, int]]:
        """Of a computation that runs so many times: kind, whether it crosses slices, count and
        bytes of each."""
        found: list[tuple[str, bool, int, int]] = []

        def add(kind: str, size: int, times: int, crosses: bool) -> None:
            found.append((kind, crosses, times, size * times))

        for op in self.module.computations.get(name, ()):
            kind = op.opcode.removesuffix("-done")
            channel = _CHANNEL.search(op.rest)
            between = _BETWEEN_SLICES.search(op.rest) if op.opcode == "recv" else None
            if between is not None:
                # Its shape is (what is received, u32[], token[]).
                size = shape_bytes(op.shape) - _BYTES["u32"]
                add(_TRANSFERS.get(between.group(1), "all-to-all"), size, times, True)
            # An asynchronous collective has several instructions with one channel.
            elif kind in KINDS and not (channel and channel.group(1) in self.seen):
                self.seen.update(channel.groups() if channel else ())
                crosses = crosses_slices(_with_groups(self.module, op), self.slices)
                add(kind, shape_bytes(op.shape), times, crosses)
            inner = times
            if op.opcode == "while":
                given = self.iterations if name == self.module.entry else None
                inner *= _trip_count(self.module, op) if given is None else given
            parts = []
            for called in _called(op):
                if called.startswith("all-reduce-scatter"):
                    # A TPU compiles reduce-scatter to an all-reduce; each device keeps a part.
                    self.seen.update(_channels(self.module, called))
                    lines = (inside.rest for inside in self.module.computations.get(called, ()))
                    crosses = any(crosses_slices(line, self.slices) for line in lines)
                    add("reduce-scatter", shape_bytes(op.shape), inner, crosses)
                else:
                    parts.append(self.calls(called, inner))
            if op.opcode == "conditional":
                parts = [max(parts, key=lambda part: sum(size for *_, size in part), default=[])]
            found += [collective for part in parts for collective in part]
        return found


def shape_bytes(shape: str) -> int:
    """Bytes of an HLO shape, tuples summed: 'bf16[2,3]{1,0}' -> 12."""
    total = 0
    for kind, sizes in _SHAPE.findall(shape):
        if kind not in _BYTES:
            continue
        total += math.prod(map(int, filter(None, sizes.split(",")))) * _BYTES[kind]
    return total


def collectives(
    text: str, iterations: int | None = None, slices: Sequence[int] = ()
) -> dict[str, CollectiveTraffic]:
    """Traffic of the HLO module `text`, by kind of collective.

    Args:
      text: of the compiled module.
      iterations: of the loops directly in the entry computation; None: as the text says.
      slices: of each of the program's devices in their order, the number of its slice; empty: all
        are of one.
    """
    module = _parse(text)
    partitions = _PARTITIONS.search(text.partition("\n")[0])
    slices = slices[: int(partitions.group(1))] if partitions else slices
    counts, sizes = Counter[tuple[str, bool]](), Counter[tuple[str, bool]]()
    for kind, crosses, count, size in _Walk(module, slices, iterations).calls(module.entry, 1):
        counts[kind, crosses] += count
        sizes[kind, crosses] += size
    return {
        kind: CollectiveTraffic(
            counts[kind, False] + counts[kind, True], sizes[kind, False] + sizes[kind, True],
            counts[kind, True], sizes[kind, True],
        )
        for kind in KINDS
        if (kind, False) in counts or (kind, True) in counts
    }  # fmt: skip


def crosses_slices(line: str, slices: Sequence[int]) -> bool:
    """Whether a collective's instruction has a group with devices of several slices.

    slices: as of `collectives`. Groups in a form that is not known count as crossing.
    """
    if len(set(slices)) < 2 or "replica_groups" not in line and "source_target" not in line:
        return False
    groups = _groups(line, len(slices))
    return groups is None or any(len({slices[i] for i in group}) > 1 for group in groups)


def _groups(line: str, devices: int) -> list[list[int]] | None:
    """The groups of devices (or pairs of source and target) of an instruction; None: unknown."""
    if found := _LISTED.search(line):
        groups = re.findall(r"\{([\d, ]+)\}", found.group(1) or "")
        return [_numbers(group) for group in groups] or [[*range(devices)]]
    if found := _IOTA.search(line):
        return _ordered(found.group(2)).reshape(_numbers(found.group(1))).tolist()
    if found := _NAMED.search(line):
        sizes = {name: int(size) for name, size, *_ in _AXIS.findall(found.group(1))}
        ids = _ordered(found.group(2) or f"[{math.prod(sizes.values())}]")
        parts: dict[str, tuple[int, ...]] = {name: (1, size, 1) for name, size in sizes.items()}
        chosen = _AXIS.findall(found.group(3))
        for name, _, before, size in chosen:
            if size:
                before, size = int(before), int(size)
                parts[name] = before, size, sizes[name] // (before * size)
        ids = ids.reshape([size for part in parts.values() for size in part])
        inside = [3 * [*parts].index(name) + 1 for name, *_ in chosen]
        outside = [axis for axis in range(ids.ndim) if axis not in inside]
        if len(set(inside)) < len(inside):  # two parts of one axis
            return None
        count = math.prod(ids.shape[axis] for axis in inside)
        return ids.transpose(outside + inside).reshape(-1, count).tolist()
    return None


def _ordered(text: str) -> np.ndarray:
    """Ids of devices in the order that "[2,4]T(1,0)" or "3,1,2,0" says, flat."""
    if not text.startswith("["):
        return np.array(_numbers(text))
    sizes, order = map(_numbers, text.partition("T")[::2])
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return (ids.transpose(order) if order else ids).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _with_groups(module: _Module, op: _Operation) -> str:
    """The line that has a collective's groups: of an asynchronous one that of its start."""
    if not op.opcode.endswith("-done"):
        return op.rest
    start = re.search(r"\(%?([\w.\-]+)", op.rest)
    found = module.by_name.get(start.group(1)) if start else None
    return op.rest if found is None else found.rest


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
                module.by_name[op.name] = op
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
