"""The launch scripts, run in a copy of the checkout with stand-ins for Python, pip and the job."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Writes its arguments to calls.log; runs the real interpreter for everything but pip and pytest.
STAND_IN = """#!/usr/bin/env bash
case "${{2:-}}" in
  pip|pytest) echo "$PWD|${{JAX_PLATFORMS:-}}|$*" >> "{log}"; exit "${{STAND_IN_EXIT:-0}}" ;;
esac
exec "{python}" "$@"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the scripts, setup.py and an environment whose Python is the stand-in."""
    root = tmp_path / "a checkout"
    (root / ".ci").mkdir(parents=True)
    shutil.copytree(ROOT / "launch", root / "launch")
    shutil.copy(ROOT / ".ci" / "run", root / ".ci" / "run")
    shutil.copy(ROOT / "setup.py", root / "setup.py")
    bin_folder = root / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    write_program(
        bin_folder / "python", STAND_IN.format(log=root / "calls.log", python=sys.executable)
    )
    job = f'#!/usr/bin/env bash\necho "$PWD|${{JAX_PLATFORMS:-}}|gotr1 $*" >> "{root}/calls.log"\n'
    write_program(bin_folder / "gotr1", job)
    return root


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def launch(script: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "JAX_PLATFORMS")}
    return subprocess.run(
        ["bash", str(script), *args],
        cwd="/",
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def calls(root: Path) -> list[list[str]]:
    """[working directory, JAX_PLATFORMS, arguments] of every call since the last look."""
    log = root / "calls.log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return [line.split("|") for line in lines]


def test_demo_installs_once_then_runs_grpo_with_the_users_arguments(checkout: Path) -> None:
    demo = checkout / "launch" / "demo.sh"
    job = "gotr1 train grpo --config configs/shapes_grpo.yaml --seed 1"

    assert launch(demo, "--seed", "1").returncode == 0
    install, run = calls(checkout)
    assert install[2].endswith(f"--editable {checkout}")
    assert run == [str(checkout), "", job]

    assert launch(demo, "--seed", "1").returncode == 0
    assert calls(checkout) == [[str(checkout), "", job]]


def test_changed_setup_and_other_extras_install_again(checkout: Path) -> None:
    demo, test = checkout / "launch" / "demo.sh", checkout / "launch" / "test.sh"
    launch(demo)
    calls(checkout)

    launch(test)
    assert calls(checkout)[0][2].endswith(f"--editable {checkout}[test]")

    with (checkout / "setup.py").open("a") as file:
        file.write("# changed\n")
    launch(test)
    assert "pip install" in calls(checkout)[0][2]
    launch(demo)  # [test] holds all that the demo needs
    assert [call[2].split()[0] for call in calls(checkout)] == ["gotr1"]


def test_failed_installation_stops_and_is_tried_again(checkout: Path) -> None:
    demo = checkout / "launch" / "demo.sh"
    failed = launch(demo, STAND_IN_EXIT="1")
    assert failed.returncode == 1
    assert "pip could not install" in failed.stderr
    assert len(calls(checkout)) == 1

    assert launch(demo).returncode == 0
    assert len(calls(checkout)) == 2


@pytest.mark.parametrize("script", ["launch/test.sh", ".ci/run"])
def test_tests_run_on_the_cpu_and_pass_on_their_exit_code(checkout: Path, script: str) -> None:
    launch(checkout / "launch" / "test.sh")
    calls(checkout)
    done = launch(checkout / script, "tests/unit", "-k", "a b", STAND_IN_EXIT="5")
    assert done.returncode == 5
    assert calls(checkout) == [[str(checkout), "cpu", "-m pytest tests/unit -k a b"]]


def test_broken_environment_is_named_and_kept(checkout: Path) -> None:
    (checkout / ".venv" / "bin" / "python").unlink()
    done = launch(checkout / "launch" / "demo.sh")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {checkout}/.venv holds no working Python 3.11")
    assert (checkout / ".venv" / "bin" / "gotr1").exists()


def test_old_python_is_refused_with_its_version(checkout: Path, tmp_path: Path) -> None:
    shutil.rmtree(checkout / ".venv")
    old = tmp_path / "python3.10"
    write_program(old, '#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.10.9"\nexit 1\n')
    done = launch(checkout / "launch" / "demo.sh", PYTHON=str(old))
    assert done.returncode == 1
    assert done.stderr == f"error: PYTHON={old} is Python 3.10.9; Python 3.11 or newer is needed\n"
    assert not (checkout / ".venv").exists()


def test_missing_python_and_missing_venv_module_are_refused(checkout: Path, tmp_path: Path) -> None:
    shutil.rmtree(checkout / ".venv")
    done = launch(checkout / "launch" / "demo.sh", PYTHON="/nowhere/python")
    assert (done.returncode, done.stderr) == (
        1,
        "error: PYTHON=/nowhere/python is not an executable\n",
    )

    bare = tmp_path / "python"
    write_program(bare, '#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\nexit 0\n')
    done = launch(checkout / "launch" / "demo.sh", PYTHON=str(bare))
    assert done.returncode == 1
    assert "has no venv module" in done.stderr
    assert not (checkout / ".venv").exists()
