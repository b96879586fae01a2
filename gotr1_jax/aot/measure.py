"""Compiles a program for devices that this machine need not have: its memory, FLOPs and traffic."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
from jax.errors import JaxRuntimeError

from gotr1_jax.aot.flops import count_flops
from gotr1_jax.aot.hlo import CollectiveTraffic, collectives
from gotr1_jax.aot.target import Target
from gotr1_jax.errors import RunError

_LOG = logging.getLogger(__name__)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)\b")
# Triton chooses its tiles by timing them on a GPU, and there is none.
_OPTIONS = {"cuda": {"xla_gpu_enable_triton_gemm": False}}
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Program:
    """A jitted function with the shapes of the job's arguments.

    Attributes:
      name: in the report.
      function: jitted.
      args, static: arguments as sharded shapes, and static keyword arguments.
      persistent_args: names of the job's persistent trees that are arguments.
      resident: names of all persistent trees in memory while it runs.
      iterations: of its outermost while loop.
      reads: arrays that each iteration of that loop reads whole.
      runs_per_step: how often a training step runs it; 0: never with this configuration.
    """

    name: str
    function: Any
    args: tuple[Any, ...]
    static: Mapping[str, Any] = field(default_factory=dict)
    persistent_args: tuple[str, ...] = ()
    resident: tuple[str, ...] = ()
    iterations: int = 1
    reads: Any = ()
    runs_per_step: float = 1.0


@dataclass(frozen=True)
class ProgramCost:
    """Memory, FLOPs and traffic of a program on one device.

    Attributes:
      program: without its arguments.
      argument_bytes, output_bytes, alias_bytes, temp_bytes: of the compiler's memory analysis;
        aliased outputs reuse the memory of arguments.
      peak_bytes: arguments, temporaries, and outputs that are not aliased.
      flops: of matrix products and convolutions.
      traffic: collectives by kind; None: unknown, because compiler and jaxlib have different
        versions and the program cannot be read.
      memory_traffic_bytes: least bytes that are read and written.
      failed: the compiler ran out of memory; the bytes are those in its message.
    """

    program: Program
    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    temp_bytes: int
    peak_bytes: int
    flops: float
    traffic: Mapping[str, CollectiveTraffic] | None
    memory_traffic_bytes: int
    failed: bool = False

    def seconds(self, target: Target) -> float | None:
        """Least time by the chip's peak FLOP/s and bandwidth; None: unknown."""
        chip = target.chip
        if chip.flops is None or chip.bandwidth is None:
            return None
        return max(self.flops / chip.flops, self.memory_traffic_bytes / chip.bandwidth)


def bytes_per_device(tree: Any) -> int:
    """Bytes of one device's shards of a tree of sharded shapes."""
    total = 0
    for x in jax.tree.leaves(tree):
        shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        total += math.prod(shape) * x.dtype.itemsize
    return total


class Compiler:
    """Compiles for a target; an equal program is compiled once."""

    def __init__(
        self, target: Target, known: MutableMapping[str, ProgramCost] | None = None
    ) -> None:
        """known: costs of earlier programs, by key; new ones are added."""
        self.target = target
        self._known = {} if known is None else known

    def __call__(self, program: Program) -> tuple[ProgramCost, Any]:
        """The program's cost, and its outputs as shapes."""
        traced = program.function.trace(*program.args, **program.static)
        lowered = traced.lower()
        text = f"{self.target.name} {program.iterations} {lowered.as_text()}"
        key = hashlib.sha256(text.encode()).hexdigest()
        bare = replace(program, args=(), reads=(), function=None)
        if key not in self._known:
            cost = self._compile(program, traced, lowered)
            self._known[key] = replace(cost, program=bare)
        return replace(self._known[key], program=bare), traced.out_info

    def _compile(self, program: Program, traced: Any, lowered: Any) -> ProgramCost:
        _LOG.info("compiling %s for %s", program.name, self.target.name)
        flops = count_flops(traced.jaxpr, program.iterations) / _devices(program.args)
        traffic = program.iterations * bytes_per_device(program.reads)
        try:
            options = _OPTIONS.get(self.target.chip.platform)
            compiled = lowered.compile(compiler_options=options)
        except JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                first = str(error).partition("\n")[0]
                raise RunError(f"{program.name} does not compile: {first}") from error
            return self._out_of_memory(program, str(error), flops, traffic)
        memory = compiled.memory_analysis()
        arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes
        aliased, temporaries = memory.alias_size_in_bytes, memory.temp_size_in_bytes
        iterations = program.iterations if program.iterations > 1 else None
        return ProgramCost(
            program=program,
            argument_bytes=arguments,
            output_bytes=outputs,
            alias_bytes=aliased,
            temp_bytes=temporaries,
            peak_bytes=arguments + temporaries + outputs - aliased,
            flops=flops,
            traffic=_traffic(program, compiled, iterations, self._slices(program)),
            memory_traffic_bytes=max(traffic, arguments + outputs - aliased),
        )

    def _slices(self, program: Program) -> tuple[int, ...]:
        """The slice of each of the program's devices, in their order."""
        placed = (x.sharding for x in jax.tree.leaves(program.args) if x.sharding is not None)
        most = max(placed, key=lambda sharding: len(sharding.device_set))
        return self.target.slice_numbers(most.mesh.devices.flat)

    def _out_of_memory(
        self, program: Program, message: str, flops: float, traffic: int
    ) -> ProgramCost:
        """The cost of a program that is too large, from the compiler's message."""
        arguments = bytes_per_device(program.args)
        _LOG.info("%s does not fit: %s", program.name, message.splitlines()[0])
        temporaries = max(_sizes(message), default=0)
        if "HLO temporaries" not in message:
            # Such a message gives the total.
            temporaries = max(0, temporaries - arguments)
        peak = arguments + temporaries
        return ProgramCost(
            program, arguments, 0, 0, temporaries, peak, flops, {}, max(traffic, arguments), True
        )


def _traffic(
    program: Program, compiled: Any, iterations: int | None, slices: Sequence[int]
) -> Mapping[str, CollectiveTraffic] | None:
    try:
        text = compiled.as_text()
    except JaxRuntimeError as error:
        first = str(error).partition("\n")[0]
        _LOG.warning("the collectives of %s cannot be read: %s", program.name, first)
        return None
    return collectives(text, iterations, slices)


def _devices(args: Any) -> int:
    return max(len(x.sharding.device_set) for x in jax.tree.leaves(args) if x.sharding is not None)


def _sizes(message: str) -> list[int]:
    """Sizes like 36.00G in a message."""
    return [int(float(n) * _UNITS[unit]) for n, unit in _SIZE.findall(message) if unit]
