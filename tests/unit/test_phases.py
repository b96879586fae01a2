"""The live line of what a command is doing."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import termios
import threading
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from gotr1_jax.parallel import phases
from gotr1_jax.parallel.phases import PhaseLine, phase


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def line() -> tuple[PhaseLine, Clock, io.StringIO]:
    clock, stream = Clock(), io.StringIO()
    return PhaseLine(clock, stream), clock, stream


def test_rate_and_rest_of_what_is_counted(line):
    shown, clock, _ = line
    assert shown.text() == ""
    with shown.enter("step", None, ""), shown.enter("rollout", 256, "sample") as rollout:
        clock.now = 4.0
        assert shown.text() == "step: rollout 256 samples  0:04"
        rollout.update(64)
        clock.now = 16.0
        assert shown.text() == "step: rollout 64/256 samples  0:16  4.0 samples/s  0:48 left"
        clock.now = 64.0
    # The next time something is known before anything is done; of half the samples, half of it.
    with shown.enter("rollout", 128, "sample"):
        clock.now = 70.0
        assert shown.text() == "rollout 128 samples  0:06  about 0:26 left"
    with shown.enter("judge", 1, "sample") as judge:
        judge.update(1)
        clock.now = 80.0
        assert shown.text() == "judge 1/1 sample  0:10  10.0 s/sample  0:00 left"
    with pytest.raises(RuntimeError), shown.enter("update", None, ""):
        raise RuntimeError("out of memory")
    assert shown.text() == ""


def test_a_long_phase_is_a_line_now_and_then_and_a_short_one_none(line):
    shown, clock, stream = line
    for _ in range(100):  # steps of a second
        with shown.enter("step", None, ""):
            clock.now += 1.0
            shown.tick()
    assert stream.getvalue() == ""
    with shown.enter("evaluating", 128, "caption") as evaluating:
        for _ in range(65):
            clock.now += 1.0
            evaluating.update(evaluating.done + 1)
            shown.tick()
    lines = stream.getvalue().splitlines()
    assert lines == [
        "evaluating 30/128 captions  0:30  1.0 captions/s  1:38 left",
        "evaluating 60/128 captions  1:00  1.0 captions/s  1:08 left",
    ]


def test_on_a_terminal_the_line_goes_with_its_phase():
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, 100))
    clock = Clock()
    with open(writer, "w") as stream:
        shown = PhaseLine(clock, stream)
        with shown.enter("update", None, ""):
            for clock.now in (1.0, 2.0):
                shown.tick()
        shown.tick()
        print("the next line", file=stream)
    text = ""
    with contextlib.suppress(OSError):  # the terminal's end is an error, once all is read
        while part := os.read(reader, 4096):
            text += part.decode()
    os.close(reader)
    assert text.index("update  0:01") < text.index("update  0:02")
    after = text[text.rindex("update  0:02") + len("update  0:02") :]
    assert after.strip(" \r\n") == "the next line" and "\r" in after.partition("the next")[0]


def test_a_compilation_is_named_while_it_lasts():
    """What JAX itself reports, of a program that is compiled here."""
    clock, texts = Clock(), []
    shown = PhaseLine(clock, io.StringIO())
    heard: list[str] = []

    def listen(event: str, duration: float, **what: str | int) -> None:
        shown.on_duration(event, duration, **what)
        clock.now += 1.0
        heard.append(event)
        texts.append(shown.text())

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with shown.enter("update", None, ""):
            jax.jit(lambda x: jnp.sin(x) * 3 + 0.123456)(jnp.ones(3))
            assert "compiling" not in shown.text()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert any("compiling for" in text for text in texts)
    assert heard.index("/jax/core/compile/jaxpr_to_mlir_module_duration") < heard.index(
        "/jax/core/compile/backend_compile_duration"
    )


def test_a_thread_shows_the_line_of_the_main_process(monkeypatch: pytest.MonkeyPatch):
    begun: list[Callable[[], None]] = []

    class Thread:
        def __init__(self, target: Callable[[], None], **_: object) -> None:
            self.start = lambda: begun.append(target)

    monkeypatch.setattr(phases, "_started", threading.Lock())
    monkeypatch.setattr(phases, "_LINE", PhaseLine(Clock(), io.StringIO()))
    monkeypatch.setattr(threading, "Thread", Thread)
    monkeypatch.setattr(jax.monitoring, "register_event_duration_secs_listener", begun.append)
    with phase("judge", 3) as judging:
        judging.update(2)
        assert phases._LINE.text().startswith("judge 2/3 samples")
    with phase("update"):
        assert phases._LINE.text().startswith("update")
    assert begun == [phases._LINE.on_duration, phases._tick_for_ever]
