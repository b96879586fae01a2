"""`gotr1`: bad input gets one line and exit code 2, and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import grpo_values, write_config, write_shapes

from gotr1_jax import cli
from gotr1_jax.errors import RunError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(autouse=True)
def devices_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)


@pytest.fixture
def values(checkpoint: Path, tmp_path: Path) -> dict[str, Any]:
    return grpo_values(checkpoint, tmp_path / "run")


def grpo(values: dict[str, Any], *words: str | Path) -> int:
    path = Path(values["run_dir"]).parent / "grpo.yaml"
    write_config(path, values)
    return cli.run(["train", "grpo", "--config", str(path), *map(str, words)])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("gotr1: error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0], lines
    return errors[0]


def test_a_missing_checkpoint(values, tmp_path, capsys):
    assert grpo(values, "--policy.init", tmp_path / "nowhere") == 2
    assert f"no checkpoint at {tmp_path / 'nowhere'}" in one_line(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, -1])
def test_a_checkpoint_cut_short(values, checkpoint, tmp_path, capsys, keep):
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    weights = broken / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    assert grpo(values, "--policy.init", broken) == 2
    assert "model.safetensors" in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_size(values, checkpoint, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    config = json.loads((other / "config.json").read_text())
    config["language_config"]["num_hidden_layers"] = 3
    (other / "config.json").write_text(json.dumps(config))
    assert grpo(values, "--policy.init", other) == 2
    assert "missing: " in one_line(capsys)
    (other / "config.json").write_text("{")
    assert grpo(values, "--policy.init", other) == 2
    assert "is not JSON" in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_unknown_configuration_key(values, tmp_path, capsys):
    assert grpo(values, "--rollout.guidence", "3") == 2
    assert "did you mean 'rollout.guidance'?" in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_meshes_and_batches_that_do_not_fit(values, tmp_path, capsys):
    assert grpo(values, "--mesh.data", "3") == 2
    assert "update.micro_batch is 4, which does not divide" in one_line(capsys)
    assert grpo(values, "--mesh.tensor", "16") == 2
    assert "needs 16 devices, there are 8" in one_line(capsys)
    assert grpo(values, "--captions.count", "1") == 2
    assert "a batch of 2 captions cannot be drawn from 1" in one_line(capsys)
    assert grpo(values, "--resume", tmp_path / "nowhere") == 2
    assert "does not exist" in one_line(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("empty.txt", "\n \n", "holds no caption"),
        ("empty.jsonl", '{"prompt": "a cat"}\n{"prompt": "  "}\n', "line 2 has no text"),
        ("long.txt", "a cat\na dog\n" + "a very long caption " * 100, "more than the limit of 48"),
    ],
)
def test_captions_that_cannot_be_used(values, tmp_path, capsys, name, text, message):
    (tmp_path / name).write_text(text)
    assert grpo(values, "--captions.source", tmp_path / name) == 2
    assert message in one_line(capsys)
    assert grpo(values, "--captions.source", tmp_path / "nowhere.txt") == 2
    assert "cannot read captions" in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_report_of_what_is_no_run(tmp_path, capsys):
    assert cli.run(["report", str(tmp_path / "nowhere")]) == 2
    assert "there is no such directory" in one_line(capsys)
    (tmp_path / "empty").mkdir()
    assert cli.run(["report", str(tmp_path / "empty")]) == 2
    one_line(capsys)
    assert list((tmp_path / "empty").iterdir()) == []


def test_failures_and_a_full_disk_end_with_1(tmp_path, capsys, monkeypatch):
    def fail(error: BaseException) -> None:
        def raising(*_: object) -> Path:
            raise error

        monkeypatch.setattr("gotr1_jax.report.page.write_report", raising)

    fail(RunError("two\n  lines"))
    assert cli.run(["report", str(tmp_path)]) == 1
    assert one_line(capsys) == "gotr1: error: two lines"
    fail(OSError(errno.ENOSPC, "No space left on device", "somewhere"))
    assert cli.run(["report", str(tmp_path)]) == 1
    assert one_line(capsys) == (
        "gotr1: error: disk full: somewhere was not written; free some space or choose another "
        "directory (No space left on device)"
    )
    fail(KeyboardInterrupt())
    assert cli.run(["report", str(tmp_path)]) == 130
    assert one_line(capsys) == "gotr1: error: interrupted"
    # A fault of the program itself keeps its traceback.
    fail(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.run(["report", str(tmp_path)])


@pytest.mark.parametrize(
    "words",
    [
        [], ["dance"], ["train"], ["train", "grpo"], ["report"], ["report", "a", "--b", "c"],
        ["train", "ppo", "--config", "x"],
    ],
)  # fmt: skip
def test_words_that_are_no_command(words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.run(words)
    assert caught.value.code == 2
    assert "gotr1" in capsys.readouterr().err


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.run(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("train", "generate", "report", "bench"))


def test_a_process_of_its_own(values, tmp_path):
    config = write_config(tmp_path / "grpo.yaml", {**values, "stepz": 1})
    command = [sys.executable, "-m", "gotr1_jax.cli", "train", "grpo", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "gotr1: error: unknown configuration key 'stepz'; did you mean 'steps'?\n"
    )
