"""Before a run depends on its judges, one question goes to each that answers from elsewhere."""

from __future__ import annotations

from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from judge_server import Server, say, send

from gotr1_jax.errors import RunError, UnreachableError
from gotr1_jax.rewards.base import introduce
from gotr1_jax.rewards.composite import CachedJudge, CompositeJudge, SharedJudge
from gotr1_jax.rewards.multimodal.comparison import QuestionComparer
from gotr1_jax.rewards.multimodal.questions import QuestionsConfig
from gotr1_jax.rewards.multimodal.terms import MultimodalJudge
from gotr1_jax.rewards.pairwise import PairwiseJudge, ScoreComparer
from gotr1_jax.rewards.shapes import ShapesJudge
from gotr1_jax.rewards.soft_tifa import SoftTifaConfig, SoftTifaJudge
from gotr1_jax.vlm_engine.answer_cache import AnswerCache
from gotr1_jax.vlm_engine.config import HttpConfig
from gotr1_jax.vlm_engine.http import HttpEngine


async def at_once(_seconds: float) -> None:
    """In place of a pause between tries."""


def engine(server: Server, **settings: Any) -> HttpEngine:
    return HttpEngine(HttpConfig(server.url, "m", **{"retries": 1, **settings}), at_once)


def test_each_judge_on_a_server_is_asked_once_wherever_it_stands(tmp_path: Path):
    cache, captions = AnswerCache(tmp_path), tmp_path / "questions.jsonl"
    captions.write_text('{"prompt": "a cat", "vqa_list": [["Is it a cat?", "yes"]]}')
    questions = SoftTifaConfig(str(captions))
    with Server(lambda handler, number, body: say(handler, "red")) as server:
        asked = MultimodalJudge(engine(server), ("sem", "pi"))
        compared = PairwiseJudge("better", QuestionComparer(engine(server)))
        scored = PairwiseJudge(
            "more", ScoreComparer(MultimodalJudge(engine(server), ("ri",)), "ri")
        )
        parts = [
            (SharedJudge(asked, 2), ("sem", "pi")), (CachedJudge(compared, cache), ("better",)),
            (scored, ("more",)), (ShapesJudge(("verdict",)), ("verdict",)),
            (SoftTifaJudge("sure", questions, engine(server), QuestionsConfig()), ("sure",)),
        ]  # fmt: skip
        introduce(CompositeJudge(parts))
        assert len(server.bodies) == 4
        content = server.bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["text", "image_url"]


def test_a_server_that_is_not_there_or_refuses_is_named_with_the_cause():
    with Server(lambda *_: None) as server:
        pass  # nobody listens any more
    with pytest.raises(UnreachableError, match=r"does not answer: .*ConnectionRefused.*start it"):
        introduce(MultimodalJudge(engine(server), ("sem",)))
    for status, kind, said in (
        (404, RunError, "refuses: status 404.*judge.http.model"),
        (500, UnreachableError, "does not answer: .*500.*see its log"),
    ):
        behave = partial(_send, status=status)
        with Server(behave) as server, pytest.raises(kind, match=said):
            introduce(MultimodalJudge(engine(server), ("sem",)))


def _send(handler: BaseHTTPRequestHandler, _number: int, _body: Any, status: int) -> None:
    send(handler, status, b"oops")
