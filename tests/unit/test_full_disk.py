"""A full disk at each file that a run or a command writes, and on the standard output."""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from report_pages import record
from tiny import Brightness

from gotr1_jax import cli
from gotr1_jax.convert.writer import OutTensor, write_checkpoint
from gotr1_jax.errors import RunError
from gotr1_jax.evaluation.understanding_questions import write_shapes_questions
from gotr1_jax.io.files import write_json_atomic
from gotr1_jax.io.write_errors import find_write_failure
from gotr1_jax.report.page import write_report
from gotr1_jax.rewards.judging import judge_samples
from gotr1_jax.trainer.checkpoint import Checkpoints
from gotr1_jax.trainer.metrics import MetricsWriter, read_metrics
from gotr1_jax.trainer.orbax_errors import save_failure
from gotr1_jax.trainer.run_dir import RunDir, create_run_dir, write_summary
from gotr1_jax.trainer.samples import write_samples
from gotr1_jax.vlm_engine.answer_cache import AnswerCache

FULL = "No space left on device"


class FullFile:
    """A file on a disk that is full: it can be opened, and takes no bytes."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> FullFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, FULL)


def save(root: Path) -> None:
    with Checkpoints(RunDir(root).checkpoints) as checkpoints:
        checkpoints.save(1, {"a": jnp.ones(3)}, {"seed": 0})


def log(root: Path) -> None:
    with MetricsWriter(RunDir(root)) as writer:
        writer.write(1, {"loss": 1.0})


def export(root: Path) -> None:
    tensors = [OutTensor("a", (2,), lambda: np.ones(2, np.float32))]
    write_checkpoint(root / "model", {"a": 1}, tensors)


def report(root: Path) -> None:
    create_run_dir(root, "seed: 0\n", may_exist=True)
    write_report(root)


# What is written, by the start of the name of the file that does not fit.
WRITERS: dict[str, Callable[[Path], Any]] = {
    "config.yaml": lambda root: create_run_dir(root, "seed: 0\n", may_exist=False),
    "inputs.json": lambda root: write_json_atomic(RunDir(root).inputs, {"data": "x"}),
    "metrics.jsonl": log,
    "events": log,
    "00_00.png": lambda root: write_samples(RunDir(root).samples, 1, [record()]),
    "samples.jsonl": lambda root: write_samples(RunDir(root).samples, 1, [record()]),
    "metadata": save,
    "manifest.json": save,
    "eval_before.json": lambda root: write_json_atomic(root / "eval_before.json", {"total": 1}),
    "model.safetensors": export,
    "config.json": export,
    "summary.json": lambda root: write_summary(RunDir(root), 1, 1.0),
    "report.html": report,
    "scores.jsonl": lambda root: judge_samples(Brightness(), [], root / "scores.jsonl"),
    "questions.jsonl": lambda root: write_shapes_questions(root, 1, 0),
    "answers.jsonl": lambda root: AnswerCache(root).add({"a": "b"}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_does_not_fit_is_one_line(tmp_path: Path, monkeypatch, caplog, name: str):
    opened = io.open
    tried: list[str] = []

    def open_full(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        found = opened(file, mode, *rest, **named)
        written = os.path.basename(str(file)).lstrip(".")
        if isinstance(file, int) or not written.startswith(name) or not set(mode) & set("wax+"):
            return found
        tried.append(written)
        return FullFile(found)

    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setattr(builtins, "open", open_full)
    monkeypatch.setattr(io, "open", open_full)
    with pytest.raises(RunError, match=f"^disk full: {run}.* was not written; .*{FULL}") as error:
        WRITERS[name](run)
    assert tried and "\n" not in str(error.value) and not caplog.records
    monkeypatch.undo()
    WRITERS[name](run)  # what is left does not hinder the next one


def test_arrays_that_are_written_after_the_failure_of_a_save_are_removed(tmp_path, monkeypatch):
    started, run = [], threading.Thread.run

    def run_late(thread: threading.Thread) -> None:
        if thread.name == "json_ch_save":
            raise OSError(errno.ENOSPC, FULL)
        if thread.name == "array_type_handler":
            started.append(thread)
            time.sleep(0.3)
        run(thread)

    monkeypatch.setattr(threading.Thread, "run", run_late)
    with pytest.raises(RunError, match=FULL):
        save(tmp_path)
    monkeypatch.undo()
    assert started and not started[0].is_alive()
    assert list(RunDir(tmp_path).checkpoints.iterdir()) == []
    save(tmp_path)


def test_a_line_that_the_disk_takes_half_of_is_an_error(tmp_path: Path, monkeypatch):
    class AlmostFull(FullFile):
        left = 9

        def write(self, data: Any) -> int:
            if not self.left:
                raise OSError(errno.ENOSPC, FULL)
            taken, self.left = self._file.write(data[: self.left]), 0
            return taken

    writer = MetricsWriter(RunDir(tmp_path))
    monkeypatch.setattr(writer, "_file", AlmostFull(writer._file))
    with pytest.raises(RunError, match=f"disk full: .*metrics.jsonl.*{FULL}"):
        writer.write(1, {"loss": 1.0})
    writer.close()
    resumed = MetricsWriter(RunDir(tmp_path))  # without the half line
    resumed.write(1, {"loss": 1.0})
    resumed.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]


def test_an_error_of_a_library_is_searched_for_the_disk():
    def chain(inner: Exception) -> Exception:
        error = ValueError("a save failed")
        error.__cause__ = ExceptionGroup("two", [KeyError("a"), inner])
        return error

    told = [
        OSError(errno.EDQUOT, "Disk quota exceeded"), OSError(errno.ENOSPC, FULL, "/a/b"),
        ValueError(f'Failed writing "x": {FULL} [os_error_code=28]'),
    ]  # fmt: skip
    lines = [str(find_write_failure(chain(error), Path("/run"))) for error in told]
    assert [line.split(" was ")[0] for line in lines] == [
        "disk full: /run", "disk full: /a/b", "disk full: /run"
    ]  # fmt: skip
    assert lines[0].endswith("(Disk quota exceeded)")
    assert find_write_failure(chain(FileNotFoundError(errno.ENOENT, "no", "x")), Path("/r")) is None


def test_a_save_names_the_error_of_its_disk():
    error = ValueError("a save failed")
    error.__cause__ = OSError(errno.EIO, "Input/output error", "/run/step_000002.tmp/x")
    line = str(save_failure(Path("/run/step_000002"), error))
    assert line == "cannot write /run/step_000002: Input/output error"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("words", [["report"], ["report", "--scores", "missing.jsonl"]])
def test_a_full_disk_under_the_output_of_a_command(tmp_path: Path, monkeypatch, capfd, words):
    """Output to files is kept until the end of the command, or of the interpreter."""
    create_run_dir(tmp_path, "seed: 0\n", may_exist=False)
    with open("/dev/full", "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        print("some line")
        with pytest.raises(SystemExit) as end:
            cli.main([words[0], str(tmp_path), *words[1:]])
        monkeypatch.undo()  # and the file can be closed without another error
    said = capfd.readouterr().err.splitlines()
    if len(words) == 1:
        assert said == [
            "gotr1: error: disk full: the standard output was not written; free some space or "
            f"choose another directory ({FULL})"
        ]
        assert end.value.code == 1 and (tmp_path / "report.html").is_file()
    else:
        assert len(said) == 1 and "missing.jsonl" in said[0] and end.value.code == 2


SAVES = """
import sys
import numpy as np
import jax.numpy as jnp
from gotr1_jax.errors import RunError
from gotr1_jax.trainer.checkpoint import Checkpoints
rng = np.random.default_rng(0)
tree = {f"a{i}": jnp.array(rng.normal(size=500), jnp.float32) for i in range(120)}
for folder in sys.argv[1:]:
    try:
        with Checkpoints(folder) as checkpoints:
            for step in (1, 2):
                checkpoints.save(step, tree, {})
    except RunError as error:
        print(error, file=sys.stderr)
"""


def test_orbax_prints_nothing_of_a_disk_that_fills_up(tmp_path: Path):
    """Disks that are full at different files of the second save, of 120 small arrays."""
    disks = [tmp_path / f"disk{size}" for size in (560, 563, 564, 567, 568, 608)]
    mounted = []
    if shutil.which("mount") is None:
        pytest.skip("nothing can be mounted here")
    try:
        for disk in disks:
            disk.mkdir()
            size = f"size={disk.name[4:]}k"
            command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)]
            if (
                shutil.which("mount") is None
                or subprocess.run(command, capture_output=True).returncode
            ):
                pytest.skip("a small file system cannot be mounted here")
            mounted.append(disk)
        folders = [disk / "checkpoints" for disk in disks]
        done = subprocess.run(
            [sys.executable, "-c", SAVES, *map(str, folders)],
            cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, check=True,
        )  # fmt: skip
        said = done.stderr.splitlines()
        assert len(said) == len(disks), done.stderr[:5000]
        for line, folder in zip(said, folders, strict=True):
            assert Checkpoints(folder).latest_good() == 1
            assert line.startswith(f"disk full: {folder}/step_000002 was not written; ")
            assert [path.name for path in folder.iterdir()] == ["step_000001"]
    finally:
        for disk in mounted:
            subprocess.run(["umount", "-l", str(disk)], check=True)
