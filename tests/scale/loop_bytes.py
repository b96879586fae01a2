"""Bytes that a token of the image loop moves, by its compiled text, against what it has to read.

    python tests/scale/loop_bytes.py 7b h100:8     # or 1b, v5p:4x4x4, ...: as in fit_table.py

Counts the operands and results of every instruction of the loop's body that lie in a chip's main
memory: an update in place counts its slices, a gather the rows that it takes, a copy into a core's
memory what it reads. Minutes on a few cores.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from typing import Any

import jax
from fit_table import CONFIGS, Setting

from gotr1_jax.aot import hlo

_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^{}]*\})?")
# They move nothing, or what their start has moved.
_FREE = {"get-tuple-element", "tuple", "bitcast", "parameter", "constant", "after-all"}


def main_memory_bytes(shape: str) -> int:
    """Of the arrays of a shape; those in another memory space, S(n), and GPUs' scratch are free."""
    return sum(
        hlo.shape_bytes(f"{dtype}[{sizes}]")
        for dtype, sizes, layout in _ARRAY.findall(shape)
        if not re.search(r"S\([1-9]", layout) and (dtype != "s8" or "," in sizes)
    )


def moved_bytes(text: str) -> Counter[str]:
    """Bytes moved by an iteration of the largest loop, by the kind and result of instructions."""
    bodies = hlo._parse(text).computations
    name = max(set(re.findall(r"body=%?([\w.\-]+)", text)), key=lambda body: len(bodies[body]))
    shapes: dict[str, str] = {}
    total: Counter[str] = Counter()
    for op in bodies[name]:
        shapes[op.name] = op.shape
        if op.opcode in _FREE or op.opcode.endswith("-done"):
            continue
        names = re.findall(r"%([\w.\-]+)", op.rest.split("), ")[0])
        read = sorted(main_memory_bytes(shapes.get(name, "")) for name in names)
        written = main_memory_bytes(op.shape)
        called = re.search(r"calls=%?([\w.\-]+)", op.rest)
        parts = bodies[called[1]] if called else [op]
        kinds = {part.opcode for part in parts}
        root = next((part.opcode for part in parts if part.is_root), op.opcode)
        if op.opcode == "copy-start":
            written = 0 if "S(1)" in op.shape else written // 2
        elif root == "dynamic-update-slice" and read:
            written = sum(read[:-1])  # the largest operand is updated in place
            read = read[:-1]
        elif {"gather", "dynamic-slice"} & kinds and read and read[-1] > 4 * written:
            read[-1] = written
        label = re.sub(r"\{[^{}]*\}", "", op.shape)[:60]
        total[f"{op.opcode} -> {label}"] += written + sum(read)
    return total


def main(size: str, topology: str) -> None:
    """Compile the loop, and print the bytes and the instructions that move the most."""
    from gotr1_jax.aot import measure, read_job
    from gotr1_jax.aot.job import ModelSizes
    from gotr1_jax.aot.report import compile_job
    from gotr1_jax.aot.target import find_target

    class MovedBytes(measure.Compiler):
        """Prints what a program's loop moves."""

        def __call__(self, program: measure.Program) -> tuple[measure.ProgramCost, Any]:
            traced = program.function.trace(*program.args, **program.static)
            options = measure._OPTIONS.get(self.target.chip.platform)
            text = traced.lower().compile(compiler_options=options).as_text()
            needed, moved = measure.bytes_per_device(program.reads), moved_bytes(text)
            total = moved.total()
            print(f"{total / 1e9:.2f} GB a token, {total / needed:.2f} of {needed / 1e9:.2f}")
            for label, count in moved.most_common(12):
                print(f"{count / 1e9:8.2f}  {label}")
            cost = measure.ProgramCost(program, 0, 0, 0, 0, 0, 0.0, {}, 0)
            return cost, traced.out_info

    overrides = Setting(size, "lora", topology, remote=True).overrides.split()
    config = read_job(CONFIGS / f"gotr1_{size}_grpo.yaml", overrides)
    target = find_target(topology)
    compile_job(config, target, ModelSizes(size, "7b"), MovedBytes(target), only="image loop")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    main(*sys.argv[1:])
