"""Locks on run directories and outputs: who holds them, and what a kill leaves."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gotr1_jax.errors import InputError, RunError
from gotr1_jax.io.files import atomic_folder
from gotr1_jax.io.lock import folder_lock, target_lock

HOLDER = """
import sys, time
from pathlib import Path
from gotr1_jax.io.lock import folder_lock
with folder_lock(Path(sys.argv[1]), "--out"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("lock", [folder_lock, target_lock])
def test_a_second_holder_is_told_about_the_first(tmp_path, lock):
    with lock(tmp_path / "out", "--out"):
        said = rf"--out .*out is in use by process {os.getpid()} on"
        with pytest.raises(InputError, match=said), lock(tmp_path / "out", "--out"):
            raise AssertionError
        with lock(tmp_path / "other", "--out"):
            pass
    with lock(tmp_path / "out", "--out"):
        pass
    assert list(tmp_path.iterdir()) == []  # nothing was written, so nothing is left


def test_a_killed_process_holds_nothing(tmp_path):
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        said = f"in use by process {process.pid} on .* since 20"
        with pytest.raises(InputError, match=said), folder_lock(tmp_path, "--out"):
            raise AssertionError
        process.send_signal(signal.SIGKILL)
    with folder_lock(tmp_path, "--out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_shares_of_one_folder_do_not_exclude_each_other(tmp_path):
    with (
        folder_lock(tmp_path, "--out", "_0_of_2"),
        folder_lock(tmp_path, "--out", "_1_of_2"),
        pytest.raises(InputError, match="in use"),
        folder_lock(tmp_path, "--out", "_1_of_2"),
    ):
        raise AssertionError


def test_without_locks_of_the_file_system_a_line_says_so(tmp_path, monkeypatch, caplog):
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with folder_lock(tmp_path, "--out"):
        pass
    assert "has no locks (No locks available): make sure that no other" in caplog.text


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    said = "file is a file; choose a directory"
    with pytest.raises(InputError, match=said), folder_lock(tmp_path / "file", "--out"):
        raise AssertionError
    said = "cannot write .*out: File exists"
    with pytest.raises(RunError, match=said), target_lock(tmp_path / "file" / "out", "--out"):
        raise AssertionError


def test_two_processes_do_not_write_one_folder(tmp_path):
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "a").write_text("")
        said = "model is in use by process"
        with pytest.raises(InputError, match=said), atomic_folder(tmp_path / "model"):
            raise AssertionError
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["a"]
