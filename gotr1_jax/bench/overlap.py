"""What `rollout.overlap` gains: a step's samples of the shapes world, and a judge behind a server.

The embedded checkpoint draws 4 samples of each caption, a quarter of the captions at a time; a
server in this process answers two questions about each (`sem`, `pi`), each after a wait of known
length.
In every turn four things are timed: the drawing alone, the judge alone (with decoding), both one
after the other, and the judge while the rest is drawn. The scores must be the same.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jax
import numpy as np

from gotr1_jax.bench.timing import timed
from gotr1_jax.convert.find import find_checkpoint
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.grpo.prompts import Prompts, encode_captions
from gotr1_jax.grpo.rollout import RolloutWorker, ScoredRollout
from gotr1_jax.grpo.sampled import resolve_job
from gotr1_jax.grpo.setup import make_rollout_worker
from gotr1_jax.grpo.trained_policy import load_trained_policy
from gotr1_jax.parallel.mesh import make_mesh
from gotr1_jax.rewards.factory import make_judge
from gotr1_jax.rewards.judge_config import JudgeConfig
from gotr1_jax.rewards.judge_thread import JudgeThread
from gotr1_jax.rewards.terms import as_terms
from gotr1_jax.shapes.dataset import shapes_captions
from gotr1_jax.vlm_engine.config import HttpConfig

SAMPLES, PARTS, CONCURRENCY = 4, 4, 1
TERMS = ("sem", "pi")
DRAW, JUDGE, IN_TURN, AT_ONCE = "drawing", "judge", "one after the other", "overlapped"


@dataclass(frozen=True)
class OverlapBench:
    """Seconds of each of the four, for every turn.

    Attributes:
      samples, questions: of a step.
      latency: seconds that the server takes for a question.
      seconds: by what was timed.
    """

    samples: int
    questions: int
    latency: float
    seconds: dict[str, list[float]]

    @property
    def gains(self) -> list[float]:
        """Of each turn: time one after the other / time overlapped."""
        return [a / b for a, b in zip(self.seconds[IN_TURN], self.seconds[AT_ONCE])]

    @property
    def over_longest(self) -> list[float]:
        """Of each turn: time overlapped / the longer of drawing and judge alone."""
        longest = map(max, zip(self.seconds[DRAW], self.seconds[JUDGE]))
        return [b / a for a, b in zip(longest, self.seconds[AT_ONCE])]

    def lines(self) -> list[str]:
        """Text for the terminal."""
        turns = len(self.seconds[DRAW])
        lines = [
            f"overlap: {self.samples} samples in {PARTS} parts, {self.questions} questions of "
            f"{1e3 * self.latency:.0f} ms, {CONCURRENCY} at once; {turns} turns, median (range)"
        ]
        lines += [
            f"overlap: {name:19} {statistics.median(s):7.2f} s ({min(s):.2f} to {max(s):.2f})"
            for name, s in self.seconds.items()
        ]
        for name, ratios in (
            (f"{IN_TURN} / {AT_ONCE}", self.gains),
            (f"{AT_ONCE} / the longer of {DRAW} and {JUDGE}", self.over_longest),
        ):
            low, high = min(ratios), max(ratios)
            lines.append(
                f"overlap: {name}: {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})"
            )
        return lines


def bench_overlap(captions: int, repeats: int, latency: float) -> OverlapBench:
    """Times a step of `captions` captions, rounded up to a multiple of `PARTS`."""
    captions = -(-captions // PARTS) * PARTS
    with slow_judge(latency) as url:
        worker, params, prompts = _make_step(captions, url)
        drawn = worker.sample(params, prompts, SAMPLES, 0, 0)

        def step(thread: JudgeThread) -> ScoredRollout:
            return worker.finish(worker.begin(params, prompts, SAMPLES, 0, 0, thread=thread))

        with JudgeThread() as thread:
            runs: dict[str, Callable[[], Any]] = {
                DRAW: lambda: worker.sample(params, prompts, SAMPLES, 0, 0),
                JUDGE: lambda: worker.score(drawn, prompts),
                IN_TURN: lambda: step(JudgeThread(is_concurrent=False)),
                AT_ONCE: lambda: step(thread),
            }
            scores = [runs[name]().table.scores_BK for name in (IN_TURN, AT_ONCE)]  # compiles
            np.testing.assert_array_equal(*scores)
            seconds: dict[str, list[float]] = {name: [] for name in runs}
            for turn in range(repeats):
                for name, run in runs.items():
                    seconds[name].append(timed(f"{name}, turn {turn + 1} of {repeats}", run))
    samples = captions * SAMPLES
    return OverlapBench(samples, samples * len(TERMS), latency, seconds)


def _make_step(captions: int, url: str) -> tuple[RolloutWorker, Any, Prompts]:
    """A worker on one device with its weights, and the captions of a step."""
    config = resolve_job(GrpoConfig(run_dir="unused"))
    at_once = captions // PARTS
    rollout = replace(
        config.rollout, captions_per_step=captions, captions_at_once=at_once,
        samples_per_caption=SAMPLES, decode_batch=at_once * SAMPLES,
    )  # fmt: skip
    update = replace(config.update, micro_batch=captions * SAMPLES)
    server = HttpConfig(url=url, model="slow", concurrency=CONCURRENCY)
    judge = JudgeConfig(kind="http", http=server, terms=TERMS)
    reward = replace(config.reward, terms=as_terms(TERMS), total="sum")
    config = replace(config, rollout=rollout, update=update, judge=judge, reward=reward)
    mesh = make_mesh(devices=jax.devices()[:1])
    policy, checkpoint = load_trained_policy(
        config.policy, find_checkpoint(config.policy.init), mesh
    )
    worker = make_rollout_worker(config, policy, checkpoint, make_judge(judge), mesh)
    prompts = encode_captions(
        shapes_captions("train", captions, config.seed), checkpoint.tokenizer,
        config.policy.prompt_template, config.policy.max_prompt_tokens,
    )  # fmt: skip
    return worker, worker.sampler.prepare(policy.whole(policy.trained)), prompts


@contextmanager
def slow_judge(latency: float) -> Iterator[str]:
    """The address of a server of chats that answers every question with a score, after a wait."""
    answer = {"message": {"role": "assistant", "content": '{"score": 7}'}, "finish_reason": "stop"}
    body = json.dumps({"choices": [answer]}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(latency)
            self._send(200, body)

        def do_GET(self) -> None:
            self._send(404, b"{}")

        def _send(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        serving.join()
