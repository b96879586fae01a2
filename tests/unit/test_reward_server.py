"""The reward server as a judge, over real sockets: the one of the documentation, and bad ones.

No test waits for time to pass: pauses are recorded instead of slept.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judge_server import Server, send
from PIL import Image

from gotr1_jax.config import from_dict
from gotr1_jax.errors import ConfigError, InputError, RunError
from gotr1_jax.plan import parse_plan
from gotr1_jax.rewards.base import JudgeRequest
from gotr1_jax.rewards.composite import CompositeJudge
from gotr1_jax.rewards.factory import make_judge
from gotr1_jax.rewards.judge_config import JudgeConfig
from gotr1_jax.rewards.scorer_configs import RewardServerConfig
from gotr1_jax.rewards.server import RewardServerJudge
from gotr1_jax.rewards.server_protocol import ReplyError, read_reply
from gotr1_jax.rewards.terms import TermConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reward_server.md"
PLAN = "<|obj_start|>a red cube<|obj_end|> <|box_start|>(100,200),(500,700)<|box_end|> and more"
Behave = Callable[[BaseHTTPRequestHandler, int, Any], None]


def request(red: int = 255, group: int = 0, caption: str = "a red cube") -> JudgeRequest:
    image = np.zeros((4, 6, 3), np.uint8)
    image[..., 0] = red
    return JudgeRequest(caption, parse_plan(PLAN), image, group)


def judge_for(
    server: Server, terms: tuple[str, ...] = ("red",), **settings: Any
) -> tuple[RewardServerJudge, list[float]]:
    """A judge, and the list of the pauses that it would have made."""
    pauses: list[float] = []

    async def wait(seconds: float) -> None:
        pauses.append(seconds)

    values: dict[str, Any] = {"retries": 2, "timeout": 60.0, "batch_size": 2, **settings}
    config = RewardServerConfig(server.url, "m", **values)
    return RewardServerJudge(config, terms, "terms.red.http", wait), pauses


def replies(change: Callable[[list[float], int], Any], status: int = 200) -> Behave:
    """Answers `change(mean red of each image, number of the request)` as JSON or bytes."""

    def behave(handler: BaseHTTPRequestHandler, number: int, body: Any) -> None:
        answer = change([mean_red(sample) for sample in body["samples"]], number)
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        send(handler, status, data)

    return behave


def mean_red(sample: Any) -> float:
    image = Image.open(io.BytesIO(base64.b64decode(sample["image"])))
    return float(np.asarray(image)[..., 0].mean() / 255)


GOOD = replies(lambda reds, n: {"scores": reds})


# --- the documentation --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the documentation's server, run as it stands."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.splitlines()) <= 40
    file = tmp_path_factory.mktemp("server") / "reward_server.py"
    file.write_text(code, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(file), str(port)], stderr=subprocess.DEVNULL)
    yield f"http://127.0.0.1:{port}/score"
    process.kill()
    process.wait()


def test_the_documented_server_scores(documented: str, tmp_path: Path) -> None:
    """Red minus the mean of green and blue, over 255; the terms of a configuration, cached."""
    # It may still be starting: refused connections are tried again.
    http = {"url": documented, "model": "red", "retries": 60, "backoff": 0.5, "batch_size": 3}
    terms = {"mine": from_dict(TermConfig, {"http": http, "scale": 2.0, "meaning": "red"})}
    judge = make_judge(JudgeConfig("none"), tmp_path, terms=terms)
    assert judge.terms == ("mine",) and judge.identity == "reward server red revision=1"
    levels = (255, 0, 51, 255, 102)
    for _ in range(2):
        results = judge.judge([request(red) for red in levels])
        scores = [result.scores["mine"] for result in results]
        assert scores == pytest.approx([level / 255 for level in levels])
    white = replace(request(), image=np.full((5, 5, 3), 255, np.uint8))
    assert judge.judge([white])[0].scores == {"mine": pytest.approx(0)}
    kept = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert len(kept) == 5  # each different sample once
    assert judge.judge([]) == []


def test_the_documented_server_says_its_errors(documented: str) -> None:
    config = RewardServerConfig(documented, "red", retries=60, backoff=0.5)
    judge = RewardServerJudge(config, ("red",))
    broken = replace(request(), image=np.full((5, 5, 3), np.nan))
    good, bad = judge.judge([request(), broken])
    assert good.scores["red"] == 1 and math.isnan(bad.scores["red"])
    assert bad.rationale == "no score: the image has values that are not finite"


def test_what_a_model_returns_need_not_be_a_float() -> None:
    """numpy's and torch's numbers are scores too; anything else is an error that names it."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    documented: dict[str, Any] = {}
    exec(code.rpartition("ThreadingHTTPServer(")[0], documented)
    values = iter([np.float32(0.5), None, np.array(2.0), np.int64(3), "many", 0])
    documented["score"] = lambda caption, plan, boxes, image: next(values)
    documented["Handler"].log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), documented["Handler"])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = RewardServerConfig(f"http://127.0.0.1:{server.server_port}", "m", batch_size=2)
    judge = RewardServerJudge(config, ("red",))
    found = judge.judge([request(red) for red in range(2)])
    assert [result.scores["red"] for result in found] == [2, 3]
    (failed, _) = judge.judge([request(), request(0)])
    server.shutdown()
    server.server_close()
    assert "it says: ValueError: could not convert string to float: 'many'" in failed.rationale


# --- what is sent and what comes back -----------------------------------------------------------


def test_what_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORER_KEY", "secret")
    with Server(GOOD) as server:
        judge, pauses = judge_for(server, key_variable="SCORER_KEY")
        results = judge.judge([request(255, 3), request(0, 3), request(51, 4, "é")])
    assert [result.scores["red"] for result in results] == pytest.approx([1, 0, 0.2])
    first, *bodies = server.bodies
    assert len(first["samples"]) == 2  # its own, before the run's
    assert sorted(len(body["samples"]) for body in bodies) == [1, 2] and pauses == []
    assert {body["version"] for body in bodies} == {1} and {b["model"] for b in bodies} == {"m"}
    samples = {s["id"]: s for body in bodies for s in body["samples"]}
    assert sorted(samples) == ["0", "1", "2"]
    sent = samples["2"]
    assert (sent["caption"], sent["plan"], sent["group"]) == ("é", PLAN, 4)
    assert sent["boxes"] == [{"name": "a red cube", "box": [100, 200, 500, 700]}]
    image = Image.open(io.BytesIO(base64.b64decode(sent["image"])))
    assert image.format == "PNG" and image.size == (6, 4)
    assert all(headers["Authorization"] == "Bearer secret" for headers in server.headers)
    assert "secret" not in judge.identity and judge.identity == f"reward server m url={server.url}"


def test_several_scores_by_name_rationales_and_floats() -> None:
    def answer(reds: list[float], number: int) -> Any:
        scores = {"red": reds, "dark": [-1e4 * r for r in reds], "other": "ignored"}
        return {"version": 1, "scores": scores, "rationales": ["a\nb", None][: len(reds)], "x": 1}

    with Server(replies(answer)) as server:
        judge, _ = judge_for(server, ("red", "dark"), image_format="jpeg")
        image = request().image.astype(np.float32) - 0.2
        first, second = judge.judge([replace(request(), image=image), request(0)])
        named, _ = judge_for(server, ("night",), score="dark")
        (dark,) = named.judge([request()])
    assert first.scores == pytest.approx({"red": 1, "dark": -1e4}, abs=300)
    assert (first.rationale, second.rationale) == ("a b", "")
    assert judge.identity.endswith("images=jpeg") and named.identity.endswith("score=dark")
    assert dark.scores == {"night": pytest.approx(-1e4)}


def test_terms_of_one_server_are_asked_once() -> None:
    answer = replies(lambda reds, n: {"scores": {"a": reds, "b": [2 * r for r in reds]}})
    with Server(answer) as server:
        http = {"url": server.url, "model": "m"}
        terms = {
            "a": from_dict(TermConfig, {"http": http}),
            "b": from_dict(TermConfig, {"http": http, "weight": 0.5}),
            "low": from_dict(TermConfig, {"http": {**http, "score": "b"}, "clip": [0, 1]}),
        }
        together = make_judge(JudgeConfig("none"), terms=terms)
        assert not isinstance(together, CompositeJudge) and len(server.bodies) == 1
        assert together.identity == f"reward server m url={server.url} score=a,b,b"
        (result,) = together.judge([request()])
        assert result.scores == {"a": 1, "b": 2, "low": 2} and len(server.bodies) == 2
        terms["c"] = from_dict(TermConfig, {"http": {**http, "image_format": "jpeg", "score": "a"}})
        assert make_judge(JudgeConfig("none"), terms=terms).terms == ("a", "b", "low", "c")
        assert len(server.bodies) == 4  # another format is another server


def test_whole_groups_are_compared() -> None:
    def ranks(handler: BaseHTTPRequestHandler, number: int, body: Any) -> None:
        groups = [sample["group"] for sample in body["samples"]]
        assert len(set(groups)) == 1
        send(handler, 200, json.dumps({"scores": [groups[0] + len(groups)] * len(groups)}).encode())

    with Server(ranks) as server:
        judge, _ = judge_for(server, group_wise=True, batch_size=1)
        found = judge.judge([request(0, group) for group in (5, 7, 5, 7, 7)])
    assert judge.group_wise and [r.scores["red"] for r in found] == [7, 10, 7, 10, 10]


# --- wrong before the first step ----------------------------------------------------------------

WRONG: dict[str, tuple[Any, int, str]] = {
    "a page": (b"<html>not here</html>", 200, "not JSON.*<html>not here"),
    "empty": (b"", 200, "it is empty"),
    "a list": ([1, 2], 200, "not a JSON object"),
    "no scores": ({"score": [1, 2]}, 200, "the reply holds no scores; it holds score"),
    "one number": ({"scores": 0.5}, 200, "scores is 0.5; expected a list of numbers"),
    "too few": ({"scores": [1]}, 200, "scores has 1 values for 2 samples"),
    "too many": ({"scores": [1, 2, 3]}, 200, "scores has 3 values for 2 samples"),
    "a text": ({"scores": [1, "0.5"]}, 200, r'scores\[1\] is "0.5"; expected a number or null'),
    "a truth": ({"scores": [True, 1]}, 200, r"scores\[0\] is true"),
    "nested": ({"scores": [[1], [2]]}, 200, r"scores\[0\] is \[1\]"),
    "nan": (b'{"scores": [NaN, 1]}', 200, "not finite"),
    "infinite": (b'{"scores": [1, 1e999]}', 200, "not finite"),
    "too large": (b'{"scores": [1, 1e39]}', 200, "not finite"),
    "other name": ({"scores": {"ocr": [1, 2]}}, 200, "scores holds no 'red'; it holds ocr"),
    "other version": (
        {"version": 2, "scores": [1, 2]},
        200,
        "version 2 of the protocol, this is 1",
    ),
    "rationales": ({"scores": [1, 2], "rationales": ["a"]}, 200, "not a list of 2 texts"),
    "name": ({"scores": [1, 2], "name": ["a"]}, 200, r'name is \["a"\]'),
    "error": ({"error": "no GPU\nleft"}, 200, "it says: no GPU left"),
    "400": (b"bad\nmodel " + b"x" * 5000, 400, "status 400: bad model x+;"),
    "401": (b"", 401, "status 401; check key_file or key_variable of terms.red.http"),
    "404": (b"", 404, "status 404; check terms.red.http.url"),
    "moved": (b"", 307, "status 307; check terms.red.http.url"),
    "413": (b"", 413, "status 413; lower terms.red.http.batch_size"),
    "500": (b"oops", 500, "does not answer: status 500: oops; start it first"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_with_a_server_is_told_before_the_first_step(what: str) -> None:
    answer, status, message = WRONG[what]
    with Server(replies(lambda reds, n: answer, status)) as server:
        with pytest.raises(RunError, match=message) as error:
            judge_for(server)
        tries = 3 if status == 500 else 1
        assert len(server.bodies) == tries
    text = str(error.value)
    assert "\n" not in text and len(text) < 700 and f"reward server at {server.url}" in text


def test_nobody_listens_and_a_server_that_hangs() -> None:
    with Server(GOOD) as server:
        pass
    with pytest.raises(RunError, match="does not answer: ConnectionRefusedError.*start it first"):
        judge_for(server)

    def hang(handler: BaseHTTPRequestHandler, number: int, body: Any) -> None:
        server.ended.wait(60)

    with Server(hang) as server, pytest.raises(RunError, match="no answer within 0.05 s"):
        judge_for(server, timeout=0.05, retries=1)


def test_secrets_of_an_address_are_not_shown() -> None:
    config = RewardServerConfig("http://user:pass@127.0.0.1:9/x?key=abc", "m", retries=0)
    with pytest.raises(RunError, match="http://127.0.0.1:9/x ") as error:
        RewardServerJudge(config, ("red",))
    assert "pass" not in str(error.value) and "abc" not in str(error.value)


# --- failures later -----------------------------------------------------------------------------


def test_later_failures_are_missing_scores_with_their_cause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers: dict[int, Any] = {
        3: {"scores": [1]},
        4: {"error": "out of memory"},
        5: b'{"scores": [NaN, 0.5]}',
        6: {"scores": [None, 0.25]},
    }
    behave = replies(lambda reds, n: answers.get(n, {"scores": reds}))
    with Server(behave) as server:
        judge, pauses = judge_for(server, concurrency=1)
        found = judge.judge([request() for _ in range(10)])
    assert pauses == []
    scores = [result.scores["red"] for result in found]
    nan = math.nan
    np.testing.assert_array_equal(scores, [1, 1, nan, nan, nan, nan, nan, 0.5, nan, 0.25])
    causes = [result.rationale for result in found]
    assert causes[2] == causes[3] == "no score: scores has 1 values for 2 samples"
    assert causes[4] == "no score: it says: out of memory"
    assert causes[6] == "the server gave no finite number for red"
    assert causes[8] == "the server gave null for red" and causes[7] == causes[9] == ""
    assert judge.pop_metrics() == {"judge/no_answer_frac/red": 0.4} and judge.pop_metrics() == {}
    assert "no score for 4 of 10 samples" in caplog.text


def test_what_passes_is_tried_again() -> None:
    def behave(handler: BaseHTTPRequestHandler, number: int, body: Any) -> None:
        if number in (2, 3):
            return send(handler, 503, b"loading", Retry_After="7")
        return GOOD(handler, number, body)

    with Server(behave) as server:
        judge, pauses = judge_for(server)
        (result,) = judge.judge([request()])
    assert result.scores["red"] == 1 and len(pauses) == 2 and pauses[0] == 7


def test_a_server_that_scores_none_of_the_first_samples_ends_the_run() -> None:
    behave = replies(lambda reds, n: {"scores": reds} if n == 1 else {"error": "no"})
    with Server(behave) as server:
        judge, _ = judge_for(server)
        assert math.isnan(judge.judge([request()])[0].scores["red"])  # too few to tell
        with pytest.raises(RunError, match="none of its first 17 samples: it says: no"):
            judge.judge([request() for _ in range(16)])


def test_another_scorer_under_the_same_address_ends_the_run() -> None:
    behave = replies(lambda reds, n: {"scores": reds, "name": "r", "revision": min(n, 3)})
    with Server(behave) as server:
        judge, _ = judge_for(server)
        assert judge.identity == "reward server m r revision=1"
        with pytest.raises(RunError, match="was r 1 and is r 2 now"):
            judge.judge([request()])


def test_threads_and_processes_may_ask_at_once() -> None:
    gate = threading.Barrier(4)

    def behave(handler: BaseHTTPRequestHandler, number: int, body: Any) -> None:
        if number > 1:
            gate.wait(60)  # all four batches are under way at once
        GOOD(handler, number, body)

    with Server(behave) as server:
        judge, _ = judge_for(server, batch_size=1, concurrency=4)
        found = judge.judge([request(51 * i) for i in range(4)])
    assert [r.scores["red"] for r in found] == pytest.approx([0, 0.2, 0.4, 0.6])


# --- settings -----------------------------------------------------------------------------------


def test_settings_that_cannot_work() -> None:
    with pytest.raises(ConfigError, match="url is 'nowhere'"):
        RewardServerConfig("nowhere", "m")
    with pytest.raises(ConfigError, match="judge.reward_server.url.*and judge.terms"):
        from_dict(JudgeConfig, {"kind": "reward_server"})
    for settings, message in (
        ({"url": "http://a"}, "model"),
        ({"url": "http://a", "model": "m", "batch_size": 0}, "batch_size"),
        ({"url": "http://a", "model": "m", "image_format": "gif"}, "image_format"),
    ):
        with pytest.raises(InputError, match=message):
            from_dict(TermConfig, {"http": settings})
    server = {"url": "http://127.0.0.1:9", "model": "m", "score": "x"}
    with pytest.raises(ConfigError, match="reward_server.score names one score.*holds 2"):
        values = {"kind": "reward_server", "terms": ["a", "b"], "reward_server": server}
        from_dict(JudgeConfig, values)


@pytest.mark.parametrize("text", ["1e400", "-1e39", "9" * 60, "null"])
def test_numbers_beyond_float32_are_no_scores(text: str) -> None:
    (sample,) = read_reply(f'{{"scores": [{text}]}}'.encode(), ("a",), 1).samples
    assert math.isnan(sample.scores["a"]) and sample.not_finite == (text != "null")
    with pytest.raises(ReplyError, match="twice"):
        read_reply(b'{"scores": [1], "scores": [2]}', ("a",), 1)
