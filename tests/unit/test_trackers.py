"""Trackers of experiments: what they are sent, once, and that their faults end nothing."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from tracker_stores import Row, fake_trackio, mlflow_rows, wandb_rows

from gotr1_jax import cli
from gotr1_jax.config import to_yaml
from gotr1_jax.errors import ConfigError, InputError
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.trainer.tracking import send
from gotr1_jax.trainer.tracking.config import TrackerConfig
from gotr1_jax.trainer.tracking.send import Tracking, check_trackers, make_tracking
from gotr1_jax.trainer.tracking.trackers import (
    TRACKERS,
    Outcome,
    TrackedImage,
    TrackedRun,
    Wandb,
    check_packages,
)

IMAGE = TrackedImage("samples/00_00", "a red circle", np.full((8, 8, 3), 200, np.uint8))
CONFIG = GrpoConfig(run_dir="run")


def track(config: GrpoConfig, root: Path, steps: Sequence[int], outcome: Outcome = "done") -> None:
    """One process of a run: its steps, those that are multiples of 4 with an image."""
    root.mkdir(exist_ok=True)
    tracking = make_tracking(config, send.RunDir(root), True)
    for step in steps:
        values = {"reward/total/mean": step / 8, "judge/failed_frac": math.nan}
        tracking.log(step, values, [IMAGE] * (step % 4 == 0))
    if outcome == "done":
        tracking.summarise(steps[-1], {"before": {"total": 0.5}, "patience": {"why": "text"}})
    tracking.close(outcome)


def expected(summary: str | None) -> list[Row]:
    """Steps 1 to 6, of which 3 and 4 were trained twice."""
    rows: list[Row] = [(s, {"reward/total/mean": s / 8}, int(s == 4)) for s in range(1, 7)]
    if summary == "a row":
        rows.append((6, {"summary/before/total": 0.5}, 0))
    elif summary == "in the last step":
        rows[-1][1]["summary/before/total"] = 0.5
    return rows


@pytest.mark.parametrize("name", TRACKERS)
def test_a_resumed_run_is_one_run_there_and_no_step_comes_twice(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read: dict[str, tuple[Callable[[], list[Row]], str | None]] = {
        "wandb": (lambda: wandb_rows(root), None),
        "mlflow": (lambda: mlflow_rows(root), "in the last step"),
        "trackio": (lambda: fake.rows(), "a row"),
    }
    fake, root = fake_trackio(monkeypatch), tmp_path / "run"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "")  # so that what is set goes again
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    config = replace(CONFIG, report_to=name, tracker=TrackerConfig(offline=True))
    check_packages(name)
    check_trackers(config)
    track(config, root, [1, 2, 3, 4], "stopped")
    first = json.loads((root / "trackers.json").read_text())[name]
    track(config, root, [3, 4, 5, 6])
    # The same command after the end: nothing is left to be sent.
    make_tracking(config, send.RunDir(root), True).close()
    stored = json.loads((root / "trackers.json").read_text())[name]
    assert stored == {**first, "step": 6, "summary": 6}
    rows, summary = read[name]
    # W&B's own process may still be writing.
    deadline = time.monotonic() + 60
    while rows() != expected(summary) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert rows() == expected(summary)


class Recorder:
    """A tracker of one run that fails where it is told to."""

    package: ClassVar[str] = "json"
    calls: ClassVar[list[Any]] = []
    failing: ClassVar[set[Any]] = set()

    def __init__(self, run: TrackedRun) -> None:
        self.id = run.id
        self._call(("begin", run.is_new))

    @classmethod
    def check(cls, config: TrackerConfig) -> None:
        pass

    def _call(self, what: Any) -> None:
        if what in self.failing or "all" in self.failing:
            raise ConnectionError(f"no network for {what}")
        self.calls.append(what)

    def log(self, step: int, values: Mapping[str, float], images: Sequence[Any]) -> None:
        self._call(step)

    def summarise(self, step: int, values: Mapping[str, float], images: Sequence[Any]) -> None:
        self._call(("summary", step))

    def finish(self, outcome: Outcome) -> None:
        self._call(outcome)


@pytest.fixture
def recorder() -> type[Recorder]:
    Recorder.calls, Recorder.failing = [], set()
    return Recorder


def start(root: Path, clock: Callable[[], float] = lambda: 0.0, **settings: Any) -> Tracking:
    run = TrackedRun("run", root, {}, TrackerConfig(**settings), "", True)
    return Tracking({"recorder": Recorder}, run, root / "trackers.json", clock=clock)


def test_a_tracker_that_fails_is_one_warning_and_is_tried_again_later(
    recorder, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    now = [0.0]
    tracking = start(tmp_path, lambda: now[0])
    recorder.failing = {2, ("begin", True)}
    worked = threading.Event()
    tracking._senders[0].send = _then(tracking._senders[0].send, worked)  # type: ignore[method-assign]
    # The run cannot begin there at first; step 2 fails, and is not tried again; 3 waits for it.
    for step, at in enumerate((0.0, 1.0, 61.0, 62.0, 200.0, 201.0), start=1):
        if step == 3:
            recorder.failing = {2}
        now[0] = at
        worked.clear()
        tracking.log(step, {"lr": 1.0})
        assert worked.wait(60)
    tracking.close()
    assert recorder.calls == [("begin", True), 1, 3, 4, 5, 6, "done"]
    lines = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(lines) == 1 and "no network for ('begin', True)" in lines[0]
    assert "metrics.jsonl has every step" in lines[0]


def _then(function: Callable[[Any], None], event: threading.Event) -> Callable[[Any], None]:
    def call(item: Any) -> None:
        function(item)
        event.set()

    return call


def test_a_tracker_that_never_works_ends_nothing(recorder, tmp_path: Path, caplog):
    recorder.failing = {"all"}
    track_all = start(tmp_path)
    for step in (1, 2, 3):
        track_all.log(step, {"lr": 1.0})
    track_all.close("failed")
    assert recorder.calls == [] and len(caplog.records) == 1
    assert not (tmp_path / "trackers.json").exists()


def test_a_tracker_that_hangs_is_left_behind(recorder, tmp_path: Path, caplog, monkeypatch):
    hung = threading.Event()
    monkeypatch.setattr(recorder, "_call", lambda *_: hung.wait(60))
    monkeypatch.setattr(send, "_LAST_WAIT", 0.05)
    tracking = start(tmp_path)
    tracking.log(1, {"lr": 1.0})
    tracking.close()
    assert [r.message for r in caplog.records] == [
        "recorder: not all was sent in 0 s; the run ends without it"
    ]
    hung.set()


def test_a_run_of_another_place_or_other_settings_is_a_new_one(recorder, tmp_path: Path):
    def once(**settings: Any) -> str:
        tracking = start(tmp_path, **settings)
        tracking.log(len(recorder.calls), {"lr": 1.0})
        tracking.close()
        return json.loads((tmp_path / "trackers.json").read_text())["recorder"]["id"]

    first = once()
    assert once() == first
    second = once(project="other")
    assert second != first and once(project="other") == second
    run = TrackedRun("run", tmp_path, {}, TrackerConfig(project="other"), "", True)
    again = Tracking({"recorder": Recorder}, run, tmp_path / "trackers.json", continues=False)
    again.log(1, {"lr": 1.0})
    again.close()
    assert json.loads((tmp_path / "trackers.json").read_text())["recorder"]["id"] != second
    begun = [is_new for what, is_new in filter(lambda c: isinstance(c, tuple), recorder.calls)]
    assert begun == [True, False, True, False, True]


@pytest.mark.parametrize("text", ["[]", "{", '{"recorder": 3}', '{"recorder": {"id": 5}}'])
def test_a_damaged_record_begins_a_new_run(text: str, recorder, tmp_path: Path, caplog):
    (tmp_path / "trackers.json").write_text(text)
    tracking = start(tmp_path)
    tracking.log(1, {"lr": 1.0})
    tracking.close()
    assert recorder.calls == [("begin", True), 1, "done"]
    assert "trackers.json" in caplog.text and "new run" in caplog.text


def test_a_missing_package_is_told_before_any_device(tmp_path: Path, monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "gotr1_jax.trainer.tracking.trackers.find_spec",
        lambda name: None if name == "wandb" else real(name),
    )
    for name in ("start_processes", "start_devices"):
        monkeypatch.setattr(f"gotr1_jax.parallel.startup.{name}", pytest.fail)
    file = tmp_path / "grpo.yaml"
    file.write_text(to_yaml(replace(CONFIG, run_dir=str(tmp_path / "run"))))
    words = ["train", "grpo", "--config", str(file), "--report_to", "wandb,tensorboard"]
    assert cli.run(words) == 2
    said = capsys.readouterr().err
    assert "package wandb is not installed; install the extra wandb" in said
    assert not (tmp_path / "run").exists()


def test_a_missing_key_is_told_before_the_run(monkeypatch: pytest.MonkeyPatch):
    import wandb

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    config = replace(CONFIG, report_to="wandb")
    with pytest.raises(InputError, match="no API key .*: run wandb login, set tracker.offline"):
        check_trackers(config)
    # What the check itself meets is no reason to end a run.
    monkeypatch.setattr(Wandb, "check", lambda _: 1 / 0)
    check_trackers(config)
    check_trackers(replace(config, report_to="none"))


def test_a_database_without_its_package_is_told_before_the_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gotr1_jax.trainer.tracking.trackers.find_spec", lambda _: None)
    server = TrackerConfig(server="sqlite:///mlflow.db")
    with pytest.raises(InputError, match="sqlite:///mlflow.db and needs SQLAlchemy"):
        check_trackers(replace(CONFIG, report_to="mlflow", tracker=server))


@pytest.mark.parametrize(
    "report_to, tracker, said",
    [
        (("wandb", "wandb"), {}, "report_to names wandb more than once"),
        (("none", "wandb"), {}, "report_to is none, wandb; none stands alone"),
        ((), {}, "report_to is empty; write none, or some of tensorboard, wandb"),
        ("tensorboard", {"server": "http://x"}, "names no tracker that has one"),
        (("wandb", "mlflow"), {"server": "http://x"}, "names wandb and mlflow; a server is that"),
    ],
)
def test_reports_that_contradict_themselves(report_to, tracker, said):
    with pytest.raises(ConfigError, match=said):
        replace(CONFIG, report_to=report_to, tracker=TrackerConfig(**tracker))
    with pytest.raises(ConfigError, match="offline is true, and server"):
        TrackerConfig(offline=True, server="http://x")
