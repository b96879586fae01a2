"""The judge behind a server, over real sockets: a good one and every kind of bad one.

No test waits for time to pass: pauses are recorded instead of slept, and a server that never
answers is given up after a few hundredths of a second.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np
import pytest
from judge_server import Server, say, send
from lookup_engine import request
from PIL import Image

from gotr1_jax.config import from_dict
from gotr1_jax.errors import InputError, RunError
from gotr1_jax.rewards.multimodal.terms import MultimodalJudge
from gotr1_jax.vlm_engine.base import Answer, Question, Scale, make_image_input
from gotr1_jax.vlm_engine.config import HttpConfig
from gotr1_jax.vlm_engine.http import HttpEngine

QUESTION = Question("score", (), "ask ", "text", 32, Scale(0, 10, ""))


def engine_for(server: Server, **settings: Any) -> tuple[HttpEngine, list[float]]:
    """An engine, and the list of the pauses that it would have made."""
    pauses: list[float] = []
    values: dict[str, Any] = {"retries": 3, "backoff": 1.0, "timeout": 60.0, "concurrency": 4}
    config = HttpConfig(server.url, "judge-7b", **{**values, **settings})

    async def wait(seconds: float) -> None:
        pauses.append(seconds)

    return HttpEngine(config, wait), pauses


def test_what_is_sent_and_what_comes_back(tmp_path) -> None:
    (tmp_path / "key").write_text("secret\n")
    pixels = np.arange(64 * 100 * 3, dtype=np.uint8).reshape(64, 100, 3)
    question = Question("boxes", (make_image_input(pixels),), "Find ", "the cat", 77)
    with Server(lambda h, n, body: say(h, "[]", "length")) as server:
        engine, pauses = engine_for(server, key_file=str(tmp_path / "key"))
        (answer,) = engine.answer([question])
    assert (answer.text, answer.truncated, answer.error) == ("[]", True, "")
    (body,), (headers,) = server.bodies, server.headers
    assert headers["Authorization"] == "Bearer secret" and pauses == []
    assert body["path"] == "/v1/chat/completions" and body["model"] == "judge-7b"
    assert body["max_tokens"] == 77 and body["temperature"] == 0
    before, image, after = body["messages"][0]["content"]
    assert before == {"type": "text", "text": "Find "}
    assert after == {"type": "text", "text": "the cat"}
    head, data = image["image_url"]["url"].split(",")
    assert head == "data:image/png;base64"
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    # 64 and 100 to the nearest multiples of 28: coordinates refer to these.
    assert sent.size == (112, 56) and engine.image_size(64, 100) == (56, 112)
    assert "secret" not in engine.identity


def test_images_as_they_are_and_thousandths() -> None:
    with Server(lambda h, n, body: say(h, "[]")) as server:
        engine, _ = engine_for(server, multiple=1, coordinates="thousandths")
        assert engine.image_size(64, 100) == (1000, 1000)
        pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
        engine.answer([Question("boxes", (make_image_input(pixels),), "", "x", 9)])
    url = server.bodies[0]["messages"][0]["content"][0]["image_url"]["url"]
    sent = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
    np.testing.assert_array_equal(np.asarray(sent), pixels)  # not a pixel is lost


def test_two_images_are_sent_in_their_order() -> None:
    first, second = (np.full((4, 4, 3), shade, np.uint8) for shade in (10, 200))
    images = make_image_input(first), make_image_input(second)
    with Server(lambda h, n, body: say(h, '{"score": 2}')) as server:
        engine, _ = engine_for(server, multiple=1)
        engine.answer([Question("score", images, "Which? ", "x", 9)])
    content = server.bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["text", "image_url", "image_url", "text"]
    for part, pixels in zip(content[1:3], (first, second)):
        sent = base64.b64decode(part["image_url"]["url"].split(",")[1])
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sent))), pixels)


def test_answers_keep_the_order_of_questions_and_few_are_asked_at_once() -> None:
    gate, lock = threading.Barrier(3), threading.Lock()
    at_once = most = 0

    def behave(handler: BaseHTTPRequestHandler, number: int, body: Any) -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        if number > 1:  # the first goes alone
            gate.wait(60)  # only three together get through: they are under way at once
        with lock:
            at_once -= 1
        say(handler, body["messages"][0]["content"][-1]["text"])

    questions = [Question("score", (), "", f"question {i}", 9) for i in range(13)]
    with Server(behave) as server:
        engine, _ = engine_for(server, concurrency=3)
        answers = engine.answer(questions)
    assert [a.text for a in answers] == [q.text for q in questions]
    assert most == 3


def good_after(first: Callable[[BaseHTTPRequestHandler], None], times: int) -> Any:
    def behave(handler: BaseHTTPRequestHandler, number: int, body: Any) -> None:
        if number <= times:
            first(handler)
        else:
            say(handler, "fine")

    return behave


def close_at_once(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    handler.connection.close()


def close_in_the_middle(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"mess')
    handler.close_connection = True


def garbage(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"\x00\xffnothing like HTTP\r\n\r\n")
    handler.close_connection = True


MISBEHAVIOR: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {
    "500": lambda h: send(h, 500, b"out of memory"),
    "503": lambda h: send(h, 503, b""),
    "429": lambda h: send(h, 429, b"busy"),
    "closes": close_at_once,
    "closes in the middle": close_in_the_middle,
    "no HTTP": garbage,
    "no JSON": lambda h: send(h, 200, b"<html>"),
    "another JSON": lambda h: send(h, 200, b'{"choices": []}'),
    "a list as content": lambda h: send(h, 200, b'{"choices":[{"message":{"content":[1]}}]}'),
    "deep JSON": lambda h: send(h, 200, b"[" * 100_000),
    "no UTF-8": lambda h: send(h, 200, b'{"choices": "\xff"}'),
}


@pytest.mark.parametrize("what", MISBEHAVIOR)
def test_what_passes_is_tried_again_after_growing_pauses(what: str) -> None:
    with Server(good_after(MISBEHAVIOR[what], 2)) as server:
        engine, pauses = engine_for(server)
        (answer,) = engine.answer([QUESTION])
    assert answer.text == "fine" and len(server.bodies) == 3
    assert len(pauses) == 2 and 0.5 <= pauses[0] <= 1 <= pauses[1] <= 2


@pytest.mark.parametrize("what", MISBEHAVIOR)
def test_after_the_last_try_there_is_no_answer(what: str, caplog) -> None:
    with Server(good_after(MISBEHAVIOR[what], 99)) as server:
        engine, pauses = engine_for(server, retries=2)
        (answer,) = engine.answer([QUESTION])
    assert answer.error and answer.text == "" and len(server.bodies) == 3 and len(pauses) == 2
    assert "no answer to 1 of 1 questions" in caplog.text


def test_the_server_says_when_to_come_back() -> None:
    with Server(good_after(lambda h: send(h, 429, b"", Retry_After="7"), 1)) as server:
        engine, pauses = engine_for(server)
        assert engine.answer([QUESTION])[0].text == "fine"
    assert pauses == [7.0]
    with Server(good_after(lambda h: send(h, 429, b"", Retry_After="99999"), 1)) as server:
        engine, pauses = engine_for(server)
        engine.answer([QUESTION])
    assert pauses == [60.0]  # not for ever
    later = "Wed, 21 Oct 2065 07:28:00 GMT"
    with Server(good_after(lambda h: send(h, 503, b"", Retry_After=later), 1)) as server:
        engine, pauses = engine_for(server)
        engine.answer([QUESTION])
    assert 0.5 <= pauses[0] <= 1


def test_a_server_that_never_answers_and_one_that_drips_are_given_up() -> None:
    def hang(handler: BaseHTTPRequestHandler, number: int, body: Any) -> None:
        if body["messages"][0]["content"][-1]["text"] == "drip":
            handler.send_response(200)
            handler.send_header("Content-Length", "1000000")
            handler.end_headers()
            while not server.ended.wait(0.01):  # each byte is in time, the whole never is
                handler.wfile.write(b" ")
        server.ended.wait(60)

    with Server(hang) as server:
        engine, pauses = engine_for(server, timeout=0.2, retries=1)
        silent, drips = engine.answer([QUESTION, Question("boxes", (), "", "drip", 9)])
        assert not server.ended.is_set()
    assert silent.error == drips.error == "no answer within 0.2 s"
    assert len(pauses) == 2


def test_an_endless_answer_is_given_up() -> None:
    def flood(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):  # the client hangs up
            while True:
                handler.wfile.write(b" " * 2**20)

    with Server(good_after(flood, 1)) as server:
        engine, pauses = engine_for(server, retries=0)
        first, second = engine.answer([QUESTION, Question("boxes", (), "", "again", 9)])
    assert first.error == "a response of more than 8388608 bytes" and second.text == "fine"


def test_proxies_of_the_environment_are_not_used(monkeypatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with Server(lambda h, n, body: say(h, "fine")) as server:
        engine, _ = engine_for(server, retries=0)
        assert engine.answer([QUESTION])[0].text == "fine"


def test_in_a_notebook_with_a_running_loop() -> None:
    async def cell(engine: HttpEngine) -> list[Answer]:
        return engine.answer([QUESTION])

    with Server(lambda h, n, body: say(h, "fine")) as server:
        engine, _ = engine_for(server)
        assert asyncio.run(cell(engine))[0].text == "fine"


def test_nobody_listens() -> None:
    with Server(lambda *_: None) as server:
        pass
    engine, pauses = engine_for(server, retries=1)
    (answer,) = engine.answer([QUESTION])
    assert "ConnectionRefusedError" in answer.error and len(pauses) == 1


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "key"), (404, "judge.http.model"), (405, "url")]
)
def test_a_wrong_address_model_or_key_is_an_error_at_once(status: int, hint: str) -> None:
    with Server(lambda h, n, body: send(h, status, b'{"error": "go away"}')) as server:
        engine, pauses = engine_for(server)
        with pytest.raises(RunError, match=f"status {status}.*go away.*{hint}"):
            engine.answer([QUESTION])
    assert pauses == []


def test_later_refusals_are_missing_answers() -> None:
    def behave(handler: BaseHTTPRequestHandler, number: int, body: Any) -> None:
        say(handler, "fine") if number == 1 else send(handler, 404, b"")

    with Server(behave) as server:
        engine, pauses = engine_for(server)
        assert engine.answer([QUESTION])[0].text == "fine"
        assert engine.answer([QUESTION])[0].error == "status 404"
    assert pauses == []


def test_a_question_that_the_server_cannot_take_is_not_repeated() -> None:
    with Server(lambda h, n, body: send(h, 400, b"too many tokens")) as server:
        engine, pauses = engine_for(server)
        assert engine.answer([QUESTION])[0].error == "status 400: too many tokens"
    assert len(server.bodies) == 1 and pauses == []


@pytest.mark.parametrize("status", [400, 503])
def test_a_server_that_answers_nothing_ends_the_job(status: int) -> None:
    """Of thousands of questions; a bad first question alone, or few, are only missing answers."""
    questions = [Question("score", (), "", f"question {i}", 9) for i in range(40)]
    with Server(lambda h, n, body: send(h, status, b"no images here")) as server:
        engine, _ = engine_for(server, retries=0)
        assert all("no images here" in answer.error for answer in engine.answer(questions[:15]))
        with pytest.raises(RunError, match=f"none of its first 16.*status {status}: no images"):
            engine.answer(questions)
    assert len(server.bodies) == 16

    def behave(handler: BaseHTTPRequestHandler, number: int, body: Any) -> None:
        say(handler, "fine") if number == 16 else send(handler, status, b"")

    with Server(behave) as server:
        engine, _ = engine_for(server, retries=0)
        answers = engine.answer(questions)
    assert len(answers) == 40 and sum(answer.text == "fine" for answer in answers) == 1


def test_what_the_server_says_of_the_weights_is_part_of_the_identity() -> None:
    def identity(**said: Any) -> str:
        server.models = [{"id": "another", "root": "x"}, {"id": "judge-7b", **said}] if said else []
        return engine_for(server)[0].identity

    with Server(lambda *_: None) as server:
        plain = identity()
        may = identity(root="/models/may", created=1, permission=[{"id": "perm-1"}])
        again = identity(root="/models/may", created=2, permission=[{"id": "perm-2"}])
        june = identity(root="/models/june", created=3)
        adapter = identity(root="/models/may", parent="qwen")
        nothing = identity(root="judge-7b", created=4)
    assert plain == nothing == f"http {server.url} judge-7b multiple=28 repetition_penalty=1.0"
    assert may == again and len({plain, may, june, adapter}) == 4
    assert engine_for(server)[0].identity == plain  # nobody is there


def test_an_empty_content_is_an_empty_answer() -> None:
    with Server(lambda h, n, body: say(h, None)) as server:
        engine, _ = engine_for(server)
        answer = engine.answer([QUESTION])[0]
    assert (answer.text, answer.error) == ("", "")


def test_no_answer_is_nan_and_a_bad_one_is_asked_once_more() -> None:
    def behave(handler: BaseHTTPRequestHandler, number: int, body: Any) -> None:
        text = body["messages"][0]["content"][-1]["text"]
        if "then the decision" in text:
            send(handler, 500, b"")
        elif "could not be read" in text:
            say(handler, '{"score": 6}')
        else:
            say(handler, "lovely")

    with Server(behave) as server:
        engine, _ = engine_for(server, retries=1)
        (result,) = MultimodalJudge(engine, ("pi", "verdict")).judge([request("plan")])
    assert result.scores["pi"] == 0.6 and np.isnan(result.scores["verdict"])
    assert "verdict failed: status 500" in result.rationale


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "judge.http.url"),
        ({"url": "ftp://host/v1"}, "judge.http.url"),
        ({"url": "http://host:port/v1"}, "judge.http.url"),
        ({"url": "http://[::1/v1"}, "judge.http.url is"),
        ({"url": "http://ho st/v1"}, "judge.http.url is"),
        ({"url": "http://1.2.3.999/v1"}, "judge.http.url is"),
        ({"url": "http://host/v1\n"}, "judge.http.url is"),
        ({"url": "http://host/" + "v" * 70_000}, "judge.http.url is"),
        ({"url": "http://user:word@host/v1"}, None),
        ({"url": "http://[::1]:8000/v1"}, None),
        ({"url": ""}, "judge.http.url"),
        ({"model": ""}, "judge.http.model"),
        ({"concurrency": 0}, "concurrency"),
        ({"retries": -1}, "retries"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"multiple": 0}, "multiple"),
        ({"key_file": "a", "key_variable": "b"}, "one of them"),
        ({"key_file": "/nowhere/key"}, "cannot be read"),
        ({"key_variable": "GOTR1_TEST_NO_SUCH_KEY"}, "holds no key"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str | None) -> None:
    values = {"url": "http://host/v1", "model": "m", **settings}
    with contextlib.nullcontext() if message is None else pytest.raises(InputError, match=message):
        HttpEngine(from_dict(HttpConfig, values, "judge.http."))


def test_a_key_from_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("GOTR1_TEST_KEY", "from-the-environment")
    with Server(lambda h, n, body: say(h, "fine")) as server:
        engine, _ = engine_for(server, key_variable="GOTR1_TEST_KEY")
        engine.answer([QUESTION])
    assert server.headers[0]["Authorization"] == "Bearer from-the-environment"
