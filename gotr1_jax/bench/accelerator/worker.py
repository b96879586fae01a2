"""The process that measures: one section after the other, for as long as there is time."""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gotr1_jax.aot.chips import CHIPS, Chip, chip_name
from gotr1_jax.bench.accelerator.clocks import CompileClock, MemoryWatch
from gotr1_jax.bench.accelerator.prediction import predict
from gotr1_jax.bench.accelerator.record import (
    FAILED,
    MEASURED,
    OUT_OF_MEMORY,
    SKIPPED,
    TABLE,
    TOO_LARGE,
    BenchRecord,
)
from gotr1_jax.bench.accelerator.sections import Bench, Section, make_bench
from gotr1_jax.bench.accelerator.sizes import PolicyToMeasure
from gotr1_jax.bench.accelerator.table import to_markdown
from gotr1_jax.errors import InputError
from gotr1_jax.io.files import atomic_write
from gotr1_jax.io.markdown import markdown_table
from gotr1_jax.models.attention import attention_used, choose_attention
from gotr1_jax.parallel.mesh import AXES

_END = 3.0  # seconds that are left free for writing the last results
_PREDICTION_SECONDS = 90.0


def list_sections(options: argparse.Namespace) -> str:
    """The sections with their bytes and times, as Markdown; nothing is compiled."""
    device = jax.devices()[0]
    name = options.chip or chip_name(device.device_kind)
    _check_device(device, options.sizes, options.dry and name is not None)
    chip = CHIPS[name] if name else _this_chip(device)
    rows = []
    total = 0.0
    for section in make_bench(options.sizes, chip).only(options.only).sections:
        fits = section.bytes <= chip.hbm_bytes
        seconds = section.estimate(options.repeats, None) if fits else 0.0
        total += seconds
        rows.append((
            section.name, section.group, f"{section.bytes / 1e9:.1f}", str(section.programs),
            f"{section.seconds:.1f}", f"{seconds:.0f}" if fits else "does not fit",
        ))  # fmt: skip
    head = ("section", "in memory", "least GB", "programs", "s a repetition", "s with compiling")
    what = f"{name or device.device_kind}, {chip.hbm_bytes / 1e9:.0f} GB, sizes {options.sizes}"
    return f"{what}; all sections about {total / 60:.0f} minutes\n\n{markdown_table(head, rows)}"


def work(options: argparse.Namespace) -> None:
    """Measure what is open in the record of `options.out`, until `options.until`."""
    device = jax.devices()[0]
    _check_device(device, options.sizes, False)
    bench = make_bench(options.sizes, _this_chip(device)).only(options.only)
    record = BenchRecord.read(options.out)
    record.check_machine(describe_machine(device, options.sizes))
    record.write()
    Worker(record, device, bench, options.until, options.repeats).run()


def _check_device(device: Any, sizes: str, is_named: bool) -> None:
    if device.platform == "cpu" and sizes != "tiny" and not is_named:
        raise InputError(
            "there is no accelerator here; --sizes tiny tries the sections on this CPU, and "
            "--dry --chip h200 lists what they need"
        )


def describe_machine(device: Any, sizes: str) -> dict[str, Any]:
    """What all numbers of a record belong to."""
    chip = _this_chip(device)
    return {
        "device": device.device_kind,
        "driver": _driver(device),
        "jax": version("jax"),
        "jaxlib": version("jaxlib"),
        "memory_bytes": chip.hbm_bytes,
        "peak_flops": chip.flops,
        "peak_bandwidth": chip.bandwidth,
        "chip": chip_name(device.device_kind),
        "sizes": sizes,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _this_chip(device: Any) -> Chip:
    """The device's peak numbers, if they are known, with the memory that JAX may use."""
    name = chip_name(device.device_kind)
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if name is not None:
        known = CHIPS[name]
        return Chip(known.platform, limit or known.hbm_bytes, known.flops, known.bandwidth)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Chip(device.platform, limit or memory)


def _driver(device: Any) -> str:
    """Versions below JAX: XLA's platform, and of an NVIDIA GPU the driver's."""
    text = ", ".join(str(device.client.platform_version).split("\n"))[:200]
    tool = shutil.which("nvidia-smi")
    if device.platform == "gpu" and tool:
        asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
        with suppress(OSError, subprocess.SubprocessError):
            found = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True)
            text += f", driver {found.stdout.split()[0]}" if found.stdout.split() else ""
    return text


class Worker:
    """Measures the open sections of a record, each after the things that its group shares.

    Args:
      record: what is known; written after every section.
      device: that is measured.
      bench: the sections.
      until: `time.time()` at which the command ends.
      repeats: timed repetitions of each.
    """

    def __init__(
        self, record: BenchRecord, device: Any, bench: Bench, until: float, repeats: int
    ) -> None:
        self._record, self._device, self._until = record, device, until
        self._repeats = max(1, repeats)
        self._chip = _this_chip(device)
        self._mesh = Mesh(np.array([device]).reshape(1, 1, 1), AXES)
        self._clock = CompileClock()
        self._bench = bench
        self._group: tuple[str, Any] = ("", None)

    def run(self) -> None:
        """All open sections, then the predictions of `gotr1 compile`."""
        for section in self._bench.sections:
            if self._is_open(section.name):
                self._try(section)
        self._drop_group()
        for name in self._bench.predicted:
            self._predict(self._bench.policies[name])
        self._write_table()

    def _predict(self, measured: PolicyToMeasure) -> None:
        name, topology = f"{measured.name} predicted", self._record.machine.get("chip")
        if not topology or not self._is_open(name):
            return
        if self._left() < _PREDICTION_SECONDS:
            self._skip(name, _PREDICTION_SECONDS)
            return
        options = (*measured.compile_options, "--topology", f"{topology}:1")
        self._measure(name, lambda _: predict(options, self._left()))

    def _is_open(self, name: str) -> bool:
        """Whether a section is to be tried; not twice in one call."""
        tried = self._record.sections.get(name, {}).get("call") == self._until
        return not self._record.is_done(name) and not tried

    def _left(self) -> float:
        return self._until - _END - time.time()

    def _try(self, section: Section) -> None:
        if section.bytes > self._chip.hbm_bytes:
            needed, there = section.bytes / 1e9, self._chip.hbm_bytes / 1e9
            why = f"weights and caches alone are {needed:.1f} GB of {there:.1f}"
            self._record.put(section.name, {"status": TOO_LARGE, "why": why})
            return
        needs = section.estimate(self._repeats, self._compile_seconds(section.group))
        if needs > self._left():
            self._skip(section.name, needs)
            return
        self._measure(section.name, lambda shared: section.run(shared, self._repeats), section)

    def _skip(self, name: str, needs: float) -> None:
        why = f"it takes about {needs:.0f} s, {max(0.0, self._left()):.0f} s were left"
        self._record.put(name, {"status": SKIPPED, "why": why})

    def _compile_seconds(self, group: str) -> float | None:
        """Of one program of a group, from what was measured of it."""
        seconds = programs = 0.0
        for section in self._bench.sections:
            found = self._record.measured(section.name)
            if section.group == group and found and found.get("programs"):
                seconds += found["compile_seconds"]
                programs += max(found["programs"], found.get("programs_from_cache", 0))
        return seconds / programs if programs else None

    def _shared(self, section: Section) -> Any:
        if self._group[0] != section.group:
            self._drop_group()
            made = self._bench.make_group(section.group, self._mesh, self._chip, self._clock)
            self._group = (section.group, made)
        return self._group[1]

    def _drop_group(self) -> None:
        self._group = ("", None)
        gc.collect()
        jax.clear_caches()
        gc.collect()

    def _measure(
        self, name: str, run: Callable[[Any], dict[str, Any]], section: Section | None = None
    ) -> None:
        """Run a section and record what became of it; `run` gets what its group shares."""
        print(f"{name}: {self._left():.0f} s left", file=sys.stderr, flush=True)
        self._record.start(name, self._until)
        start = time.perf_counter()
        choose_attention("auto", jax.default_backend())  # and forget what other sections used
        try:
            # What is shared is made first: drawing the weights takes more memory than they do.
            shared = None if section is None else self._shared(section)
            with MemoryWatch(self._device) as memory:
                values = {"status": MEASURED, **run(shared)}
            values |= {"peak_bytes": memory.peak_bytes, "peak_is_exact": memory.is_exact}
            values |= {"section_seconds": time.perf_counter() - start}
            values |= {"attention": attention_used()}
        except Exception as error:
            values = _failure(error)
        if values["status"] != MEASURED:
            # Outside of the handler, whose traceback holds arrays.
            shared = None
            self._drop_group()
        self._record.put(name, values)
        self._write_table()

    def _write_table(self) -> None:
        atomic_write(self._record.folder / TABLE, to_markdown(self._record))


def _failure(error: Exception) -> dict[str, Any]:
    """What the record says of a section that failed; the traceback goes to standard error."""
    text = str(error)
    first = (text.splitlines() or [""])[0][:300]
    is_full = "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()
    if not is_full:
        traceback.print_exc()
    return {
        "status": OUT_OF_MEMORY if is_full else FAILED,
        "why": f"{type(error).__name__}: {first}",
    }
