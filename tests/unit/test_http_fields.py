"""What servers take and where they put answers: optional fields, reasoning, refusals, parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np
import pytest
from judge_server import Server, send
from lookup_engine import LookupEngine

from gotr1_jax.errors import ConfigError, InputError
from gotr1_jax.rewards.multimodal.client import EngineClient, ParsedAnswer
from gotr1_jax.vlm_engine.base import Question, Scale, make_image_input
from gotr1_jax.vlm_engine.chat import read_completion
from gotr1_jax.vlm_engine.config import HttpConfig
from gotr1_jax.vlm_engine.http import HttpEngine

SEVEN = '{"score": 7, "reason": "fine"}'
QUESTION = Question("score", (), "a", "b", 32, Scale(0, 10, ""))
Reply = Callable[[dict[str, Any]], tuple[int, Any]]


def ask(
    reply: Reply, *questions: Question, **settings: Any
) -> tuple[list[ParsedAnswer], list[Any]]:
    """Parsed answers to questions, asked one after the other, and the bodies that were sent."""

    def behave(handler: BaseHTTPRequestHandler, number: int, body: Any) -> None:
        status, out = reply(body)
        send(handler, status, json.dumps(out).encode())

    async def wait(seconds: float) -> None:
        pass

    with Server(behave) as server:
        client = EngineClient(HttpEngine(HttpConfig(server.url, "m", retries=0, **settings), wait))
        answers = [client.ask([question])[0] for question in questions or (QUESTION,)]
    return answers, server.bodies


def completion(message: dict[str, Any], reason: str = "stop") -> tuple[int, Any]:
    return 200, {"choices": [{"index": 0, "message": message, "finish_reason": reason}]}


def error(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", **more}}


def openai(body: dict[str, Any]) -> tuple[int, Any]:
    """The newer models of OpenAI."""
    if "repetition_penalty" in body:
        return 400, error("Unrecognized request argument supplied: repetition_penalty")
    if "max_tokens" in body:
        text = ("Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                "'max_completion_tokens' instead.")  # fmt: skip
        return 400, error(text, param="max_tokens", code="unsupported_parameter")
    if "temperature" in body:
        text = ("Unsupported value: 'temperature' does not support 0 with this model. Only the "
                "default (1) value is supported.")  # fmt: skip
        return 400, error(text, param="temperature", code="unsupported_value")
    return completion({"content": SEVEN})


def gemini(body: dict[str, Any]) -> tuple[int, Any]:
    if "repetition_penalty" in body:
        text = (
            'Invalid JSON payload received. Unknown name "repetition_penalty": Cannot find field.'
        )
        return 400, [{"error": {"code": 400, "message": text, "status": "INVALID_ARGUMENT"}}]
    return completion({"content": SEVEN})


def mistral(body: dict[str, Any]) -> tuple[int, Any]:
    if "repetition_penalty" in body:
        where = ["body", "repetition_penalty"]
        detail = {"type": "extra_forbidden", "loc": where, "input": body,
                  "msg": "Extra inputs are not permitted"}  # fmt: skip
        return 422, {"detail": [detail]}
    return completion({"content": SEVEN})


@pytest.mark.parametrize(
    ("server", "tries", "left"),
    [
        (openai, 4, {"max_completion_tokens": 32}),
        (gemini, 2, {"max_tokens": 32, "temperature": 0}),
        (mistral, 2, {"max_tokens": 32, "temperature": 0}),
    ],
)
def test_fields_that_a_server_refuses_are_left_out(
    server: Reply, tries: int, left: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    other = Question("score", (), "a", "another", 32, Scale(0, 10, ""))
    answers, bodies = ask(server, QUESTION, other)
    assert [answer.score for answer in answers] == [7, 7]
    assert len(bodies) == tries + 1  # what was learned is kept
    assert {k: v for k, v in bodies[-1].items() if k not in ("model", "messages", "path")} == left
    assert bodies[0]["repetition_penalty"] == 1 and bodies[0]["temperature"] == 0
    assert "refuses" in caplog.text and "repetition_penalty" in caplog.text


def test_a_question_that_is_too_long_changes_no_field() -> None:
    text = ("'max_tokens' or 'max_completion_tokens' is too large: 32. This model's maximum "
            "context length is 40 tokens and more is not supported.")  # fmt: skip
    (answer,), bodies = ask(lambda body: (400, error(text, param="max_tokens")))
    assert answer.missing and "too large" in answer.reason and len(bodies) == 1


def test_settings_of_a_request() -> None:
    fields = {
        "repetition_penalty": None,
        "temperature": None,
        "length_field": "max_completion_tokens",
    }
    extra = '{"chat_template_kwargs": {"enable_thinking": false}}'
    _, (body,) = ask(lambda body: completion({"content": SEVEN}), **fields, extra=extra)
    assert not {"temperature", "repetition_penalty", "max_tokens"} & body.keys()
    assert body["max_completion_tokens"] == 32
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    for wrong in ("[1]", "{", '{"messages": []}'):
        with pytest.raises((ConfigError, InputError), match="extra"):
            HttpConfig("http://host/v1", "m", extra=wrong)


def test_a_setting_that_changes_answers_or_boxes_changes_the_identity() -> None:
    def identity(**settings: Any) -> str:
        return HttpEngine(HttpConfig("http://127.0.0.1:9/v1", "m", **settings)).identity

    changed = ({"repetition_penalty": None}, {"temperature": 0.5}, {"extra": '{"top_k": 1}'},
               {"coordinates": "thousandths"})  # fmt: skip
    assert len({identity(), *(identity(**one) for one in changed)}) == 5


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "reasoning_content": SEVEN},
        {"content": "", "reasoning": SEVEN},
        {"content": "\n", "reasoning_content": None, "reasoning": f"<think>4?</think>{SEVEN}"},
        {"content": [{"type": "text", "text": SEVEN}]},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": '{"score": 3}'}]},
                     {"type": "text", "text": SEVEN[:9]}, {"type": "text", "text": SEVEN[9:]}]},
        {"content": SEVEN, "reasoning_content": '{"score": 3}', "tool_calls": [], "refusal": None},
    ],
)  # fmt: skip
def test_an_answer_is_found_where_a_server_puts_it(message: dict[str, Any]) -> None:
    (answer,), bodies = ask(lambda body: completion({"role": "assistant", **message}))
    assert answer.score == 7 and len(bodies) == 1


@pytest.mark.parametrize(
    ("message", "finish", "cause"),
    [
        ({"content": None, "reasoning_content": "Let me see"}, "length",
         "the answer is empty, cut at 32 tokens (finish_reason length; 10 characters under "
         "reasoning_content): raise judge.questions.score_tokens"),
        ({"content": ""}, "length", "empty, cut at 32 tokens (finish_reason length): raise judge."),
        ({"content": SEVEN}, "MAX_TOKENS", "cut off, cut at 32 tokens: raise judge.questions."),
        ({"content": SEVEN}, "abort", "the server broke the answer off: finish_reason abort"),
        ({"content": "\ud83d"}, "stop", "unreadable answer"),
        ({"content": SEVEN[:20]}, "length", "cut off, cut at 32 tokens: raise judge.questions."),
        ({"content": None}, "stop", "empty (finish_reason stop)"),
        ({"content": None, "reasoning": SEVEN}, "content_filter", "30 characters under reasoning"),
        ({"content": None, "refusal": "I cannot help"}, "stop", "refuses: I cannot help"),
        ({"content": None, "tool_calls": [{"id": "1"}]}, "tool_calls", "calls a tool"),
        ({}, "stop", "empty"),
        ({"content": "<think>It is"}, "stop", "unreadable answer: the thought has no end"),
        ({"content": "Score: 3 or score: 5"}, "stop", "unreadable answer: two different answers"),
    ],
)  # fmt: skip
def test_why_there_is_no_answer(message: dict[str, Any], finish: str, cause: str) -> None:
    (answer,), _ = ask(lambda body: completion(message, finish))
    assert answer.failed and cause in answer.reason


def test_an_error_in_a_response_of_200_is_shown() -> None:
    (answer,), _ = ask(lambda body: (200, error("no provider is up")))
    assert answer.missing and "no provider is up" in answer.reason


SQUARE = make_image_input(np.zeros((384, 384, 3), np.uint8))  # sent as 392


@pytest.mark.parametrize(
    ("settings", "text", "expected"),
    [
        ({}, "[49, 98, 196, 392]", (49, 98, 196, 392)),
        ({}, "[0.125, 0.25, 0.5, 1]", (49, 98, 196, 392)),
        ({}, "[0.125, 0.25, 0.5, 1.0]", (49, 98, 196, 392)),
        ({}, "[300, 300, 420, 400]", (300, 300, 420, 400)),  # leaves the image a little
        ({}, "[125, 250, 500, 999]", None),  # thousandths
        ({}, "[600, 600, 900, 900]", None),
        ({}, '[{"bbox_2d": [0.1, 0.1, 0.5, 0.5]}, {"bbox_2d": [10, 10, 50, 50]}]', None),
        ({}, '[{"box_2d": [100, 20, 300, 200]}]', None),  # Gemini's order, y first
        ({}, "[0, 0, 0, 0]", (0, 0, 0, 0)),
        ({"coordinates": "thousandths"}, "[125, 250, 500, 999]", (125, 250, 500, 999)),
        ({"coordinates": "thousandths"}, "[0.125, 0.25, 0.5, 1]", (125, 250, 500, 1000)),
        ({"coordinates": "thousandths"}, "[1200, 100, 1500, 200]", None),
    ],
)
def test_boxes_in_other_units(
    settings: dict[str, Any], text: str, expected: tuple[float, ...] | None
) -> None:
    question = Question("boxes", (SQUARE,), "Find", "The thing: <<<cat>>>", 32)
    (answer,), _ = ask(lambda body: completion({"content": text}), question, **settings)
    assert answer.boxes == (None if expected is None else (expected,))
    if expected is None and "box_2d" not in text and "0.1" not in text:
        assert "judge.http.coordinates" in answer.reason


def test_pixels_read_as_thousandths_are_told(caplog: pytest.LogCaptureFixture) -> None:
    questions = [Question("boxes", (SQUARE,), "Find", f"<<<{i}>>>", 32) for i in range(64)]
    script = {f"{i}": [f"[{i}, 9, 392, 380]"] for i in range(64)}
    client = EngineClient(LookupEngine(script, (1000, 1000)))
    client.ask(questions[:63])
    assert not caplog.text
    client.ask(questions[63:])
    assert caplog.text.count("judge.http.coordinates") == 1


def test_half_of_a_surrogate_pair_is_no_reason_to_fail_later() -> None:
    body = b'{"choices": [{"message": {"content": "7 \\ud83d"}, "finish_reason": "stop"}]}'
    assert read_completion(body).text == "7 ?"
