"""The directory of a run and its creation.

config.yaml  metrics.jsonl  checkpoints/  samples/step_000010/  tensorboard/  report.html
summary.json  inputs.json (what the files of the configuration held)
terms.json (names and meanings of a reward's terms)
trackers.json (what trackers were sent)  config_differing.yaml (what is not the default)
provenance.json (date, command, commit, versions and machine of each start)
reconstructions.png (of a run of VQ)
resumed.json (the path that --resume named)  .lock (while a process runs)
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gotr1_jax.errors import InputError
from gotr1_jax.io.files import atomic_write, write_json_atomic
from gotr1_jax.io.reading import read_bytes
from gotr1_jax.io.write_errors import raise_write_errors

CONFIG_NAME = "config.yaml"
METRICS_NAME = "metrics.jsonl"
CHECKPOINTS_NAME = "checkpoints"
SAMPLES_NAME = "samples"
TENSORBOARD_NAME = "tensorboard"
REPORT_NAME = "report.html"
SUMMARY_NAME = "summary.json"
INPUTS_NAME = "inputs.json"
TERMS_NAME = "terms.json"
PROVENANCE_NAME = "provenance.json"
FOLLOWED_NAME = "resumed.json"
TRACKERS_NAME = "trackers.json"
DIFFERING_NAME = "config_differing.yaml"
RECONSTRUCTIONS_NAME = "reconstructions.png"
# A temporary file or folder that a killed process did not rename.
_LEFTOVER = re.compile(r"\..+\.(tmp|old)\d+")


@dataclass(frozen=True)
class RunDir:
    """The paths of a run under `root`."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / CONFIG_NAME

    @property
    def metrics(self) -> Path:
        return self.root / METRICS_NAME

    @property
    def checkpoints(self) -> Path:
        return self.root / CHECKPOINTS_NAME

    @property
    def samples(self) -> Path:
        return self.root / SAMPLES_NAME

    @property
    def tensorboard(self) -> Path:
        return self.root / TENSORBOARD_NAME

    @property
    def report(self) -> Path:
        return self.root / REPORT_NAME

    @property
    def inputs(self) -> Path:
        return self.root / INPUTS_NAME

    @property
    def terms(self) -> Path:
        return self.root / TERMS_NAME

    @property
    def provenance(self) -> Path:
        return self.root / PROVENANCE_NAME

    @property
    def followed(self) -> Path:
        return self.root / FOLLOWED_NAME

    @property
    def differing(self) -> Path:
        return self.root / DIFFERING_NAME

    @property
    def reconstructions(self) -> Path:
        return self.root / RECONSTRUCTIONS_NAME

    @property
    def trackers(self) -> Path:
        return self.root / TRACKERS_NAME

    @property
    def summary(self) -> Path:
        return self.root / SUMMARY_NAME


def step_number(name: str) -> int | None:
    """The step of a folder `step_000010`; None for any other name, such as of a copy."""
    found = re.fullmatch(r"step_([0-9]{6,12})", name)
    is_usual = found is not None and name == f"step_{int(found[1]):06d}"
    return int(found[1]) if found is not None and is_usual else None


def remove_folder(path: Path) -> None:
    """Removes a folder with all in it as far as possible, or the link or file in its place."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def create_run_dir(root: Path | str, config_text: str, *, may_exist: bool) -> RunDir:
    """Creates the directories of a run, and its config.yaml if there is none.

    An existing config.yaml stays: the job calls `store_config` once a checkpoint is restored under
    the new configuration. Temporary files of killed processes are removed.

    Args:
        root: the run's directory; missing parents are created.
        config_text: the resolved configuration, YAML.
        may_exist: False: an InputError if the directory already holds a run.
    """
    run = RunDir(Path(root))
    if run.root.exists() and not run.root.is_dir():
        raise InputError(f"run directory {run.root} is a file; choose another path")
    if run.config.exists() and not may_exist:
        raise InputError(
            f"{run.root} already holds a run; choose another directory, or resume it with"
            " --resume auto"
        )
    with raise_write_errors(run.root):
        for folder in (run.checkpoints, run.samples):
            folder.mkdir(parents=True, exist_ok=True)
        for path in (*run.root.iterdir(), *run.samples.iterdir()):
            if _LEFTOVER.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not run.config.exists():
        store_config(run, config_text)
    return run


def write_summary(
    run: RunDir, steps: int, seconds: float, values: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Writes summary.json, the sign of a finished run: its steps, their seconds, and `values`.

    Returns all of it.
    """
    summary = {**(values or {}), "steps": steps, "seconds": seconds}
    write_json_atomic(run.summary, summary)
    return summary


def store_config(run: RunDir, config_text: str, kept_until: int | None = None) -> None:
    """Writes the resolved configuration (YAML) to config.yaml.

    kept_until: a step; the former configuration, under which the run was trained until then, is
    kept as config_until_step_000100.yaml.
    """
    if kept_until is not None and run.config.is_file():
        kept = run.config.with_name(f"{run.config.stem}_until_step_{kept_until:06d}.yaml")
        atomic_write(kept, read_bytes(run.config))
    atomic_write(run.config, config_text)
