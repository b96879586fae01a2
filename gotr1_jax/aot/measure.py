"""One program, compiled for a target that is not there: its memory, work and traffic."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
from jax.errors import JaxRuntimeError

from gotr1_jax.aot.flops import count_flops
from gotr1_jax.aot.hlo import Traffic, collectives
from gotr1_jax.aot.target import Target
from gotr1_jax.errors import RunError

_LOG = logging.getLogger(__name__)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)\b")
# Tiles of Triton's products are chosen by trying them out, and here is no GPU to try them on.
_OPTIONS = {"cuda": {"xla_gpu_enable_triton_gemm": False}}
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
      traffic: collectives by kind; None: the compiler is of another version than jaxlib, and its
        program cannot be read.
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
    traffic: Mapping[str, Traffic] | None
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

    def __init__(self, target: Target, known: MutableMapping[str, Measured] | None = None) -> None:
        """known: what was measured before, by program; gets what is measured now."""
        self.target = target
        self._known = {} if known is None else known

    def __call__(self, program: Program) -> tuple[Measured, Any]:
        """What the program needs, and its outputs as shapes."""
        traced = program.function.trace(*program.args, **program.static)
        lowered = traced.lower()
        text = f"{self.target.name} {program.turns} {lowered.as_text()}"
        key = hashlib.sha256(text.encode()).hexdigest()
        bare = replace(program, args=(), reads=(), function=None)
        if key not in self._known:
            measured = self._compile(program, traced, lowered)
            self._known[key] = replace(measured, program=bare)
        return replace(self._known[key], program=bare), traced.out_info

    def _compile(self, program: Program, traced: Any, lowered: Any) -> Measured:
        _LOG.info("compiling %s for %s", program.name, self.target.name)
        flops = count_flops(traced.jaxpr, program.turns) / _devices(program.args)
        moved = program.turns * device_bytes(program.reads)
        try:
            options = _OPTIONS.get(self.target.chip.platform)
            compiled = lowered.compile(compiler_options=options)
        except JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                first = str(error).partition("\n")[0]
                raise RunError(f"the compiler fails on {program.name}: {first}") from error
            return self._refused(program, str(error), flops, moved)
        memory = compiled.memory_analysis()
        arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes
        aliased, temporaries = memory.alias_size_in_bytes, memory.temp_size_in_bytes
        turns = program.turns if program.turns > 1 else None
        return Measured(
            program=program,
            argument_bytes=arguments,
            output_bytes=outputs,
            alias_bytes=aliased,
            temp_bytes=temporaries,
            peak_bytes=arguments + temporaries + outputs - aliased,
            flops=flops,
            traffic=_traffic(program, compiled, turns),
            moved_bytes=max(moved, arguments + outputs - aliased),
        )

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


def _traffic(program: Program, compiled: Any, turns: int | None) -> Mapping[str, Traffic] | None:
    try:
        text = compiled.as_text()
    except JaxRuntimeError as error:
        first = str(error).partition("\n")[0]
        _LOG.warning("the collectives of %s cannot be read: %s", program.name, first)
        return None
    return collectives(text, turns)


def _devices(args: Any) -> int:
    return max(len(x.sharding.device_set) for x in jax.tree.leaves(args) if x.sharding is not None)


def _sizes(message: str) -> list[int]:
    """Sizes like 36.00G in a message."""
    return [int(float(n) * _UNITS[unit]) for n, unit in _SIZE.findall(message) if unit]
