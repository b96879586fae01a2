"""One program, compiled for a target that is not there: its memory, work and traffic."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
from jax.errors import JaxRuntimeError

from gotr1_jax.ahead.flops import count_flops
from gotr1_jax.ahead.hlo import Traffic, collectives
from gotr1_jax.ahead.target import Target
from gotr1_jax.parallel.sharding import placed_shapes

_LOG = logging.getLogger(__name__)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)\b")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Program:
    """A jitted function of the job with the shapes that the job gives it.

    Attributes:
      name: for the report.
      function: jitted.
      args, static: arguments as placed shapes, and static keyword arguments.
      holds: names of the job's lasting trees among the arguments.
      beside: names of all lasting trees that lie in memory while it runs.
      turns: of its outermost loop, where that is open-ended.
      reads: arrays that every turn of that loop reads whole.
      times: how often a step runs it; 0: not with this configuration.
    """

    name: str
    function: Any
    args: tuple[Any, ...]
    static: Mapping[str, Any] = field(default_factory=dict)
    holds: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    turns: int = 1
    reads: Any = ()
    times: float = 1.0


@dataclass(frozen=True)
class Measured:
    """What the compiler says of a program; bytes and FLOPs are those of one device.

    Attributes:
      program: as given, its arguments dropped.
      argument_bytes, output_bytes, alias_bytes, temp_bytes: of the compiler; aliased outputs take
        their arguments' place.
      peak_bytes: arguments, temporaries, and outputs that are not aliased.
      flops: of matrix products and convolutions.
      traffic: collectives by kind.
      moved_bytes: what must be read and written at least.
      failed: the compiler refused it for its memory; bytes are then what it said.
    """

    program: Program
    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    temp_bytes: int
    peak_bytes: int
    flops: float
    traffic: Mapping[str, Traffic]
    moved_bytes: int
    failed: bool = False

    def seconds(self, target: Target) -> float | None:
        """The least time that it takes by the chip's peak numbers; None: they are not known."""
        chip = target.chip
        if chip.flops is None or chip.bandwidth is None:
            return None
        return max(self.flops / chip.flops, self.moved_bytes / chip.bandwidth)


def device_bytes(tree: Any) -> int:
    """Bytes of a tree of placed shapes on the device that holds the most: its own shards."""
    total = 0
    for x in jax.tree.leaves(tree):
        shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        size = 1
        for length in shape:
            size *= length
        total += size * x.dtype.itemsize
    return total


class Compiler:
    """Compiles for a target; equal programs are compiled once."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._known: dict[str, tuple[Measured, Any]] = {}

    def __call__(self, program: Program) -> tuple[Measured, Any]:
        """What the program needs, and its outputs as placed shapes.

        Where the compiler refused it, outputs have no places.
        """
        traced = program.function.trace(*program.args, **program.static)
        lowered = traced.lower()
        key = hashlib.sha256(lowered.as_text().encode()).hexdigest()
        if key not in self._known:
            self._known[key] = self._compile(program, traced, lowered)
        measured, shardings = self._known[key]
        bare = replace(program, args=(), reads=(), function=None)
        outputs = traced.out_info
        if shardings is not None:
            outputs = placed_shapes(outputs, shardings)
        return replace(measured, program=bare), outputs

    def _compile(self, program: Program, traced: Any, lowered: Any) -> tuple[Measured, Any]:
        _LOG.info("compiling %s for %s", program.name, self.target.name)
        devices = _devices(program.args)
        flops = count_flops(traced.jaxpr, program.turns) / devices
        moved = program.turns * device_bytes(program.reads)
        try:
            compiled = lowered.compile()
        except JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return self._refused(program, str(error), flops, moved), None
        memory = compiled.memory_analysis()
        arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes
        aliased, temporaries = memory.alias_size_in_bytes, memory.temp_size_in_bytes
        turns = program.turns if program.turns > 1 else None
        return Measured(
            program,
            arguments,
            outputs,
            aliased,
            temporaries,
            arguments + temporaries + outputs - aliased,
            flops,
            collectives(compiled.as_text(), turns),
            max(moved, arguments + outputs - aliased),
        ), compiled.output_shardings

    def _refused(self, program: Program, message: str, flops: float, moved: int) -> Measured:
        """Bytes from what the compiler says of a program that is too large for it."""
        arguments = device_bytes(program.args)
        _LOG.info("the compiler refuses %s: %s", program.name, message.splitlines()[0])
        temporaries = max(_sizes(message), default=0)
        if "HLO temporaries" not in message:
            # The sum of everything is what such a message gives.
            temporaries = max(0, temporaries - arguments)
        peak = arguments + temporaries
        return Measured(
            program, arguments, 0, 0, temporaries, peak, flops, {}, max(moved, arguments), True
        )


def _devices(args: Any) -> int:
    return max(len(x.sharding.device_set) for x in jax.tree.leaves(args) if x.sharding is not None)


def _sizes(message: str) -> list[int]:
    """Sizes like 36.00G in a message."""
    return [int(float(n) * _UNITS[unit]) for n, unit in _SIZE.findall(message) if unit]
