"""Stopping: signals, the one path that saves, and the share of time that counts."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from gotr1_jax import cli
from gotr1_jax.errors import InputError, RunError, Stopped
from gotr1_jax.trainer.config import CheckpointConfig
from gotr1_jax.trainer.goodput import Goodput
from gotr1_jax.trainer.loop import Loop
from gotr1_jax.trainer.stopping import StopSignals

ROOT = str(Path(__file__).resolve().parents[2])


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class Recorder:
    """Stands in for `Checkpoints`: what was saved, whether it was waited for, what failed."""

    saved: dict[int, tuple[dict[str, Any], float | None]] = field(default_factory=dict)
    waited: int = 0
    error: Exception | None = None

    def save(
        self, step: int, tree: Any, meta: Mapping[str, Any], score: float | None = None,
        measure: str = "",
    ) -> None:  # fmt: skip
        self.saved[step] = (dict(meta), score)

    def wait(self) -> None:
        self.waited += 1

    def check(self) -> None:
        if self.error is not None:
            raise self.error

    def settle(self) -> None:
        self.waited += 1


STATE = {"a": jnp.zeros(2)}


@pytest.fixture(autouse=True)
def _signals_are_heard() -> Iterator[None]:
    """A shell's background job ignores SIGINT, and children inherit that."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


def run_loop(
    recorder: Recorder, config: CheckpointConfig, *, steps: int = 10, signals: Any = None,
    clock: Any = None, during: Any = lambda step: {},
) -> None:  # fmt: skip
    """Steps 1..steps; `during(step)` happens in a step and gives what `end_step` is told more."""
    signals = StopSignals() if signals is None else signals
    loop = Loop(recorder, config, steps, signals, clock=clock or Clock())  # type: ignore[arg-type]
    for step in loop.steps(0):
        more = during(step)
        loop.end_step(step, STATE, {"seed": 3}, **more)


def test_saves_every_so_many_steps_and_at_the_end():
    recorder = Recorder()
    run_loop(recorder, CheckpointConfig(every=4))
    assert list(recorder.saved) == [4, 8, 10]
    assert recorder.saved[4][0]["seed"] == 3
    # Saves run behind the steps; only the last one is waited for.
    assert recorder.waited == 1


def test_saves_after_so_many_minutes_without_a_save():
    recorder, clock = Recorder(), Clock()

    def during(step: int) -> dict[str, Any]:
        clock.seconds += 40
        return {}

    # 40 s a step, a minute: at the second step; the save of step 5 starts the minute again.
    run_loop(
        recorder, CheckpointConfig(every=5, every_minutes=1.0), steps=8, clock=clock, during=during
    )
    assert list(recorder.saved) == [2, 4, 5, 7, 8]
    recorder = Recorder()
    run_loop(recorder, CheckpointConfig(every=5), steps=8, clock=clock, during=during)
    assert list(recorder.saved) == [5, 8]


@pytest.mark.parametrize("keep_best", [True, False])
def test_an_evaluated_step_is_saved_with_its_score(keep_best):
    scores = {3: 0.5, 4: float("nan"), 7: 0.25}
    recorder = Recorder()
    run_loop(
        recorder,
        CheckpointConfig(every=10, keep_best=keep_best),
        during=lambda step: {"score": scores.get(step)},
    )
    found = {step: score for step, (_, score) in recorder.saved.items()}
    assert found == ({3: 0.5, 7: 0.25, 10: None} if keep_best else {10: None})


def test_a_failure_ends_the_run_when_its_step_is_saved():
    recorder = Recorder()
    with pytest.raises(RunError, match="stopped at step 3, which is saved: the judge is gone"):
        run_loop(
            recorder,
            CheckpointConfig(),
            during=lambda step: {"failure": "the judge is gone" if step == 3 else None},
        )
    assert list(recorder.saved) == [3] and recorder.waited == 1


def test_a_save_that_failed_is_said_at_the_next_step():
    recorder = Recorder()

    def during(step: int) -> dict[str, Any]:
        if step == 5:
            recorder.error = RunError("disk full")
        return {}

    seen: list[int] = []
    with pytest.raises(RunError, match="disk full"):
        run_loop(
            recorder,
            CheckpointConfig(every=4),
            during=lambda step: seen.append(step) or during(step),
        )
    assert seen == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_lets_the_step_end_and_saves_it(number):
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    recorder, finished = Recorder(), []

    def during(step: int) -> dict[str, Any]:
        if step == 3:
            signal.raise_signal(number)
        finished.append(step)
        return {}

    with (
        pytest.raises(Stopped, match="stopped at step 3, which is saved; the same command"),
        StopSignals() as signals,
        signals.finishing_steps(),
    ):
        run_loop(recorder, CheckpointConfig(), signals=signals, during=during)
    assert finished == [1, 2, 3] and list(recorder.saved) == [3] and recorder.waited == 1
    assert {n: signal.getsignal(n) for n in before} == before


def test_outside_of_the_steps_a_signal_ends_what_is_done():
    with pytest.raises(Stopped, match="stopped by SIGTERM"), StopSignals():
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the program went on")
    # One that came between the last step and the end of the steps.
    with pytest.raises(Stopped), StopSignals() as signals, signals.finishing_steps():
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("in_a_step", [True, False])
def test_a_second_signal_does_not_break_into_the_tidying_up(in_a_step):
    tidied: list[bool] = []
    with pytest.raises(Stopped), StopSignals() as signals:
        try:
            with signals.finishing_steps() if in_a_step else nullcontext():
                signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            tidied.append(True)
    assert tidied


def test_what_is_ignored_stays_ignored_and_threads_take_no_signals():
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert not signals.asked
    finally:
        signal.signal(signal.SIGINT, old)
    asked: list[bool] = []

    def enter() -> None:
        with StopSignals() as signals:
            asked.append(signals.asked)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert asked == [False]


# A child whose step never ends; its only import from here is the module of signals.
CHILD = """
    import os, time, logging
    from gotr1_jax.trainer.stopping import StopSignals
    logging.basicConfig(format="%(message)s")
    with StopSignals({grace}) as signals, signals.finishing_steps():
        signals.before_abandoning = lambda: print("the save has ended", flush=True)
        print("in a step", flush=True)
        while True:
            time.sleep(1000)
"""


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    source = textwrap.dedent(CHILD).format(grace=request.param)
    process = subprocess.Popen(
        [sys.executable, "-c", source], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stdout is not None and process.stdout.readline() == "in a step\n"
        yield process
        process.kill()


@pytest.mark.parametrize("child", [0.01, 0], indirect=True)
def test_a_step_longer_than_the_grace_is_abandoned(child):
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate()
    assert child.returncode == 75
    assert "SIGTERM: the run ends after this step" in err and "it is abandoned" in err
    # A save on its way is not thrown away.
    assert out == "the save has ended\n"


@pytest.mark.parametrize("child", [None], indirect=True)
def test_ctrl_c_after_a_signal_ends_the_process_at_once(child):
    child.send_signal(signal.SIGTERM)
    assert "Ctrl-C ends it at once" in child.stderr.readline()
    # The same notice once more.
    child.send_signal(signal.SIGTERM)
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    _, err = child.communicate()
    assert child.returncode == 128 + signal.SIGINT and "ended at once" in err


def test_the_command_exits_with_its_own_code(monkeypatch, capsys):
    def stop(_: Any) -> None:
        raise Stopped("stopped at step 3")

    monkeypatch.setattr(cli, "_dispatch", stop)
    assert cli.run(["train"]) == 75
    assert capsys.readouterr().err == "gotr1: stopped at step 3\n"


def test_goodput_is_the_time_in_steps_over_all_time():
    clock = Clock()
    goodput = Goodput(clock, clock)

    def step(seconds: float) -> float:
        goodput.begin()
        clock.seconds += seconds
        return goodput.end()

    clock.seconds += 10  # start-up
    assert step(30) == 0.0  # compiles; what a step takes is not known yet
    assert step(5) == pytest.approx(10 / 45)
    assert step(5) == pytest.approx(15 / 50)
    assert goodput.end() == pytest.approx(15 / 50)  # a step ends once
    saved = goodput.to_json()

    clock.seconds += 50  # lost steps, and a pause
    goodput = Goodput(clock, clock)
    goodput.resume(saved)
    assert goodput.end() == pytest.approx(15 / 100)
    step(30)
    assert step(10) == pytest.approx((15 + 20) / 140)


def test_goodput_goes_on_through_a_checkpoint():
    clock, recorder = Clock(), Recorder()
    signals = StopSignals()

    def new_loop() -> Loop:
        goodput = Goodput(clock, clock)
        return Loop(recorder, CheckpointConfig(every=3), 3, signals, goodput=goodput)  # type: ignore[arg-type]

    loop = new_loop()
    for step in loop.steps(0):
        clock.seconds += 5
        loop.end_step(step, STATE, {})
    clock.seconds += 15
    resumed = new_loop()
    assert resumed.metrics()["time/goodput"] == 0.0
    resumed.resume({})  # of a checkpoint without
    resumed.resume(recorder.saved[3][0])
    metrics = resumed.metrics()
    assert metrics["time/goodput"] == pytest.approx(15 / 30)
    assert metrics["memory/host_bytes"] > 1e7


@pytest.mark.parametrize("name", ["every_minutes", "grace_seconds"])
def test_times_below_zero_are_refused(name):
    CheckpointConfig(**{name: 0.5})
    with pytest.raises(InputError, match=f"{name} is -1"):
        CheckpointConfig(**{name: -1.0})
