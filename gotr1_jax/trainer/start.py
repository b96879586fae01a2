"""How a run begins in all of its processes: alike, and with process 0 alone writing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from gotr1_jax.config import to_yaml
from gotr1_jax.parallel.config import DistributedConfig
from gotr1_jax.parallel.processes import (
    check_same_on_all_processes,
    is_main_process,
    raise_on_all_processes,
)
from gotr1_jax.trainer.checkpoint import resolve_resume
from gotr1_jax.trainer.metrics import MetricsWriter
from gotr1_jax.trainer.run_dir import RunDir, create_run_dir, store_config
from gotr1_jax.trainer.samples import drop_samples_after


def check_same_run(config: Any) -> None:
    """Raise RunError unless all processes have this configuration, their own place in it apart."""
    check_same_on_all_processes(
        to_yaml(replace(config, distributed=DistributedConfig())), "configuration"
    )


def find_resume(mode: str, run_dir: Path | str) -> Path | None:
    """As `resolve_resume`, and RunError unless all processes find the same."""
    with raise_on_all_processes():
        found = resolve_resume(mode, run_dir)
    check_same_on_all_processes(
        str(found), "checkpoint to go on from (do all share the run directory's storage?)"
    )
    return found


def open_run_dir(root: Path | str, config_text: str, *, may_exist: bool) -> RunDir:
    """The directory of a run, made by process 0, which prints the configuration.

    See `create_run_dir`. It has to lie on storage that all processes share.
    """
    with raise_on_all_processes():
        if is_main_process():
            create_run_dir(root, config_text, may_exist=may_exist)
            print(config_text)
    return RunDir(Path(root))


def start_writing(run: RunDir, config_text: str, first: int) -> MetricsWriter:
    """Writes down what a run goes on with after step `first` (0: begins) and drops later samples.

    Returns the writer of its metrics, which writes in process 0 only.
    """
    with raise_on_all_processes():
        if is_main_process():
            drop_samples_after(run.samples, first)
            store_config(run, config_text)
        return MetricsWriter(run, first)
