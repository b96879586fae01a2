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
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gotr1_jax.ablate.config import AblationConfig
from gotr1_jax.config import load_config
from gotr1_jax.errors import InputError, RunError, Stopped
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.io.lock import folder_lock
from gotr1_jax.io.reading import read_json, read_json_object, read_text
from gotr1_jax.io.write_errors import write_failure
from gotr1_jax.rewards.factory import check_functions
from gotr1_jax.rewards.pairwise import PairwiseConfig
from gotr1_jax.rewards.terms import TermConfig
from gotr1_jax.trainer.bootstrap import gain_interval
from gotr1_jax.trainer.run_dir import RunDir

if TYPE_CHECKING:
    from gotr1_jax.grpo.evaluate import Evaluation

# Variants share the compiled programs.
_CACHE_VARIABLE, _CACHE_NAME = "JAX_COMPILATION_CACHE_DIR", "compiled"
_LOG_NAME = "train.log"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 ablate`."""
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="YAML file of the ablation"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (run_dir of the configuration)"
    )


@dataclass(frozen=True)
class PlannedRun:
    """One training run: a variant with a seed.

    Attributes:
      variant, title: the variant's name, and its name in the table.
      root: the run's directory.
      arguments: of `gotr1` on its command line.
      config: the resolved configuration.
    """

    variant: str
    title: str
    seed: int
    root: Path
    arguments: tuple[str, ...]
    config: GrpoConfig


def run(options: argparse.Namespace) -> None:
    """Train all runs that are not finished, each in its own process, and write the comparison.

    The table is written again after every run, without those that failed; the others continue.

    Raises:
        InputError: a configuration is invalid, or a run's directory holds a run of another.
        RunError: runs failed; all others are finished.
        Stopped: on a stop signal; the current run has saved a checkpoint.
    """
    config = load_config(AblationConfig, options.config)
    root = Path(config.run_dir) if options.out is None else options.out
    runs = plan_runs(config, root)
    for planned in runs:
        check_same(planned)
        if not is_finished(planned):
            _check_functions(planned)
    compare_finished(runs)  # what is damaged is better known before the others are trained
    with folder_lock(root, "--out"):
        _train_all(root, runs, config.at_once)


def _train_all(root: Path, runs: Sequence[PlannedRun], at_once: int) -> None:
    from gotr1_jax.trainer.stopping import StopSignals

    failed: list[str] = []
    processes = Processes()
    with StopSignals(), ThreadPoolExecutor(at_once) as pool:
        try:
            for planned, code, minutes in _outcomes(pool, root, runs, at_once, processes):
                name, log = _name(planned, runs), planned.root / _LOG_NAME
                if code == Stopped.exit_code:
                    raise Stopped(f"{name} was stopped; the same command resumes it")
                if code != 0 or not is_finished(planned):
                    failed.append(f"{name} (exit code {code}, see {log})")
                    print(f"{name}: failed", flush=True)
                    continue
                print(f"{name}: {minutes:.1f} min", flush=True)
                write_comparison(root, runs)
        except BaseException:
            processes.terminate()
            raise
    write_comparison(root, runs)
    print(read_text(root / "ablation.md"))
    if failed:
        raise RunError(f"{len(failed)} of {len(runs)} runs failed: {'; '.join(failed)}")


def _outcomes(
    pool: Executor, root: Path, runs: Sequence[PlannedRun], at_once: int, processes: Processes
) -> Iterator[tuple[PlannedRun, int, float]]:
    """Each run that was not finished, in the order of their ends, its exit code and minutes."""

    def timed(planned: PlannedRun) -> tuple[PlannedRun, int, float]:
        clock = time.monotonic()
        code = train(planned, root / _CACHE_NAME, processes)
        return planned, code, (time.monotonic() - clock) / 60

    training: set[Future[tuple[PlannedRun, int, float]]] = set()
    for planned in runs:
        name = _name(planned, runs)
        if is_finished(planned):
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
    return f"{planned.variant}, seed {planned.seed} ({number} of {len(runs)})"


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


def plan_runs(config: AblationConfig, root: Path) -> list[PlannedRun]:
    """Every seed of every variant; InputError if one is invalid."""
    runs = []
    # All variants before the next seed, so that an early table compares all of them.
    for seed, variant in product(config.seeds, config.variants):
        base = config.base if variant.base is None else variant.base
        folder = root / variant.name / f"seed_{seed}"
        own = (f"seed={seed}", f"run_dir={folder}")
        overrides = [f"--{text}" for text in (*config.overrides, *variant.overrides, *own)]
        try:
            resolved = GrpoConfig.from_file(Path(base), overrides)
        except InputError as error:
            raise InputError(f"variant {variant.name!r}: {error}") from error
        arguments = ("train", "grpo", "--config", base, *overrides)
        title = variant.title or variant.name
        runs.append(PlannedRun(variant.name, title, seed, folder, arguments, resolved))
    return runs


def check_same(planned: PlannedRun) -> None:
    """InputError when the run's directory holds a run of another configuration."""
    stored = RunDir(planned.root).config
    if not stored.is_file():
        return
    found = replace(load_config(GrpoConfig, stored), run_dir=planned.config.run_dir)
    wanted = planned.config
    # What is left to the checkpoint is as it was.
    if found != wanted.sampled_as(wanted.sampled.or_else(found.sampled)):
        raise InputError(
            f"{planned.root} holds a run of another configuration; give another --out, or remove it"
        )


def _check_functions(planned: PlannedRun) -> None:
    """InputError for a function of the user's that is not there: the variant might be the last."""
    config = planned.config
    try:
        check_functions(config.judge, config.reward.terms, config.evaluation.judges)
    except InputError as error:
        raise InputError(f"variant {planned.variant!r}: {error}") from error


def is_finished(planned: PlannedRun) -> bool:
    """Whether the run is complete."""
    return RunDir(planned.root).summary.is_file()


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


def write_comparison(root: Path, runs: Sequence[PlannedRun]) -> None:
    """ablation.md, ablation.json and ablation.svg of the runs that are finished, in `root`."""
    from gotr1_jax.ablate.report import write_ablation

    write_ablation(root, compare_finished(runs))


def compare_finished(runs: Sequence[PlannedRun]) -> list[Any]:
    """The `VariantResult`s of the runs that are finished; InputError if one cannot be read."""
    by_variant: dict[str, list[PlannedRun]] = {}
    for planned in runs:
        if is_finished(planned):
            by_variant.setdefault(planned.variant, []).append(planned)
    groups = list(by_variant.values())
    # Totals of different rewards do not compare.
    alike = {run.variant for run in runs if _has_reward_of(run, runs[0])}
    try:
        return [
            compare(group, groups[0], with_total=len(alike) > 1 and group[0].variant in alike)
            for group in groups
        ]
    except InputError as error:
        raise InputError(
            f"a finished run cannot be compared: {error}; remove its directory to train it again"
        ) from error


def _has_reward_of(run: PlannedRun, other: PlannedRun) -> bool:
    return (run.config.reward, run.config.judge) == (other.config.reward, other.config.judge)


def compare(
    group: Sequence[PlannedRun], first: Sequence[PlannedRun], with_total: bool = False
) -> Any:
    """The `VariantResult` of one variant's finished runs, one a seed, compared with the first's.

    All seeds are evaluated on the same captions; a caption's score is the mean over seeds. With
    `with_total` the total is the first of the terms. Win rates are left out: their mean is one half
    whatever was learned.
    """
    from gotr1_jax.ablate.report import TermResult, VariantResult

    config, of_first = group[0].config, first[0].config
    before = _scores(group, "eval_before", with_total)
    after = _scores(group, "eval_after", with_total)
    is_comparable = group is not first and _captions_of(config) == _captions_of(of_first)
    # Seeds that only one of both has would make a difference of seeds one of variants.
    both = {run.seed for run in group} & {run.seed for run in first} if is_comparable else set()
    ours, others = (
        _scores([run for run in runs if run.seed in both], "eval_after", with_total)
        for runs in (group, first)
    )
    # A term of the same name may be another function's or another judge's.
    shared = {t for t in others.keys() & ours if _scorer(config, t) == _scorer(of_first, t)}
    terms = {
        term: TermResult(
            before=float(np.nanmean(before[term])),
            after=float(np.nanmean(after[term])),
            gain=_change(before[term], after[term]),
            over_first=_change(others[term], ours[term]) if term in shared else None,
        )
        for term in after
        if term in before and not isinstance(_scorer(config, term), PairwiseConfig)
    }
    seconds = [_seconds(RunDir(planned.root).summary) for planned in group]
    return VariantResult(
        name=group[0].variant,
        title=group[0].title,
        seeds=tuple(planned.seed for planned in group),
        steps=config.steps,
        captions=config.evaluation.captions,
        samples=config.evaluation.samples,
        minutes=float(np.mean(seconds)) / 60,
        terms=terms,
    )


def _change(old: np.ndarray, new: np.ndarray) -> Any:
    """The `Change` of scores by caption."""
    from gotr1_jax.ablate.report import Change

    return Change(float(np.nanmean(new - old)), *gain_interval(old, new))


def _scorer(config: GrpoConfig, term: str) -> object:
    """What gives a term its values in evaluations; equal for all of the main judge."""
    if (watched := config.evaluation.judges.get(term)) is not None:
        return watched
    own = config.reward.terms.get(term, TermConfig())
    return getattr(own, own.source)


def _captions_of(config: GrpoConfig) -> tuple[object, ...]:
    """What two variants must share for their captions' scores to be compared in pairs."""
    evaluation = config.evaluation
    return evaluation.source, evaluation.column, evaluation.captions, evaluation.samples


def _scores(
    group: Sequence[PlannedRun], name: str, with_total: bool = False
) -> dict[str, np.ndarray]:
    """Scores by caption of each term, the total first and watched ones last; the mean over the
    runs of a variant. A watched term that one of them could not score at all is left out."""
    from gotr1_jax.grpo.evaluate import Evaluation

    if not group:
        return {}
    files = [run.root / f"{name}.json" for run in group]
    found = [Evaluation.from_json(read_json(file, allow_nan=True), str(file)) for file in files]
    for file, scores in zip(files, found):
        if _lengths(scores) != _lengths(found[0]):
            raise InputError(f"{file} has other terms or captions than {files[0]}")
    terms = [{"total": s.total, **s.terms} if with_total else s.terms for s in found]
    means = {term: np.mean([one[term] for one in terms], axis=0) for term in terms[0]}
    names = [n for n in found[0].watched if all(n in s.watched for s in found)]
    watched = {n: np.mean([s.watched[n] for s in found], axis=0) for n in names}
    return means | {n: mean_P for n, mean_P in watched.items() if np.isfinite(mean_P).any()}


def _lengths(scores: Evaluation) -> dict[str, int]:
    return {name: len(values) for name, values in scores.terms.items()}


def _seconds(summary: Path) -> float:
    seconds = read_json_object(summary).get("seconds")
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        raise InputError(f"{summary} has no seconds")
    return float(seconds)
