"""Variants of a training run, trained and compared: `gotr1 ablate`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ThreadPoolExecutor,
    as_completed,
    wait,
)
from functools import partial
from pathlib import Path
from typing import Any

from gotr1_jax.ablate.compare import compare_finished
from gotr1_jax.ablate.config import AblationConfig
from gotr1_jax.ablate.orderings import check_terms
from gotr1_jax.ablate.runs import (
    PlannedRun,
    add_minutes,
    check_inputs,
    check_same,
    choose_runs,
    count_start,
    list_runs,
    plan_runs,
)
from gotr1_jax.config import load_config
from gotr1_jax.errors import InputError, RunError, Stopped
from gotr1_jax.io.lock import folder_lock
from gotr1_jax.io.reading import read_text
from gotr1_jax.io.storage import fetch, local_path
from gotr1_jax.io.write_errors import write_failure

# Variants share the compiled programs.
_CACHE_VARIABLE, _CACHE_NAME = "JAX_COMPILATION_CACHE_DIR", "compiled"
_LOG_NAME = "train.log"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 ablate`."""
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="YAML file of the ablation"
    )
    parser.add_argument(
        "--plan", action="store_true",
        help="list the runs, their state and the minutes they will take, and train nothing",
    )  # fmt: skip
    parser.add_argument(
        "--only", type=lambda text: [name.strip() for name in text.split(",")], metavar="NAMES",
        help="train these alone now: names of conditions and variants, or condition/variant, with "
        "commas between; the tables show all that is finished",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (run_dir of the configuration)"
    )


def run(options: argparse.Namespace) -> None:
    """Train all runs that are not finished, each in its own process, and write the comparison.

    The table is written again after every run, without those that failed; the others continue.

    Raises:
        InputError: a configuration is invalid, or a run's directory holds a run of another.
        RunError: runs failed; all others are finished.
        Stopped: on a stop signal; the current run has saved a checkpoint.
    """
    config = load_config(AblationConfig, options.config)
    root = local_path(config.run_dir) if options.out is None else options.out
    if root.exists() and not root.is_dir():
        raise InputError(f"--out {root} is a file; choose a folder")
    fetch(root)  # of a bucket, with the checkpoints of its runs
    runs = plan_runs(config, root)
    check_terms(config, runs)
    for planned in runs:
        check_same(planned)
    wanted = choose_runs(runs, options.only)
    if options.plan:
        print(list_runs(wanted, config.at_once, runs))
    for planned in wanted:
        if not planned.is_finished:
            check_inputs(planned)
    compare_finished(config, runs)  # what is damaged is better known before others are trained
    if options.plan:
        return
    with folder_lock(root, "--out"):
        _train_all(root, config, runs, wanted)


def _train_all(
    root: Path, config: AblationConfig, runs: Sequence[PlannedRun], wanted: Sequence[PlannedRun]
) -> None:
    """Train those that are wanted, and compare all that are finished."""
    from gotr1_jax.trainer.stopping import StopSignals

    failed, at_once = list[str](), config.at_once
    processes = Processes()
    with StopSignals(), ThreadPoolExecutor(at_once) as pool:
        try:
            for planned, code, minutes in _outcomes(pool, root, wanted, at_once, processes):
                name, log = _name(planned, wanted), planned.root / _LOG_NAME
                if code == Stopped.exit_code:
                    raise Stopped(f"{name} was stopped; the same command resumes it")
                if code != 0 or not planned.is_finished:
                    failed.append(f"{name} (exit code {code}, see {log})")
                    print(f"{name}: failed", flush=True)
                    continue
                print(f"{name}: {minutes:.1f} min", flush=True)
                write_comparison(root, config, runs)
        except BaseException:
            processes.terminate()
            raise
    write_comparison(root, config, runs)
    print(read_text(root / "ablation.md"))
    print(root / "ablation.md")
    if failed:
        raise RunError(f"{len(failed)} of {len(wanted)} runs failed: {'; '.join(failed)}")


def _outcomes(
    pool: Executor, root: Path, runs: Sequence[PlannedRun], at_once: int, processes: Processes
) -> Iterator[tuple[PlannedRun, int, float]]:
    """Each run that was not finished, in the order of their ends, its exit code and minutes."""

    def timed(planned: PlannedRun) -> tuple[PlannedRun, int, float]:
        count_start(planned)
        clock = time.monotonic()
        code = train(planned, root / _CACHE_NAME, processes)
        minutes = (time.monotonic() - clock) / 60
        add_minutes(planned, minutes)
        return planned, code, minutes

    training: set[Future[tuple[PlannedRun, int, float]]] = set()
    for planned in runs:
        name = _name(planned, runs)
        if planned.is_finished:
            print(f"{name}: done before", flush=True)
            continue
        while len(training) >= at_once:
            done, training = wait(training, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
        print(f"{name}: training, see {planned.root / _LOG_NAME}", flush=True)
        training.add(pool.submit(timed, planned))
    yield from (future.result() for future in as_completed(training))


def _name(planned: PlannedRun, runs: Sequence[PlannedRun]) -> str:
    number = runs.index(planned) + 1
    return f"{planned.name} ({number} of {len(runs)})"


class Processes:
    """The running processes of `train`, to be stopped together."""

    def __init__(self) -> None:
        self._lock, self._ended = threading.Lock(), False
        self._running: set[subprocess.Popen[Any]] = set()

    def run(self, start: Callable[[], subprocess.Popen[Any]]) -> int:
        """The exit code of the process that `start` starts; of one that comes too late that of a
        stop."""
        with self._lock:
            if self._ended:
                return Stopped.exit_code
            process = start()
            self._running.add(process)
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            with self._lock:
                self._running.discard(process)

    def terminate(self) -> None:
        """Ask all to stop, and start no other."""
        with self._lock:
            self._ended = True
            for process in tuple(self._running):
                process.terminate()


def train(planned: PlannedRun, cache: Path, processes: Processes | None = None) -> int:
    """Train in a separate process with its output in train.log; returns the exit code.

    A separate process, because memory, signals or a crash of one run must not affect the next. A
    stop signal is passed on, and the run has saved its checkpoint on return.
    """
    try:
        planned.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failure(planned.root, error) from error
    environment = {_CACHE_VARIABLE: str(cache.absolute()), **os.environ}
    command = [sys.executable, "-m", "gotr1_jax.cli", *planned.arguments]
    with open(planned.root / _LOG_NAME, "ab") as log:
        start = partial(
            subprocess.Popen, command, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        return (processes or Processes()).run(start)


def write_comparison(root: Path, config: AblationConfig, runs: Sequence[PlannedRun]) -> None:
    """ablation.md, ablation.json and ablation.svg of the runs that are finished, in `root`."""
    from gotr1_jax.ablate.report import write_ablation

    write_ablation(root, compare_finished(config, runs))
