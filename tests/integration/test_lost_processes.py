"""Two processes of `gotr1 train sft`: one fails or is killed, the other ends."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from object_store import served_bucket
from several import Group, saved_arrays
from tiny import compiled_once, sft_values, steady_metrics, write_config, write_shapes

from gotr1_jax import cli
from gotr1_jax.io.lock import LOCK_NAME, folder_lock

STEPS = 4
HEARTBEAT = 8


def values(folder: Path, run: Path) -> dict[str, Any]:
    """Plain values of the job: every step is saved, rows and parameters are split."""
    given = sft_values(folder / "checkpoint", run)
    given |= {"steps": STEPS, "batch_size": 8, "micro_batch": 8}
    given["checkpoint"] = {"every": 1, "keep": 2}
    given["mesh"] = {"data": 2, "fsdp": 2, "tensor": 1, "cpu_devices": 2}
    given["distributed"] = {"heartbeat_seconds": HEARTBEAT}
    return given


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("lost")
    with compiled_once(folder / "programs"):
        write_shapes(folder / "checkpoint")
        yield folder


def start(folder: Path, run: Path, *own: list[str]) -> Group:
    config = write_config(run.with_suffix(".yaml"), values(folder, run))
    return Group(["train", "sft", "--config", str(config)], folder, own=own or ((), ()))


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """An uninterrupted run."""
    with start(folder, folder / "whole") as group:
        assert group.end() == [0, 0], group.said(0) + group.said(1)
    return folder / "whole"


def test_two_processes_train_as_one(folder: Path, whole: Path) -> None:
    run = folder / "one"
    given = values(folder, run) | {"mesh": {"data": 1}}
    with pytest.MonkeyPatch.context() as patch:
        # The devices of this process are set already.
        patch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
        config = write_config(run.with_suffix(".yaml"), given)
        assert cli.run(["train", "sft", "--config", str(config)]) == 0
    for line, wanted in zip(steady_metrics(whole), steady_metrics(run), strict=True):
        for name in wanted:
            np.testing.assert_allclose(line[name], wanted[name], atol=1e-4, err_msg=name)
    arrays, wanted = saved_arrays(whole, STEPS), saved_arrays(run, STEPS)
    for path in wanted:
        np.testing.assert_allclose(arrays[path], wanted[path], atol=1e-4, err_msg=path)


def test_killed_processes_go_on_from_a_bucket(
    folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share no disk: each works in a copy of its own."""
    given = values(folder, folder / "copies")
    with served_bucket() as bucket:
        given["run_dir"] = f"{bucket.url}/runs/a"
        words = ["train", "sft", "--config", str(write_config(folder / "bucket.yaml", given))]
        monkeypatch.setenv("GOTR1_STORAGE", str(folder / "before"))
        with Group(words, folder) as group:
            while not any("manifest.json" in name for name in bucket.names("runs/a")):
                assert [child.poll() for child in group.children] == [None, None], group.said(0)
                time.sleep(0.1)
        monkeypatch.setenv("GOTR1_STORAGE", str(folder / "after"))
        with Group(words, folder) as group:
            assert group.end() == [0, 0], group.said(0) + group.said(1)
            assert f"from {bucket.url}/runs/a/checkpoints" in group.said(0)
        run = bucket.download("runs/a", folder / "downloaded")
    assert steady_metrics(run) == steady_metrics(whole)
    arrays, wanted = saved_arrays(run, STEPS), saved_arrays(whole, STEPS)
    assert arrays.keys() == wanted.keys()
    for path in wanted:
        np.testing.assert_array_equal(arrays[path], wanted[path], err_msg=path)
    names = {path.name for path in run.iterdir()}
    assert names >= {"config.yaml", "metrics.jsonl", "model", "summary.json", "tensorboard"}
    assert not list((folder / "after" / "work").iterdir())


def test_a_run_directory_that_is_held_ends_every_process(folder: Path) -> None:
    """Process 0 alone asks for the lock."""
    run = folder / "held"
    with folder_lock(run, "run_dir"), start(folder, run) as group:
        assert group.end() == [2, 2], group.said(0) + group.said(1)
        for index in range(2):
            said = [line for line in group.said(index).splitlines() if "gotr1: error: " in line]
            assert len(said) == 1 and "Traceback" not in group.said(index), group.said(index)
            assert f"run_dir {run} is in use by process {os.getpid()} on " in said[0]
        assert [path.name for path in run.iterdir()] == [LOCK_NAME]


@pytest.mark.parametrize("victim", [1, 0])
def test_the_other_process_ends_and_the_run_continues(
    folder: Path, whole: Path, victim: int
) -> None:
    run = folder / f"killed_{victim}"
    with start(folder, run) as group:
        group.wait_for(run / "metrics.jsonl", lines=2)
        group.children[victim].kill()
        # No more than the heartbeat, and the time that the machine takes to notice.
        code = group.children[1 - victim].wait(HEARTBEAT + 60)
        assert code not in (0, None)
        said = group.said(1 - victim)
        assert "lost the others" in said or "another task died" in said
    assert not (run / "model").exists()

    with start(folder, run) as group:
        assert group.end() == [0, 0], group.said(0) + group.said(1)
    assert steady_metrics(run) == steady_metrics(whole)
    arrays, wanted = saved_arrays(run, STEPS), saved_arrays(whole, STEPS)
    assert arrays.keys() == wanted.keys()
    for path in wanted:
        np.testing.assert_array_equal(arrays[path], wanted[path], err_msg=path)


def test_other_settings_in_one_process_end_both(folder: Path) -> None:
    with start(folder, folder / "unlike", [], ["--seed=1"]) as group:
        assert group.end() == [1, 1]
        for index in range(2):
            line = group.said(index).splitlines()[-1]
            assert line.startswith("gotr1: error: process 1 has another configuration than")
    assert not (folder / "unlike").exists()
