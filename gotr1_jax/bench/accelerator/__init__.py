"""`gotr1 bench accelerator`: what a step of GRPO costs on this device, part by part, in one table.

Nothing is read or downloaded: weights of the released sizes are drawn on the device. The sections
run one after the other in the order of their worth; each is written to `results.json` and
`results.md` as soon as it is known, and a second call with the same folder goes on. They run in a
process of their own, so that one that is lost ends neither the others nor the command.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

from gotr1_jax.aot.chips import CHIPS
from gotr1_jax.bench.accelerator.record import RESULTS, TABLE, BenchRecord
from gotr1_jax.config import read_value
from gotr1_jax.errors import InputError, RunError
from gotr1_jax.io.files import atomic_write
from gotr1_jax.io.lock import folder_lock
from gotr1_jax.io.reading import read_text
from gotr1_jax.io.storage import is_copy
from gotr1_jax.limits import Range

FOLDER = Path("bench_accelerator")
MINUTES = 9.0
Minutes = Annotated[float, Range("(0, 1440]")]
_GRACE = 1.0  # seconds to write what is known


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that only `gotr1 bench accelerator` has."""
    parser.add_argument(
        "--minutes", type=float, default=MINUTES,
        help="accelerator: ends within so many minutes (default 9)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=FOLDER, metavar="DIR",
        help=f"accelerator: folder of the results; an earlier call's are kept (default {FOLDER})",
    )  # fmt: skip
    parser.add_argument(
        "--sizes", choices=("released", "tiny"), default="released",
        help="accelerator: 1B, 7B and their judge, or tiny ones that a CPU can run",
    )  # fmt: skip
    parser.add_argument(
        "--only", default="", metavar="TEXT",
        help="accelerator: only sections whose name holds this, such as '7B update'",
    )  # fmt: skip
    parser.add_argument(
        "--dry", action="store_true",
        help="accelerator: only list the sections, their bytes and about how long they take",
    )  # fmt: skip
    parser.add_argument(
        "--chip", choices=tuple(CHIPS), help="accelerator: with --dry, list them for this chip"
    )  # fmt: skip
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)  # of the process it starts


def run(options: argparse.Namespace) -> None:
    """Measure what is not measured yet, print the table; InputError for bad options."""
    read_value(Minutes, options.minutes, "--minutes")
    if options.chip and not options.dry:
        raise InputError("--chip goes with --dry; what is measured is the device that is here")
    if options.until is not None:
        from gotr1_jax.bench.accelerator.worker import work

        work(options)
        return
    if options.dry:
        from gotr1_jax.bench.accelerator.worker import list_sections

        print(list_sections(options))
        return
    # Else the worker would keep the device.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with folder_lock(options.out, "--out"):
            _supervise(options)
    finally:
        signal.signal(signal.SIGTERM, before)
    print(read_text(options.out / (RESULTS if options.json else TABLE)), end="")


def _supervise(options: argparse.Namespace) -> None:
    """Run workers until nothing is left to do or the time is over."""
    from gotr1_jax.bench.accelerator.table import to_markdown

    until = time.time() + 60 * options.minutes
    BenchRecord.read(options.out).end_running("an earlier call was ended while it ran")
    while True:
        process = subprocess.Popen(_command(options, until), env=_environment(options.out))
        try:
            code: int | None = process.wait(max(0.0, until - _GRACE - time.time()))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            process.kill()
            process.wait()
        record = BenchRecord.read(options.out)
        why = "the time was over" if code is None else f"its process ended with code {code}"
        lost = record.end_running(why)
        if record.machine:
            atomic_write(options.out / TABLE, to_markdown(record))
        if code in (0, None) and record.machine:
            return
        if code is None:
            raise RunError(f"no device was ready after {options.minutes:g} minutes")
        if not lost:  # it said why
            sys.exit(code)


def _command(options: argparse.Namespace, until: float) -> list[str]:
    command = [sys.executable, "-m", "gotr1_jax.cli", "bench", "accelerator"]
    command += ["--out", str(options.out), "--sizes", options.sizes, "--only", options.only]
    return [*command, "--repeats", str(options.repeats), "--until", str(until)]


def _environment(folder: Path) -> dict[str, str]:
    """Almost all of the GPU's memory, of which JAX takes three quarters by default, and compiled
    programs that a later call finds again."""
    defaults = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
    if not is_copy(folder):  # hundreds of megabytes, which a bucket need not have
        defaults["JAX_COMPILATION_CACHE_DIR"] = str(folder.resolve() / "programs")
    return defaults | os.environ
