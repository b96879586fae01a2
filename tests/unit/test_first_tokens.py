"""Probabilities of right words from a server's logprobs: by hand, over HTTP, where none come."""

from __future__ import annotations

import json
import math
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judge_server import Server, send

from gotr1_jax.errors import InputError, RunError
from gotr1_jax.plan import parse_plan
from gotr1_jax.rewards.base import JudgeRequest, introduce
from gotr1_jax.rewards.multimodal import words
from gotr1_jax.rewards.multimodal.client import EngineClient
from gotr1_jax.rewards.multimodal.questions import QuestionsConfig
from gotr1_jax.rewards.soft_tifa import SoftTifaConfig, SoftTifaJudge
from gotr1_jax.vlm_engine.answer_cache import AnswerCache
from gotr1_jax.vlm_engine.config import HttpConfig
from gotr1_jax.vlm_engine.first_token import word_probability
from gotr1_jax.vlm_engine.http import HttpEngine

Chances = dict[str, float]


def choice(chances: Chances, **message: Any) -> dict[str, Any]:
    """A choice of a chat completion of one token, as vLLM and SGLang write it."""
    top = [{"token": t, "logprob": math.log(p), "bytes": [*t.encode()]} for t, p in chances.items()]
    first = {**max(top, key=lambda entry: entry["logprob"]), "top_logprobs": top}
    return {
        "index": 0,
        "message": {"role": "assistant", "content": first["token"], **message},
        "logprobs": {"content": [first]},
        "finish_reason": "stop",
    }


YES, SEVEN = words.yes_or_no("Yes"), words.number("7")
BY_HAND: list[tuple[Any, Chances, float]] = [
    (YES, {"Yes": 0.5, "No": 0.25, " yes": 0.125, "yes": 0.0625, "yes.": 0.01}, 0.6875),
    (YES, {"No": 0.9, "no": 0.05}, 0.0),
    # Parts of the word; a part with which a wrong answer begins too tells nothing.
    (YES, {"Ye": 0.25, "No": 0.5}, 0.25), (YES, {" ": 0.5, "\n": 0.3}, 0.0),
    (SEVEN, {"seven": 0.5, "7": 0.25, "six": 0.1, "se": 0.05, "s": 0.05}, 0.75),
    (SEVEN, {"Sev": 0.5, "S": 0.25, "six": 0.1}, 0.5), (SEVEN, {"six": 0.5, "s": 0.25}, 0.0),
    (words.letter("B", "ABCD"), {"B": 0.5, " B": 0.25, "A": 0.125, "Both": 0.1}, 0.75),
    (words.word_or_phrase("polar bear"), {"Polar": 0.5, "polar": 0.25, "P": 0.1, "A": 0.1}, 0.75),
    (YES, {"Yes": 0.75, " Yes": 0.2500001}, 1.0),  # rounding
]  # fmt: skip


@pytest.mark.parametrize("right, chances, wanted", BY_HAND)
def test_probabilities_by_hand(right: Any, chances: Chances, wanted: float) -> None:
    assert word_probability(choice(chances), right) == pytest.approx(wanted, abs=1e-6)


def test_what_is_as_good_as_impossible_counts_nothing() -> None:
    given = choice({"No": 0.9, "Yes": 0.1})
    for logp in (-math.inf, -9999.0, -(10**400)):
        given["logprobs"]["content"][0]["top_logprobs"][1]["logprob"] = logp
        assert word_probability(given, YES) == 0


def test_a_thousand_answers_of_whole_tokens_by_an_independent_sum() -> None:
    """Where every form is one token, the probability is the sum over the forms."""
    rng = np.random.default_rng(0)
    for _ in range(1000):
        number = str(rng.integers(0, 13))
        known = [*words.number(number).right, "many", "No", " twenty", "Several"]
        others = [f for n in range(13) for f in words.number(str(n)).right]
        tokens = [*rng.permutation(list(dict.fromkeys([*known, *others])))][:20]
        chances = dict(zip(map(str, tokens), rng.dirichlet(np.ones(len(tokens)) * 0.3) + 1e-12))
        wanted = sum(p for token, p in chances.items() if token in words.number(number).right)
        found = word_probability(choice(chances), words.number(number))
        assert found == pytest.approx(min(1, wanted), abs=1e-9)


NONE: list[tuple[Any, str]] = [
    ({"message": {"content": "Yes"}}, "has no logprobs"),
    ({"message": {"content": "Yes"}, "logprobs": None}, "has no logprobs"),
    ({"message": {}, "logprobs": {"content": []}}, "has no logprobs"),
    ({"message": {}, "logprobs": {"content": [{"token": "Yes", "logprob": -1}]}}, "no logprobs"),
    ({"message": {}, "logprobs": {"content": [{"token": "Yes", "logprob": math.nan,
                                               "top_logprobs": []}]}}, "cannot be read"),
    ({"message": {}, "logprobs": {"content": [{"token": "Yes", "logprob": 0,
                                               "top_logprobs": [3]}]}}, "cannot be read"),
    ({"message": {}, "logprobs": {"content": [{"token": "Yes", "logprob": 5,
                                               "top_logprobs": []}]}}, "cannot be read"),
    (choice({"<think>": 0.99, "Yes": 0.01}), "begins with '<think>', a thought"),
    (choice({"Okay": 0.9, "Yes": 0.1}, content=None, reasoning_content="Okay"), "a thought"),
    (choice({"Okay": 0.9, "Yes": 0.1}, content="", thinking="Okay"), "a thought"),
]  # fmt: skip


@pytest.mark.parametrize("given, problem", NONE)
def test_what_says_no_probability_is_no_zero(given: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        word_probability(given, YES)


def judge(tmp_path: Path, url: str, **settings: Any) -> SoftTifaJudge:
    line = {"prompt": "a red cat", "vqa_list": [["Is it red?", "Yes"], ["How many cats?", "one"]]}
    (tmp_path / "questions.jsonl").write_text(json.dumps(line) + "\n")
    config = SoftTifaConfig(questions=str(tmp_path / "questions.jsonl"), **settings)
    engine = HttpEngine(HttpConfig(url, "m", retries=0))
    return SoftTifaJudge("tifa", config, engine, QuestionsConfig(), AnswerCache(tmp_path / "kept"))


REQUEST = JudgeRequest("a red cat", parse_plan(""), np.zeros((8, 8, 3), np.uint8))


def test_soft_tifa_behind_a_server_with_logprobs(tmp_path: Path) -> None:
    def behave(handler: BaseHTTPRequestHandler, number: int, body: Any) -> None:
        sure, many = {"Yes": 0.48, "No": 0.5}, {"one": 0.5, "1": 0.25, "two": 0.2}
        chances = many if "How many" in str(body["messages"]) else sure
        usage = {"prompt_tokens": 9, "completion_tokens": 1}
        send(handler, 200, json.dumps({"choices": [choice(chances)], "usage": usage}).encode())

    with Server(behave) as server:
        tifa = judge(tmp_path, server.url, reading="expected")
        introduce(tifa)
        (found,) = tifa.judge([REQUEST])
        assert found.scores["tifa"] == pytest.approx(math.sqrt(0.48 * 0.75))
        assert "reading=expected" in tifa.identity
        metrics = tifa.pop_metrics()
        assert metrics["judge/soft_tifa/tifa/tokens_out"] == 2
        words_asked = [b for b in server.bodies if "logprobs" in b]
        assert all(b["max_tokens"] == 1 and b["top_logprobs"] == 20 for b in words_asked)
        assert len(server.bodies) == 4 and len(words_asked) == 3  # two of them to introduce it
        # Kept answers are not asked for again; texts are others.
        assert judge(tmp_path, server.url, reading="expected").judge([REQUEST]) == [found]
        assert len(server.bodies) == 4
        (as_text,) = judge(tmp_path, server.url, reading="text").judge([REQUEST])
        assert as_text.scores["tifa"] == 0 and len(server.bodies) > 4
        with pytest.raises(InputError, match="can only where one word answers .*; use 'text'"):
            EngineClient(HttpEngine(HttpConfig(server.url, "m")), expected=True)


@pytest.mark.parametrize("kind", ["ignored", "refused", "late"])
def test_a_server_without_logprobs_is_told(tmp_path: Path, kind: str) -> None:
    def behave(handler: BaseHTTPRequestHandler, number: int, body: Any) -> None:
        if kind == "refused" and "logprobs" in body:
            return send(handler, 400, b'{"error": {"message": "logprobs is not supported"}}')
        given = choice({"one" if "How many" in str(body["messages"]) else "Yes": 0.9, "No": 0.1})
        if kind == "ignored" or number > 1:
            del given["logprobs"]
        return send(handler, 200, json.dumps({"choices": [given]}).encode())

    with Server(behave) as server:
        tifa = judge(tmp_path, server.url, reading="expected")
        if kind == "late":  # one answer came with them: what comes without is no zero
            (found,) = tifa.judge([REQUEST])
            assert math.isnan(found.scores["tifa"]) and "has no logprobs" in found.rationale
            return
        for ask in (lambda: introduce(tifa), lambda: tifa.judge([REQUEST])):
            with pytest.raises(RunError, match="no probabilities of words: .* to text") as e:
                ask()
            assert "\n" not in str(e.value)
        (found,) = judge(tmp_path, server.url).judge([REQUEST])
        assert found.scores["tifa"] == 1  # as text
