"""Variants of a training run, trained in turn and compared: `gotr1 ablate --config FILE`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from gotr1_jax.errors import InputError, RunError, Stopped

# Programs that variants have in common are compiled once.
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
class Run:
    """One training run: a variant with a seed.

    Attributes:
      variant, title: the variant's name, and what the table calls it.
      root: the run's directory.
      words: what follows `gotr1` on its command line.
      config: what they resolve to, a `GrpoConfig`.
    """

    variant: str
    title: str
    seed: int
    root: Path
    words: tuple[str, ...]
    config: Any


def run(options: argparse.Namespace) -> None:
    """Train what is not trained yet, in processes of their own, and write the comparison.

    The table is written anew after every run. A run that fails is left out of it, and the others
    go on.

    Raises:
        InputError: a configuration cannot be used, or a run's directory holds another one's.
        RunError: runs failed; all others are done.
        Stopped: it was told to stop, and the run at work has saved.
    """
    from gotr1_jax.ablate.config import AblationConfig
    from gotr1_jax.config import load_config
    from gotr1_jax.trainer.stopping import StopSignals

    config = load_config(AblationConfig, options.config)
    root = Path(config.run_dir) if options.out is None else options.out
    runs = plan_runs(config, root)
    for planned in runs:
        check_same(planned)
    failed: list[str] = []
    with StopSignals():
        for number, planned in enumerate(runs, start=1):
            name = f"{planned.variant}, seed {planned.seed} ({number} of {len(runs)})"
            if is_finished(planned):
                print(f"{name}: done before", flush=True)
                continue
            print(f"{name}: training, see {planned.root / _LOG_NAME}", flush=True)
            clock = time.monotonic()
            code = train(planned, root / _CACHE_NAME)
            if code == Stopped.exit_code:
                raise Stopped(f"{name} was told to stop; the same command goes on from there")
            if code != 0 or not is_finished(planned):
                failed.append(f"{name} (exit code {code}, see {planned.root / _LOG_NAME})")
                print(f"{name}: failed", flush=True)
                continue
            print(f"{name}: {(time.monotonic() - clock) / 60:.1f} min", flush=True)
            write_comparison(root, runs)
    write_comparison(root, runs)
    print((root / "ablation.md").read_text(encoding="utf-8"))
    if failed:
        raise RunError(f"{len(failed)} of {len(runs)} runs failed: {'; '.join(failed)}")


def plan_runs(config: Any, root: Path) -> list[Run]:
    """Every seed of every variant of an `AblationConfig`; InputError if one cannot be used."""
    from gotr1_jax.config import load_config
    from gotr1_jax.grpo.config import GrpoConfig

    runs = []
    # Every variant once before the next seed: an early table compares all of them.
    for seed, variant in product(config.seeds, config.variants):
        base = config.base if variant.base is None else variant.base
        folder = root / variant.name / f"seed_{seed}"
        own = (f"seed={seed}", f"run_dir={json.dumps(str(folder))}")
        overrides = [f"--{text}" for text in (*config.overrides, *variant.overrides, *own)]
        try:
            resolved = load_config(GrpoConfig, base, overrides)
        except InputError as error:
            raise InputError(f"variant {variant.name!r}: {error}") from error
        words = ("train", "grpo", "--config", base, *overrides)
        title = variant.title or variant.name
        runs.append(Run(variant.name, title, seed, folder, words, resolved))
    return runs


def check_same(planned: Run) -> None:
    """InputError when the run's directory holds a run of another configuration."""
    from gotr1_jax.config import load_config
    from gotr1_jax.grpo.config import GrpoConfig
    from gotr1_jax.trainer.run_dir import RunDir

    stored = RunDir(planned.root).config
    if not stored.is_file():
        return
    found = replace(load_config(GrpoConfig, stored), run_dir=planned.config.run_dir)
    if found != planned.config:
        raise InputError(
            f"{planned.root} holds a run of another configuration; give another --out, or remove it"
        )


def is_finished(planned: Run) -> bool:
    """Whether the run came to its end."""
    from gotr1_jax.trainer.run_dir import RunDir

    return RunDir(planned.root).summary.is_file()


def train(planned: Run, cache: Path) -> int:
    """Train in a process of its own, its output in train.log; returns the exit code.

    A process of its own, since what one run leaves behind (memory, signals, a crash) must not
    reach the next. When this one is told to stop, the other is too, and has saved on return.
    """
    from gotr1_jax.io.files import write_failure

    try:
        planned.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failure(planned.root, error) from error
    environment = {_CACHE_VARIABLE: str(cache.absolute()), **os.environ}
    command = [sys.executable, "-m", "gotr1_jax.cli", *planned.words]
    with open(planned.root / _LOG_NAME, "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise


def write_comparison(root: Path, runs: Sequence[Run]) -> None:
    """ablation.md, ablation.json and ablation.svg of the runs that are finished, in `root`."""
    from gotr1_jax.report.ablation import write_ablation

    by_variant: dict[str, list[Run]] = {}
    for planned in runs:
        if is_finished(planned):
            by_variant.setdefault(planned.variant, []).append(planned)
    groups = list(by_variant.values())
    write_ablation(root, [compare(group, groups[0]) for group in groups])


def compare(group: Sequence[Run], first: Sequence[Run]) -> Any:
    """The `VariantResult` of one variant's finished runs, one a seed, beside the first variant's.

    Seeds see the same captions: a caption's score is the mean of theirs.
    """
    from gotr1_jax.io.json import read_json
    from gotr1_jax.report.ablation import Change, TermResult, VariantResult
    from gotr1_jax.trainer.bootstrap import gain_interval
    from gotr1_jax.trainer.run_dir import RunDir

    evaluation = group[0].config.evaluation

    def change(old: np.ndarray, new: np.ndarray) -> Change:
        return Change(float(np.nanmean(new - old)), *gain_interval(old, new))

    before, after = _scores(group, "eval_before"), _scores(group, "eval_after")
    beside = group is not first and evaluation == first[0].config.evaluation
    others = _scores(first, "eval_after") if beside else {}
    terms = {
        term: TermResult(
            before=float(np.nanmean(before[term])),
            after=float(np.nanmean(after[term])),
            gain=change(before[term], after[term]),
            over_first=change(others[term], after[term]) if term in others else None,
        )
        for term in after
    }
    seconds = [read_json(RunDir(planned.root).summary)["seconds"] for planned in group]
    return VariantResult(
        name=group[0].variant,
        title=group[0].title,
        seeds=tuple(planned.seed for planned in group),
        steps=group[0].config.steps,
        captions=evaluation.captions,
        samples=evaluation.samples,
        minutes=float(np.mean(seconds)) / 60,
        terms=terms,
    )


def _scores(group: Sequence[Run], name: str) -> dict[str, np.ndarray]:
    """Scores by caption of each term, the mean over the runs of a variant."""
    from gotr1_jax.grpo.evaluate import Evaluation
    from gotr1_jax.io.json import read_json

    found = [Evaluation.from_json(read_json(run.root / f"{name}.json")).terms for run in group]
    return {term: np.mean([terms[term] for terms in found], axis=0) for term in found[0]}
