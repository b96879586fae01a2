"""Ctrl-C while a judge waits for a server that does not answer: in a command and in a notebook."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from judge_server import Server, say

from gotr1_jax.vlm_engine.base import Answer, Question
from gotr1_jax.vlm_engine.config import HttpConfig
from gotr1_jax.vlm_engine.http import HttpEngine


def slow_engine(server: Server) -> HttpEngine:
    """It would wait for minutes."""
    return HttpEngine(HttpConfig(server.url, "judge-7b", concurrency=4, timeout=60.0))


def interrupt_at(number: int, server_ended: Callable[[], threading.Event]) -> Any:
    """Answers the requests before `number`; from then on none, and the user presses Ctrl-C."""

    def behave(handler: BaseHTTPRequestHandler, now: int, body: Any) -> None:
        if now < number:
            say(handler, "fine")
            return
        if now == number:
            os.kill(os.getpid(), signal.SIGINT)
        server_ended().wait(60)

    return behave


@pytest.mark.parametrize("number", [1, 5])
def test_ctrl_c_ends_the_waiting_for_a_slow_server(number: int) -> None:
    """At the first question and with several under way; each try alone would take a minute."""
    questions = [Question("score", (), "", f"question {i}", 9) for i in range(40)]
    with Server(interrupt_at(number, lambda: server.ended)) as server:
        engine = slow_engine(server)
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            engine.answer(questions)
        assert time.monotonic() - start < 30


def test_ctrl_c_in_a_notebook_ends_the_waiting_too() -> None:
    """There the signal's handler is the kernel's, and another thread waits for the server."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    async def cell(engine: HttpEngine) -> list[Answer]:
        return engine.answer([Question("score", (), "", "text", 9)] * 9)

    old = signal.signal(signal.SIGINT, interrupt)
    try:
        with Server(interrupt_at(3, lambda: server.ended)) as server:
            engine = slow_engine(server)
            start = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                asyncio.run(cell(engine))
            assert time.monotonic() - start < 30
    finally:
        signal.signal(signal.SIGINT, old)
