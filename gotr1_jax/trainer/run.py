"""A training run without its algorithm: processes, directory, checkpoints, metrics, stopping."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from gotr1_jax.config import to_yaml
from gotr1_jax.parallel.config import DistributedConfig
from gotr1_jax.parallel.mesh import make_mesh, warm_up_collectives
from gotr1_jax.parallel.placement import check_rows
from gotr1_jax.parallel.processes import (
    check_same_on_all_processes,
    is_main_process,
    raise_on_all_processes,
)
from gotr1_jax.parallel.progress import Progress
from gotr1_jax.trainer.checkpoint import Checkpoints, resolve_resume, restore_path
from gotr1_jax.trainer.config import JobConfig
from gotr1_jax.trainer.loop import Loop
from gotr1_jax.trainer.metrics import MetricsWriter
from gotr1_jax.trainer.run_dir import RunDir, create_run_dir, store_config
from gotr1_jax.trainer.samples import drop_samples_after
from gotr1_jax.trainer.state import stop_if_skipped
from gotr1_jax.trainer.stopping import StopSignals


class Run:
    """One training run. Every process makes the same calls in the same order.

        with Run("sft", config) as run:
            ...                               # load onto run.mesh; no run directory exists yet
            run.open()                        # creates the run directory
            state = run.restore(state, data)  # from the newest checkpoint, if the run resumes
            for step in run.steps():
                state, ... = update(state, ...)
                run.log({"loss": ...}, state.skipped_in_a_row)
                run.end_step(state)           # saves if it is due; stops after a signal

    Attributes:
      mesh: all devices of all processes.
      dir: paths of the run directory, which `open` creates.
      first_step: the step that the run resumed from; 0 for a new run.
      step: the current step, from 1.
      restored_meta: the meta of the checkpoint that `restore` read; empty for a new run.
      seconds: time spent in steps since the run began, restarts included.
    """

    def __init__(
        self,
        name: str,
        config: JobConfig,
        *,
        row_counts: Mapping[str, int] | None = None,
        max_bad_updates: int = 10,
    ) -> None:
        """Touches no device yet.

        Args:
          name: of the job, for the progress line.
          config: of the job.
          row_counts: batch sizes by the name of their setting; each must divide over the mesh.
          max_bad_updates: the run ends after this many non-finite updates in a row.
        """
        self._name, self._config = name, config
        self._row_counts = row_counts or {}
        self._max_bad_updates = max_bad_updates
        self._config_text = to_yaml(config)
        self.dir = RunDir(Path(config.run_dir))
        self.first_step = self.step = 0
        self.seconds = 0.0
        self.restored_meta: Mapping[str, Any] = {}
        self._shown: dict[str, float] = {}
        self._started: float | None = None
        self._data: Any = None
        self._stack = ExitStack()

    def __enter__(self) -> Run:
        """Installs signal handlers, makes the mesh, checks that all processes agree.

        Raises InputError if sizes do not fit the devices or there is nothing to resume from.
        """
        config = self._config
        with ExitStack() as stack:
            self._signals = stack.enter_context(StopSignals(config.checkpoint.grace_seconds))
            self.mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
            for setting, count in self._row_counts.items():
                check_rows(count, self.mesh, setting)
            warm_up_collectives(self.mesh)
            same = replace(config, distributed=DistributedConfig())  # differs between processes
            check_same_on_all_processes(to_yaml(same), "configuration")
            with raise_on_all_processes():
                self._resume = resolve_resume(config.resume, config.run_dir)
            check_same_on_all_processes(
                str(self._resume),
                "checkpoint to resume from (do all share the run directory's storage?)",
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._stack.__exit__(*error)

    def open(self) -> None:
        """Creates the run directory, on storage that all processes share; prints the settings."""
        with raise_on_all_processes():
            if is_main_process():
                # A run without a checkpoint yet starts again in the same directory.
                may_exist = self._config.resume != "never"
                create_run_dir(self.dir.root, self._config_text, may_exist=may_exist)
                print(self._config_text)

    def restore(self, state: Any, data: Any = None, frozen: Any = None) -> Any:
        """`state`, or the saved state if the run resumes.

        Opens checkpoints and metrics for writing; those of later steps are removed.

        Args:
          state: pytree of arrays, with its shardings.
          data: iterator of the training data (`get_state`, `set_state`), saved with the state.
          frozen: see `Checkpoints`.
        """
        self._data = data
        saving = self._config.checkpoint
        self._checkpoints = self._stack.enter_context(
            Checkpoints(self.dir.checkpoints, saving.keep, saving.keep_best, frozen)
        )
        self._loop = Loop(self._checkpoints, saving, self._config.steps, self._signals)
        if self._resume is not None:
            restored = restore_path(self._resume, state, frozen)
            state, self.first_step = restored.tree, restored.step
            self.restored_meta = restored.meta
            self._loop.resume(restored.meta)
            if self._data is not None:
                self._data.set_state(restored.meta["data"])
            self.seconds = restored.meta.get("seconds", 0.0)
            self._checkpoints.drop_after(self.first_step)
        with raise_on_all_processes():
            if is_main_process():
                drop_samples_after(self.dir.samples, self.first_step)
                store_config(self.dir, self._config_text)
            self._metrics = MetricsWriter(self.dir, self.first_step)
        if is_main_process() and self._resume is not None:
            print(f"resumed at step {self.first_step} from {self._resume}")
        return state

    def steps(self) -> Iterator[int]:
        """The remaining steps. Stop signals take effect at the end of a step."""
        steps = self._iterate()
        self._stack.callback(steps.close)  # an error in the loop's body does not close it
        return steps

    def _iterate(self) -> Generator[int, None, None]:
        label, last = self._name, self._config.steps
        with (
            self._signals.finishing_steps(),
            self._metrics,
            Progress(label, last, self.first_step) as self._progress,
        ):
            for step in self._loop.steps(self.first_step):
                self.step, self._started = step, time.perf_counter()
                yield step

    def elapsed(self) -> float:
        """Seconds since the current step began; 0 after `log`."""
        return 0.0 if self._started is None else time.perf_counter() - self._started

    def _stop_timer(self) -> None:
        """Stop the step's timer: evaluation, samples and saving are not part of `seconds`."""
        self.seconds += self.elapsed()
        self._started = None

    def log(self, values: Mapping[str, Any], skipped_in_a_row: Any, **shown: float) -> None:
        """Writes the step's line of metrics.jsonl and stops the step's timer.

        Args:
          values: scalars by name; goodput and memory are added.
          skipped_in_a_row: non-finite updates since the last good one.
          shown: values of the progress line until the next call.

        Raises RunError after `max_bad_updates` skipped updates in a row, or when the disk is full.
        """
        self._stop_timer()
        with raise_on_all_processes():
            self._metrics.write(self.step, {**values, **self._loop.metrics()})
            self._shown = shown
            stop_if_skipped(skipped_in_a_row, self._max_bad_updates, self.step)

    def note(self, line: str) -> None:
        """Prints a line without breaking the progress bar, in the main process."""
        self._progress.note(line)

    def end_step(
        self,
        state: Any,
        *,
        score: float | None = None,
        failure: str | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Ends the step: see `Loop.end_step`; `meta` is what the job adds to a checkpoint's."""
        self._stop_timer()
        self._progress.update(self.step, **self._shown)
        record = {**(meta or {}), "seed": self._config.seed, "seconds": self.seconds}
        if self._data is not None:
            record["data"] = self._data.get_state()
        self._loop.end_step(self.step, state, record, score=score, failure=failure)
