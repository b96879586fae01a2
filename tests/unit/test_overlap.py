"""A step's parts are judged while others are drawn: in which threads, in which order, and how it
ends. Nothing here hangs on the clock but the bounds of what must not wait for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import httpx2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from judge_server import Server

from gotr1_jax.bench.overlap import (
    AT_ONCE,
    DRAW,
    IN_TURN,
    JUDGE,
    OverlapBench,
    slow_judge,
)
from gotr1_jax.config import from_dict
from gotr1_jax.data.pipeline import AheadBatches, caption_batches
from gotr1_jax.errors import ConfigError, RunError
from gotr1_jax.grpo import step_samples
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.grpo.prompts import Prompt, Prompts
from gotr1_jax.grpo.reward_config import RewardConfig
from gotr1_jax.grpo.rollout import PendingRollout, RolloutWorker, ScoredRollout
from gotr1_jax.grpo.step_samples import StepSamples
from gotr1_jax.grpo.update import Learner, policy_batches, rollout_logps
from gotr1_jax.parallel.mesh import make_mesh
from gotr1_jax.plan import parse_plan
from gotr1_jax.rewards import JudgeRequest, JudgeResult
from gotr1_jax.rewards.composite import CompositeJudge, SharedJudge
from gotr1_jax.rewards.factory import make_judge
from gotr1_jax.rewards.judge_config import JudgeConfig
from gotr1_jax.rewards.judge_thread import JudgeThread
from gotr1_jax.rewards.pairwise import PairwiseJudge, ScoreComparer
from gotr1_jax.rewards.python import PythonJudge
from gotr1_jax.rewards.terms import as_terms
from gotr1_jax.sampler.sampler import Rollout
from gotr1_jax.vlm_engine.config import HttpConfig
from gotr1_jax.vlm_engine.http_client import run_async

LONG = 60.0  # seconds after which a test has failed
CORRECTED = {"importance": {"kind": "token_truncate"}}
PROMPTS = Prompts(tuple(Prompt(i, f"caption {i}", (1, i)) for i in (7, 3, 5)), 16, 0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FakeRows:
    """The columns of a `TokenBatch` that scoring reads."""

    plan_ids_BT: Any
    plan_len_B: Any
    plan_mask_BT: Any
    image_ids_BU: Any


class FakeSampler:
    """Draws rows whose image id is the caption's index; tells what happens."""

    def __init__(self, log: list[str]) -> None:
        self.log, self.begun = log, [threading.Event() for _ in range(4)]
        self.wait: Callable[[int], object] = lambda part: None

    def __call__(self, params: Any, batch: Any, keys: Any, samples: int, images: int) -> Rollout:
        part = sum(event.is_set() for event in self.begun)
        self.log.append(f"draw {part}")
        self.begun[part].set()
        self.wait(part)
        rows = len(keys)
        caption = np.repeat(np.asarray(batch.ids_PC)[:, 1], samples)
        ids = jnp.asarray(caption * 10 + np.arange(rows) % samples, jnp.int32)[:, None]
        plans, length = jnp.zeros((rows, 3), jnp.int32), jnp.full(rows, 2, jnp.int32)
        tokens: Any = FakeRows(plans, length, plans == 0, ids)
        logp: Any = jnp.zeros((rows, 1))
        return Rollout(tokens, logp, logp, None)  # type: ignore[arg-type]


@dataclass
class Telling:
    """Scores an image by its pixels; tells when, and in which thread. `act` may wait or raise."""

    log: list[str]
    terms: tuple[str, ...] = ("pi",)
    act: Callable[[int], object] = lambda call: None
    needs_main_thread: bool = False
    calls: int = 0
    identity: str = "telling"

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        call, self.calls = self.calls, self.calls + 1
        self.log.append(f"judge {self.terms[0]} {call}")
        self.act(call)
        threads = {True: "main", False: "judge"}
        where = threads[threading.current_thread() is threading.main_thread()]
        return [
            JudgeResult({term: float(r.image[0, 0, 0]) for term in self.terms}, rationale=where)
            for r in requests
        ]


def make_worker(sampler: Any, judge: Any, captions_at_once: int = 1) -> RolloutWorker:
    decoder: Any = SimpleNamespace(
        begin=lambda ids: lambda: [np.full((2, 2, 3), i, np.uint8) for (i,) in ids]
    )
    tokenizer: Any = SimpleNamespace(decode=lambda ids: "a plan")
    reward = RewardConfig(terms=as_terms(judge.terms), total="sum")
    rows = 2 * captions_at_once
    mesh = make_mesh(data=1)
    return RolloutWorker(sampler, decoder, judge, reward, tokenizer, mesh, rows)


def draw(worker: RolloutWorker, thread: JudgeThread) -> ScoredRollout:
    return worker.finish(worker.begin(None, PROMPTS, 2, seed=0, step=1, thread=thread))


def assert_no_thread() -> None:
    assert "judge" not in [thread.name for thread in threading.enumerate()]


def held(event: threading.Event) -> None:
    assert event.wait(LONG), "what it waits for has not begun"


def test_a_part_is_judged_while_the_next_is_drawn() -> None:
    """The judge answers once the next part is being drawn, and that drawing waits for it."""
    log: list[str] = []
    sampler, judged = FakeSampler(log), [threading.Event() for _ in range(3)]

    def act(call: int) -> None:
        if call < 2:
            held(sampler.begun[call + 1])
        judged[call].set()

    sampler.wait = lambda part: held(judged[part - 1]) if part else None
    with JudgeThread() as thread:
        worker = make_worker(sampler, Telling(log, act=act))
        pending = worker.begin(None, PROMPTS, 2, seed=0, step=1, thread=thread)
        thread.wait()  # else a slow start of the thread would count as waiting for the judge
        scored = worker.finish(pending)
    assert scored.rewards_PG.tolist() == [[70, 71], [30, 31], [50, 51]]
    assert {record.rationale for record in scored.table.record_B} == {"judge"}
    assert 0 < scored.overlap_seconds <= scored.reward_seconds
    assert_no_thread()


def test_all_is_the_same_without_the_thread() -> None:
    tables, logs = [], []
    for is_concurrent in (True, False):
        log: list[str] = []
        with JudgeThread(is_concurrent) as thread:
            worker = make_worker(FakeSampler(log), Telling(log), captions_at_once=2)
            scored = draw(worker, thread)
        tables.append(scored)
        logs.append(log)
    one, two = tables
    np.testing.assert_array_equal(one.table.scores_BK, two.table.scores_BK)
    np.testing.assert_array_equal(one.rollout.rows.image_ids_BU, two.rollout.rows.image_ids_BU)
    assert [r.plan_text for r in one.table.record_B] == [r.plan_text for r in two.table.record_B]
    assert logs[1] == ["draw 0", "judge pi 0", "draw 1", "judge pi 1"]
    assert sorted(logs[0]) == sorted(logs[1]) and two.overlap_seconds == 0


def test_what_computes_on_the_devices_is_asked_in_the_main_thread() -> None:
    """In the order of the drawing, while the rest of the judge works in its thread."""
    log: list[str] = []
    last = threading.Event()
    # However far behind the thread is, nothing here waits for it.
    served = Telling([], ("sem",), act=lambda call: held(last))
    local = Telling(log, ("pi",), act=lambda call: call < 2 or last.set(), needs_main_thread=True)
    judge = CompositeJudge([(served, ("sem",)), (local, ("pi",))])
    with JudgeThread() as thread:
        scored = draw(make_worker(FakeSampler(log), judge), thread)
    assert log == [f"{what} {i}" for i in range(3) for what in ("draw", "judge pi")]
    assert {record.rationale for record in scored.table.record_B} == {"judge | main"}
    np.testing.assert_array_equal(scored.table.scores["sem"], scored.table.scores["pi"])
    # Whatever stands around such a judge is asked there too.
    shared = SharedJudge(local, 2)
    around = [shared, PairwiseJudge("win", ScoreComparer(shared, "pi"))]
    assert all(part.needs_main_thread for part in [judge, *around])


def test_a_function_can_ask_for_the_main_thread(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = """import threading
def score(requests):
    return [float(threading.current_thread() is threading.main_thread()) for _ in requests]
"""
    for name, more in (("free.py", ""), ("bound.py", "score.needs_main_thread = True\n")):
        (tmp_path / name).write_text(text + more)
    for name, wanted in (("free.py", 0), ("bound.py", 1)):
        judge = PythonJudge(f"{name}:score", ["pi"])
        with JudgeThread() as thread:
            scored = draw(make_worker(FakeSampler([]), judge), thread)
        assert set(scored.table.total_B) == {wanted}


def test_a_function_that_another_thread_may_not_call_is_told_what_to_do(tmp_path) -> None:
    text = """import sqlite3
store = sqlite3.connect(":memory:")
def score(requests):
    return [store.execute("select 1").fetchone()[0] for _ in requests]
"""
    (tmp_path / "stored.py").write_text(text)
    judge = PythonJudge(f"{tmp_path / 'stored.py'}:score", ["pi"])
    message = "ProgrammingError.*; needs_main_thread = True on the function"
    with pytest.raises(RunError, match=message), JudgeThread() as thread:
        draw(make_worker(FakeSampler([]), judge), thread)


def test_an_error_of_the_judge_ends_the_step_as_without_the_thread() -> None:
    for is_concurrent in (True, False):
        log: list[str] = []

        def act(call: int) -> None:
            raise RunError("the reward server refuses: status 401")

        sampler = FakeSampler(log)
        with (
            pytest.raises(RunError, match="the reward server refuses: status 401$"),
            JudgeThread(is_concurrent) as thread,
        ):
            draw(make_worker(sampler, Telling(log, act=act)), thread)
        assert_no_thread()
        if not is_concurrent:
            assert log == ["draw 0", "judge pi 0"]


def test_an_error_beside_the_judge_cancels_its_requests() -> None:
    """A server that never answers is not waited for, and what was not begun is dropped."""
    asked = threading.Event()
    with Server(lambda handler, number, body: (asked.set(), server.ended.wait(LONG))) as server:

        async def post() -> None:
            async with httpx2.AsyncClient(timeout=None) as client:
                await client.post(server.url, json={})

        sampler = FakeSampler([])

        def wait(part: int) -> None:
            if part == 1:
                held(asked)
                raise RunError("out of memory")

        sampler.wait = wait
        judge = Telling([], act=lambda call: run_async(post()))
        with pytest.raises(RunError, match="out of memory"), JudgeThread() as thread:
            draw(make_worker(sampler, judge), thread)
        assert_no_thread()
    assert judge.calls == 1


def test_log_probs_of_a_rollout_are_used_if_they_are_of_its_very_rows() -> None:
    asked: list[str] = []

    def token_logps(params: str, frozen: Any, rows: Any) -> Any:
        asked.append(params)
        sign = {"old": 1, "reference": -1}[params]
        return SimpleNamespace(logp_BN=sign * rows.image_ids_BU)

    learner = Learner(token_logps, None, reference="reference")
    sampler = FakeSampler([])
    scored = draw(make_worker(sampler, Telling([])), JudgeThread(False))
    advantages = SimpleNamespace(take=lambda part: np.zeros(len(part)))
    groups: Any = SimpleNamespace(scored=scored, row_mask_B=np.ones(6, bool), advantages=advantages)
    state: Any = SimpleNamespace(params="old")
    mesh = make_mesh(data=1)
    known = rollout_logps(scored.rollout, state, None, learner, 3, mesh)
    assert asked == ["reference", "old", "reference", "old", "reference"]
    batches = policy_batches(groups, state, None, learner, 3, mesh, known)
    # The first update starts at the old policy, and has its log-probs of its own.
    assert [bool(batch.is_first_B.all()) for batch in batches] == [True, False, False]
    assert [int(batch.old_logp_BN[0, 0]) for batch in batches[1:]] == [30, 50]
    assert [int(batch.ref_logp_BN[0, 0]) for batch in batches] == [-70, -30, -50]
    assert len(asked) == 5
    # Groups in another order are other rows.
    groups.scored = scored.take_groups(np.array([2, 1, 0]))
    batches = policy_batches(groups, state, None, learner, 3, mesh, known)
    assert [int(batch.old_logp_BN[0, 0]) for batch in batches[1:]] == [30, 70]
    assert len(asked) == 10


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"rollout": {"async_steps": 1, "refresh_every": 2}},
            "rollout.async_steps is 1 and refresh_every 2",
        ),
        (
            {"rollout": {"async_steps": 1}, "update": {"resample_rounds": 1}, "loss": CORRECTED},
            "rollout.async_steps is 1, so the next step is drawn before",
        ),
        (
            {"rollout": {"async_steps": 1}},
            "rollout.async_steps is 1, so samples are of an older policy, and loss.importance is",
        ),
    ],
)
def test_what_drawing_ahead_does_not_go_with(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        from_dict(GrpoConfig, {"run_dir": "run", **values})


def test_a_batch_that_was_taken_ahead_is_taken_again_by_a_resumed_run() -> None:
    def batches() -> AheadBatches:
        return AheadBatches(iter(caption_batches([f"caption {i}" for i in range(6)], 2, seed=0)))

    plain, ahead = batches(), batches()
    wanted = [next(plain).captions for _ in range(5)]
    assert next(ahead).captions == wanted[0]
    for step in (1, 2):
        ahead.reach()
        assert ahead.take_ahead().captions == wanted[step]
        resumed = batches()
        resumed.set_state(ahead.get_state())
        assert [next(resumed).captions for _ in range(2)] == wanted[step : step + 2]
    ahead.reach()  # the last step takes nothing ahead
    resumed = batches()
    resumed.set_state(ahead.get_state())
    assert next(resumed).captions == wanted[3] == next(ahead).captions


def test_a_step_that_draws_the_next_is_charged_for_what_it_began(monkeypatch) -> None:
    """Not for what the step before it began: the last step begins nothing."""
    charged: list[tuple[Any, float]] = []

    class Worker:
        judge = Telling([])

        def begin(self, *args: Any) -> PendingRollout:
            step = args[4]
            return PendingRollout(step, None, 2, (), np.zeros(0), 10.0**step)  # type: ignore[arg-type]

        def finish(self, pending: PendingRollout) -> None:
            charged.append((pending.rollout, pending.seconds))

    credit = SimpleNamespace(groups=None, batch=None)
    monkeypatch.setattr(step_samples, "make_credit", lambda config: credit)
    monkeypatch.setattr(step_samples, "rollout_logps", lambda *args: None)
    monkeypatch.setattr(step_samples, "sample_groups", lambda sample, *args: sample(0))
    values = {"run_dir": "run", "steps": 3, "rollout": {"async_steps": 1}, "loss": CORRECTED}
    config = from_dict(GrpoConfig, values)
    batches = AheadBatches(iter(caption_batches(["a", "b"], 2, seed=0)))
    job: Any = SimpleNamespace(
        config=config, worker=Worker(), batches=batches, prompts=PROMPTS,
        rollout_params=lambda state: None, sampling_params=lambda state: None,
        policy=SimpleNamespace(frozen=None), learner=None, mesh=None,
    )  # fmt: skip
    samples = StepSamples(job, JudgeThread(False))
    for step in (1, 2, 3):
        samples.draw(None, step)  # type: ignore[arg-type]
    assert charged == [(1, 110.0), (2, 1000.0), (3, 0.0)]


def test_the_measurement_says_what_it_timed() -> None:
    seconds = {DRAW: [2.0, 4.0], JUDGE: [3.0, 1.0], IN_TURN: [5.0, 5.0], AT_ONCE: [4.0, 4.0]}
    found = OverlapBench(16, 32, 0.05, seconds)
    assert found.gains == [1.25, 1.25] and found.over_longest == [4 / 3, 1]
    assert found.lines()[-1].endswith("the longer of drawing and judge: 1.17 (1.00 to 1.33)")
    with slow_judge(0.0) as url:
        server = HttpConfig(url=url, model="slow")
        judge = make_judge(JudgeConfig(kind="http", http=server, terms=("pi",)))
        plan = parse_plan("a plan")
        (result,) = judge.judge([JudgeRequest("a cat", plan, np.zeros((28, 28, 3), np.uint8))])
    assert result.scores["pi"] == 0.7
