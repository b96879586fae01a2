"""A training run without its algorithm: processes, directory, checkpoints, metrics, stopping."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from gotr1_jax.config import to_yaml
from gotr1_jax.errors import InputError, Stopped
from gotr1_jax.io.files import atomic_write, write_json_atomic
from gotr1_jax.io.lock import folder_lock
from gotr1_jax.io.storage import local_path, name_urls, upload, writing
from gotr1_jax.io.write_errors import raise_write_errors
from gotr1_jax.models.attention import choose_attention
from gotr1_jax.parallel.config import DistributedConfig
from gotr1_jax.parallel.mesh import job_mesh, warm_up_collectives
from gotr1_jax.parallel.phases import phase
from gotr1_jax.parallel.placement import check_rows
from gotr1_jax.parallel.processes import (
    broadcast_from_main,
    check_same_on_all_processes,
    is_main_process,
    raise_on_all_processes,
)
from gotr1_jax.parallel.progress import Progress
from gotr1_jax.trainer.checkpoint import Checkpoints, Restored
from gotr1_jax.trainer.config import JobConfig
from gotr1_jax.trainer.differences import differing_yaml
from gotr1_jax.trainer.loop import Loop
from gotr1_jax.trainer.metrics import MetricsWriter
from gotr1_jax.trainer.provenance import add_start, describe_start
from gotr1_jax.trainer.resume import (
    SettingChange,
    check_inputs,
    check_settings,
    mark_followed,
    resolve_resume,
    restore_path,
    run_of,
)
from gotr1_jax.trainer.run_dir import RunDir, create_run_dir, store_config, write_summary
from gotr1_jax.trainer.samples import SampleRecord, drop_samples_after, sample_images
from gotr1_jax.trainer.state import stop_if_skipped
from gotr1_jax.trainer.stopping import StopSignals
from gotr1_jax.trainer.tracking.config import TENSORBOARD, tracker_names
from gotr1_jax.trainer.tracking.send import Tracking, check_trackers, make_tracking
from gotr1_jax.trainer.tracking.trackers import Outcome, TrackedImage, check_packages


class Run:
    """One training run. Every process makes the same calls in the same order.

        with Run("sft", config) as run:
            ...                               # load onto run.mesh; no run directory exists yet
            run.check_inputs({"data": ...})   # refuses files with other content than before
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
      step: the current step, from 1; before the first one `first_step`.
      restored_meta: the meta of the checkpoint that `restore` read; empty for a new run.
      inputs: what identifies the content of the files that the run reads, by setting.
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
        """Touches no device yet; InputError where a tracker's package is not installed.

        Args:
          name: of the job, for the progress line.
          config: of the job.
          row_counts: batch sizes by the name of their setting; each must divide over the mesh.
          max_bad_updates: the run ends after this many non-finite updates in a row.
        """
        self._name, self._config = name, config
        self._row_counts = row_counts or {}
        self._max_bad_updates = max_bad_updates
        # Another start on the stored configuration must ask for changes again.
        stored = replace(config, allow_changes=False)
        self._config_text, self._differing_text = to_yaml(stored), differing_yaml(stored)
        self.inputs: Mapping[str, str] = {}
        self._data_key = ""
        self._is_changed = self._is_locked = self._begins_anew = False
        self.dir = RunDir(local_path(config.run_dir))
        self.first_step = self.step = 0
        self.seconds = 0.0
        self.restored_meta: Mapping[str, Any] = {}
        self._shown: dict[str, float] = {}
        self._started: float | None = None
        self._data: Any = None
        self._tracking: Tracking | None = None
        self._stack = ExitStack()
        # What the current step tells the trackers; `end_step` sends it.
        self._values: Mapping[str, Any] = {}
        self._images: list[TrackedImage] = []
        check_packages(config.report_to)

    def __enter__(self) -> Run:
        """Installs signal handlers, makes the mesh, checks that all processes agree.

        Raises InputError if sizes do not fit the devices, another process uses the run directory,
        there is nothing to resume from, or settings are not those of the resumed run.
        """
        config = self._config
        with ExitStack() as stack:
            self._signals = stack.enter_context(StopSignals(config.checkpoint.grace_seconds))
            self.mesh = job_mesh(config.mesh)
            choose_attention(config.mesh.attention, self.mesh.devices.flat[0].platform)
            for setting, count in self._row_counts.items():
                check_rows(count, self.mesh, setting)
            warm_up_collectives(self.mesh)
            same = replace(config, distributed=DistributedConfig())  # differs between processes
            check_same_on_all_processes(to_yaml(same), "configuration")
            with raise_on_all_processes():
                if is_main_process():
                    check_trackers(config)
                stack.enter_context(writing(self.dir.root, is_main_process()))
                if self.dir.root.is_dir():
                    self._lock(stack)
                self._resume = resolve_resume(config.resume, config.run_dir)
                self._check_settings()
            check_same_on_all_processes(
                name_urls(str(self._resume)),
                "checkpoint to resume from (do all share the run directory's storage?)",
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> bool | None:
        if self._tracking is not None:
            self._send()  # of a step that did not end
            stopped = kind is not None and issubclass(kind, Stopped | KeyboardInterrupt)
            outcome: Outcome = "stopped" if stopped else "failed"
            self._tracking.close("done" if kind is None else outcome)
        return self._stack.__exit__(kind, *error)

    def _lock(self, stack: ExitStack) -> None:
        """Holds the run directory, for the processes of this run, until the stack ends."""
        if is_main_process():
            stack.enter_context(folder_lock(self.dir.root, "run_dir"))
        self._is_locked = True

    def _check_settings(self) -> None:
        """Prints the settings that differ from those of the resumed run; InputError if refused."""
        if not is_main_process():
            return
        if self._resume is not None:
            self._accept(check_settings(run_of(self._resume), self._config))
        elif self._config.resume != "never" and self.dir.config.is_file():
            # Nothing was saved under the former settings: the run begins again.
            allowed = replace(self._config, allow_changes=True)
            changes = check_settings(self.dir, allowed, has_checkpoint=False)
            _print_changes(changes)
            self._begins_anew = any(not change.is_free for change in changes)

    @property
    def resumed(self) -> RunDir | None:
        """The run that this one goes on with, maybe in the same directory; None of a new one."""
        return None if self._resume is None else run_of(self._resume)

    def check_inputs(self, inputs: Mapping[str, str], data_key: str | None = None) -> None:
        """Compares what the files of the configuration hold with what the resumed run read.

        Args:
          inputs: by setting, what identifies the content; stored with the run, beside those of
            earlier calls.
          data_key: on what the order of the training data depends, besides the seed; when it
            changes, a resumed run reads them from the beginning. None: as in an earlier call.

        Raises InputError if something changed, unless that is allowed.
        """
        self.inputs = {**self.inputs, **inputs}
        if data_key is not None:
            self._data_key = f"{self._config.seed} {data_key}"
        with raise_on_all_processes():
            if is_main_process() and self._resume is not None:
                allow = self._config.allow_changes
                self._accept(check_inputs(run_of(self._resume), inputs, allow))

    def _accept(self, changes: Sequence[SettingChange]) -> None:
        """Prints the changes under which the run goes on, and remembers whether they matter."""
        _print_changes(changes)
        self._is_changed |= any(not change.is_free for change in changes)

    def open(self) -> None:
        """Creates the run directory, on storage that all processes share; prints the settings.

        Raises InputError if another process uses it.
        """
        with raise_on_all_processes():
            if not self._is_locked:
                self._lock(self._stack)
                if is_main_process() and self.dir.config.exists():
                    raise InputError(
                        f"another process has begun a run in {self.dir.root} meanwhile; give "
                        "another run_dir, or the same command again to go on with that run"
                    )
            if is_main_process():
                # A run without a checkpoint yet starts again in the same directory.
                may_exist = self._config.resume != "never"
                create_run_dir(self.dir.root, self._config_text, may_exist=may_exist)
                print(f"# differs from the defaults; all settings: {self.dir.config}")
                print(self._differing_text)

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
            self._take_over(restored)
            self._checkpoints.drop_after(self.first_step)
            upload(self.dir.root)  # before it is noted that the run goes on from here
        self.step = self.first_step
        with raise_on_all_processes():
            if is_main_process():
                self._write_start()
            events = TENSORBOARD in tracker_names(self._config.report_to)
            self._metrics = MetricsWriter(self.dir, self.first_step, tensorboard=events)
            self._tracking = make_tracking(self._config, self.dir, not self._begins_anew)
        if is_main_process() and self._resume is not None:
            print(f"resumed at step {self.first_step} from {self._resume}")
        return state

    def _take_over(self, restored: Restored) -> None:
        """The position in the data, and the time spent: of this run, not of another one."""
        assert self._resume is not None
        self.restored_meta = restored.meta
        if run_of(self._resume).root.resolve() == self.dir.root.resolve():
            self._loop.resume(restored.meta)
            self.seconds = restored.meta.get("seconds", 0.0)
        if self._data is None:
            return
        # Checkpoints of earlier versions do not say what their data were.
        if restored.meta.get("data_key", self._data_key) == self._data_key:
            self._data.set_state(restored.meta["data"])
        elif is_main_process():
            print("the training data are others than before: they are read from the beginning")

    def _write_start(self) -> None:
        """Removes what later steps wrote; stores the settings under which the run goes on."""
        kept_until = self.first_step if self._is_changed else None
        with raise_write_errors(self.dir.root):
            if self.first_step < self._config.steps:
                self.dir.summary.unlink(missing_ok=True)  # of an end that is none any more
            drop_samples_after(self.dir.samples, self.first_step)
            mark_followed(self.dir, self._config.resume, self.first_step)
        store_config(self.dir, self._config_text, kept_until)
        atomic_write(self.dir.differing, self._differing_text)
        write_json_atomic(self.dir.inputs, self.inputs)
        add_start(self.dir.provenance, describe_start(self._config.seed, self.first_step))

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
                with phase("step"):
                    yield step

    def elapsed(self) -> float:
        """Seconds since the current step began; 0 after `log`."""
        return 0.0 if self._started is None else time.perf_counter() - self._started

    def stop_timer(self) -> None:
        """Stop the step's timer: evaluation, samples and saving are not part of `seconds`."""
        self.seconds += self.elapsed()
        self._started = None
        self._loop.end_productive()

    def finish_at(self, step: int) -> None:
        """The run ends with `step`, the current one, as with its last: `end_step` saves it."""
        self._loop.finish_at(step)

    def has_checkpoint(self, step: int) -> bool:
        """Whether this run holds the checkpoint of a step; process 0 looks."""
        return broadcast_from_main(step in self._checkpoints.steps())

    def restore_step(self, state: Any, step: int) -> Any:
        """The state that was saved at `step`, in the shapes and shardings of `state`.

        RunError if there is none, or it is damaged.
        """
        return self._checkpoints.restore(state, step).tree

    def log(self, values: Mapping[str, Any], skipped_in_a_row: Any, **shown: float) -> None:
        """Writes the step's line of metrics.jsonl and stops the step's timer.

        Args:
          values: scalars by name; goodput and memory are added.
          skipped_in_a_row: non-finite updates since the last good one.
          shown: values of the progress line until the next call.

        Raises RunError after `max_bad_updates` skipped updates in a row, or when the disk is full.
        """
        self.stop_timer()
        with raise_on_all_processes():
            self._values = {**values, **self._loop.metrics()}
            self._metrics.write(self.step, self._values)
            self._shown = shown
            stop_if_skipped(skipped_in_a_row, self._max_bad_updates, self.step)

    def show_samples(self, records: Sequence[SampleRecord]) -> None:
        """Sample images of the current step, for the trackers; in the main process."""
        images = sample_images(records, self._config.tracker.images)
        with raise_write_errors(self.dir.root):
            self._metrics.show(self.step, images)
        self._images += images

    def _send(self) -> None:
        """What the current step has told so far, to the trackers."""
        if self._tracking is not None and (self._values or self._images):
            self._tracking.log(self.step, self._values, self._images)
        self._values, self._images = {}, []

    def write_summary(
        self, values: Mapping[str, Any] | None = None, images: Sequence[TrackedImage] = ()
    ) -> dict[str, Any]:
        """Writes summary.json with `values`, in the main process; returns all of it.

        images: for the trackers alone.
        """
        summary = write_summary(self.dir, self.step, self.seconds, values)
        if self._tracking is not None:
            self._tracking.summarise(self.step, summary, images)
        return summary

    def note(self, line: str) -> None:
        """Prints a line without breaking the progress bar, in the main process."""
        self._progress.note(line)

    def end_step(
        self,
        state: Any,
        *,
        score: float | None = None,
        measure: str = "",
        failure: str | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Ends the step: see `Loop.end_step`; `meta` is what the job adds to a checkpoint's."""
        self.stop_timer()
        self._progress.update(self.step, **self._shown)
        self._send()
        record = {**(meta or {}), "seed": self._config.seed, "seconds": self.seconds}
        if self._data is not None:
            record |= {"data": self._data.get_state(), "data_key": self._data_key}
        self._loop.end_step(self.step, state, record, score=score, measure=measure, failure=failure)


def _print_changes(changes: Sequence[SettingChange]) -> None:
    for change in changes:
        print(f"changed since the run was started: {change}")
