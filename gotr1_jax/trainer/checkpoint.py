"""Checkpoints that are valid only once a manifest of their files is written.

A checkpoint is a folder `step_000010` that Orbax writes in the background: `state` (arrays under
their flat paths) and `meta` (JSON). After the commit `manifest.json` is written, with the SHA-256
of every file; a step without it is ignored. Orbax alone restores corrupted bytes, accepts a step
that a full disk truncated, and casts dtypes silently. Its retention would delete a step before the
newer one is verified, so `_retain` runs after the manifest.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from gotr1_jax.errors import GotR1Error, InputError, RunError
from gotr1_jax.io.files import check_writable
from gotr1_jax.io.storage import is_copy, release, upload
from gotr1_jax.io.write_errors import raise_write_errors, write_failure
from gotr1_jax.parallel.processes import (
    post_text,
    posted_text,
    raise_on_all_processes,
)
from gotr1_jax.trainer.checkpoint_meta import compare, decode, encode, flatten, specs
from gotr1_jax.trainer.manifest import (
    MANIFEST_NAME,
    manifest_problem,
    raise_read_errors,
    read_manifest,
    write_manifest,
)
from gotr1_jax.trainer.orbax_errors import remove_written, save_failure, wait_for_writes
from gotr1_jax.trainer.pieces import fetch_newest, join_pieces, new_writer, save_args
from gotr1_jax.trainer.run_dir import remove_folder, step_number

_PREFIX = "step_"
_WRITE_SECONDS = 10.0  # for what is still written of a failed save
_ASK_SECONDS = 1.0  # between questions whether another process failed in a save
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restored:
    """A restored checkpoint: `tree` in the structure of the target, `meta` as given to `save`."""

    tree: Any
    meta: dict[str, Any]
    step: int


class Checkpoints:
    """The checkpoints of one run.

    Saves run in the background; `wait` and `check` raise their errors. Every process of a run makes
    the same calls; process 0 writes manifests and deletes steps.
    """

    def __init__(
        self, directory: Path | str, keep: int = 3, keep_best: bool = True, frozen: Any = None
    ) -> None:
        """Opens `directory`, which may not exist yet.

        Args:
            directory: parent of the step folders.
            keep: number of the newest good steps to keep.
            keep_best: whether to also keep the step with the best score.
            frozen: a pytree of arrays that the run reads but does not save, such as the base
                weights under its adapters. `restore` checks that their shapes and dtypes are those
                of the saved run; None: no check.
        """
        if keep < 1:
            raise InputError(f"checkpoints: keep is {keep}, it must be at least 1")
        self.directory = Path(directory).absolute()
        self._keep = keep
        self._keep_best = keep_best
        self._frozen = None if frozen is None else specs(frozen)
        self._bad: set[int] = set()
        self._writer: ocp.AsyncCheckpointer | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._saves = 0
        self._given_up = False

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def folder(self, step: int) -> Path:
        """The folder of a step."""
        return self.directory / f"{_PREFIX}{step:06d}"

    def steps(self) -> list[int]:
        """The steps with a manifest, ascending; their files are not verified."""
        return [step for step in self._folders() if (self.folder(step) / MANIFEST_NAME).is_file()]

    def save(
        self, step: int, tree: Any, meta: Mapping[str, Any], score: float | None = None,
        measure: str = "",
    ) -> None:  # fmt: skip
        """Starts a save; returns once the arrays are copied and may be donated.

        Args:
            step: number of steps done.
            tree: any pytree of arrays.
            meta: JSON values and bytes: seed, state of the data iterator, counters.
            score: for `keep_best`; higher is better.
            measure: names what the score was measured under; only scores of one are compared.

        Raises:
            RunError: this save cannot start, or the previous one failed.
        """
        # If the previous save failed in one process, no process starts this one.
        folder = self.folder(step)
        with raise_on_all_processes():
            self.wait()
            with raise_write_errors(folder):
                self._remove_unfinished()
                self._remove(step)
                # Asked first: when one process cannot write, the others wait in Orbax for it.
                check_writable(self.directory)
        arrays = flatten(tree)
        record = {"meta": encode(meta), "arrays": specs(tree), "frozen": self._frozen}
        self._saves += 1
        try:
            if self._writer is None:
                self._writer = new_writer(self._in_pieces)
            args = save_args(arrays, record, self._in_pieces)
            self._writer.save(folder, args=args, force=True)
        except Exception as error:
            self._abandon(step)
            raise save_failure(folder, error) from error
        self._bad.discard(step)
        # Not waited for at exit if another process failed in this save: see `settle`.
        self._thread = threading.Thread(
            target=self._finish, args=(step, score, measure), name="checkpoint",
            daemon=jax.process_count() > 1,
        )  # fmt: skip
        self._thread.start()

    def wait(self) -> None:
        """Waits until the last save is complete; raises its RunError if it failed."""
        self.settle()
        self._thread = None
        self.check()

    def check(self) -> None:
        """Raises the RunError of a save that has failed; does not wait."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def settle(self) -> None:
        """Waits until no save is running; raises nothing, and any thread may call it.

        Orbax waits for all processes: when a save failed in one, it is given up in the others.
        """
        thread = self._thread
        if thread is None:
            return
        if jax.process_count() == 1:
            thread.join()
        while thread.is_alive():
            thread.join(_ASK_SECONDS)
            if thread.is_alive() and (text := posted_text(self._failure_key)):
                self._error, self._thread, self._given_up = RunError(text), None, True
                return

    def close(self) -> None:
        """Waits for the last save and ends the background threads."""
        try:
            self.wait()
        finally:
            if self._writer is not None and not self._given_up:
                self._writer.close()
            self._writer = None

    def latest_good(self) -> int | None:
        """The newest step whose files match its manifest; None if there are no steps.

        Raises RunError if there are steps but none is good.
        """
        found = -1
        with raise_on_all_processes():
            self.wait()
            if jax.process_index() == 0:
                found = self._newest_good()
        if jax.process_count() > 1:
            found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
        if found == -2:
            raise self._none_is_good()
        return None if found == -1 else found

    def restore(self, target: Any, step: int | None = None) -> Restored:
        """Reads a step into the shapes, dtypes and shardings of `target`.

        Args:
            target: a pytree of arrays or `jax.ShapeDtypeStruct`s; a leaf without a sharding goes
                to the first local device.
            step: None: the newest good one; damaged ones are logged and skipped.

        Raises:
            InputError: saved or frozen arrays differ in path, shape or dtype; the message names
                one path and both values.
            RunError: the step is unfinished or damaged, or no step is good.
        """
        self.wait()
        wanted = flatten(target)
        if self._in_pieces:
            if step is None and jax.process_index() == 0:
                self.warn_unfinished()
            steps = self.steps() if step is None else [step]
            is_any = bool(steps)
            step = fetch_newest(self.folder, steps, wanted, step is not None)
            if step is None and is_any:
                raise self._none_is_good()
        elif step is None:
            step = self.latest_good()
        else:
            self._check_good(step)
        if step is None:
            raise RunError(f"there is no checkpoint in {self.directory}")
        folder = self.folder(step)
        with (
            raise_read_errors(folder),
            ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader,
        ):
            record = reader.restore(folder, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
            record = record.meta
            compare(record["arrays"], specs(target), folder)
            frozen = record.get("frozen", record.get("beside"))  # its name in older checkpoints
            if self._frozen is not None and frozen is not None:
                compare(frozen, self._frozen, folder)
            abstract = {path: _abstract(leaf) for path, leaf in wanted.items()}
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            arrays = reader.restore(folder, args=args).state
        treedef = jax.tree.structure(target)
        tree = jax.tree.unflatten(treedef, [arrays[path] for path in wanted])
        return Restored(tree, decode(record["meta"]), step)

    def _none_is_good(self) -> RunError:
        return RunError(
            f"no checkpoint in {self.directory} is good; restore one from elsewhere, or start"
            " again with --resume never in another run directory"
        )

    def _check_good(self, step: int) -> None:
        """RunError in all processes if the step is not good."""
        with raise_on_all_processes():
            is_main = jax.process_index() == 0
            problem = manifest_problem(self.folder(step), step) if is_main else None
            if problem:
                raise RunError(f"checkpoint {self.folder(step)} cannot be used: {problem}")

    def drop_after(self, step: int) -> None:
        """Removes every step after `step`, from which a run resumes; RunError if that fails."""
        self.wait()
        for later in self._folders():
            if later > step:
                try:
                    self._remove(later)
                except OSError as error:
                    raise write_failure(self.folder(later), error) from error

    def warn_unfinished(self) -> None:
        """Logs the folders of steps without a manifest, the newest first."""
        for step in sorted(set(self._folders()) - set(self.steps()), reverse=True):
            _log.warning("checkpoint %s was never finished; it is ignored", self.folder(step))

    @property
    def _in_pieces(self) -> bool:
        """Whether each process has a folder of its own, whose files are joined in a bucket."""
        return jax.process_count() > 1 and is_copy(self.directory)

    @property
    def _has_folder(self) -> bool:
        """Whether this process makes and removes folders."""
        return jax.process_index() == 0 or self._in_pieces

    @property
    def _failure_key(self) -> str:
        """Under which a process tells the others that the current save has failed in it."""
        return f"gotr1_jax/failed_save/{self._saves}"

    def _finish(self, step: int, score: float | None, measure: str) -> None:
        """The background part of a save."""
        folder = self.folder(step)
        try:
            assert self._writer is not None
            self._writer.wait_until_finished()
            others: Mapping[str, str] = {}
            if self._in_pieces:
                key = f"gotr1_jax/pieces/{self._saves}"
                others = join_pieces(folder, key, self._failure_key)
            if jax.process_index() == 0:
                write_manifest(folder, step, score, measure, others)
        except BaseException as error:
            self._error = save_failure(folder, error)
            text = f"process {jax.process_index()}: {self._error}"
            post_text(self._failure_key, text)
            self._abandon(step)
            return
        if jax.process_index() == 0:
            try:
                self._retain(step)
            except OSError as error:
                _log.warning("old checkpoints in %s were not removed: %s", self.directory, error)
        try:
            # Of a run in a bucket the step counts from now on, and the old ones are gone.
            if jax.process_index() == 0:
                upload(self.directory)
            release(folder, others)
        except (GotR1Error, OSError) as error:
            self._error = save_failure(folder, error)
            post_text(self._failure_key, f"process {jax.process_index()}: {self._error}")

    def _retain(self, saved: int) -> None:
        """Removes steps older than the good step `saved`, except the newest and the best.

        Scores that were measured under other settings do not compare: the best of each stays.
        """
        scores: dict[int, tuple[str, float | None]] = {}
        for step in self.steps():
            try:
                manifest = read_manifest(self.folder(step))
                scores[step] = str(manifest.get("measure", "")), manifest["score"]
            except InputError:
                self._bad.add(step)
        good = [step for step in scores if step not in self._bad]
        kept = set(good[-self._keep :])
        # Ascending: the last one of each measure is its best.
        best = sorted((scores[step], step) for step in good if scores[step][1] is not None)
        if self._keep_best:
            kept |= set({measure: step for (measure, _), step in best}.values())
        for step in self._folders():
            if step not in kept and step < saved:
                self._remove(step)

    def _folders(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        numbers = [step_number(path.name) for path in self.directory.glob(f"{_PREFIX}*")]
        return sorted(number for number in numbers if number is not None)

    def _remove(self, step: int) -> None:
        """Removes a step, its manifest first: a half-deleted step is then ignored."""
        if self._has_folder:
            (self.folder(step) / MANIFEST_NAME).unlink(missing_ok=True)
            remove_folder(self.folder(step))

    def _remove_unfinished(self) -> None:
        """Removes Orbax's temporary folders of a killed save."""
        if self._has_folder:
            self.directory.mkdir(parents=True, exist_ok=True)
            for path in self.directory.glob(f"{_PREFIX}*.orbax-checkpoint-tmp*"):
                shutil.rmtree(path, ignore_errors=True)

    def _abandon(self, step: int) -> None:
        """Removes a failed save, as far as the disk allows."""
        wait_for_writes(_WRITE_SECONDS)
        with contextlib.suppress(OSError):
            self._remove(step)
            for path in self.directory.glob(f"{self.folder(step).name}.*"):
                if self._has_folder:
                    remove_written(path)

    def _newest_good(self) -> int:
        """The newest good step; -1 if no step has a manifest, -2 if none is good."""
        counted = self.steps()
        self.warn_unfinished()
        for step in reversed(counted):
            problem = manifest_problem(self.folder(step), step)
            if problem is None:
                return step
            self._bad.add(step)
            _log.warning("checkpoint %s is skipped: %s", self.folder(step), problem)
        return -2 if counted else -1


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
