"""`gotr1 train grpo` on a run that is there: other settings, another process, a lost judge."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import Brightness, compiled_once, grpo_values, write_config, write_shapes

from gotr1_jax import cli
from gotr1_jax.errors import RunError
from gotr1_jax.grpo import setup
from gotr1_jax.io.lock import folder_lock


@pytest.fixture(autouse=True)
def quiet_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The devices of this process are set already; every image earns something else."""
    monkeypatch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
    monkeypatch.setattr(setup, "make_judge", lambda *_: Brightness())


def run(values: dict[str, Any], *words: str) -> int:
    path = Path(values["run_dir"]).parent / "grpo.yaml"
    return cli.run(["train", "grpo", "--config", str(write_config(path, values)), *words])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A whole run of one step."""
    with compiled_once(tmp_path_factory.mktemp("programs")), pytest.MonkeyPatch.context() as patch:
        checkpoint = write_shapes(tmp_path_factory.mktemp("tiny") / "checkpoint")
        root = tmp_path_factory.mktemp("finished") / "run"
        patch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
        patch.setattr(setup, "make_judge", lambda *_: Brightness())
        assert run(grpo_values(checkpoint, root) | {"steps": 2}) == 0
        yield root


def test_the_model_is_there_where_the_comparison_fails(finished, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "model")
    (copy / "summary.json").unlink()
    values = yaml.safe_load((copy / "config.yaml").read_text()) | {"run_dir": str(copy)}

    class Lost(Brightness):
        def judge(self, requests: Any) -> Any:
            raise RunError("the judge is gone")

    monkeypatch.setattr(setup, "make_judge", lambda *_: Lost())
    assert run(values) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "gotr1: error: the judge is gone"
    assert (copy / "model" / "config.json").is_file() and not (copy / "summary.json").exists()


def test_two_processes_do_not_share_a_run_directory(finished, capsys):
    root = finished
    values = yaml.safe_load((root / "config.yaml").read_text())
    kept = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with folder_lock(root, "run_dir"):
        assert run(values) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"run_dir {root} is in use by process {os.getpid()} on " in line
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == kept
