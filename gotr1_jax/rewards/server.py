"""Any scorer behind HTTP as a judge: PickScore, ImageReward, HPSv3, ... in a process of their own.

One POST for a batch of samples (`server_protocol`, docs/reward_server.md). A sample that the server
does not score is NaN, with the cause as its rationale. When the judge is made it sends two samples
of its own: whatever is wrong with address, key, protocol or scorer is an error before a run's first
step, and only later failures are missing scores.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import httpx2
import numpy as np

from gotr1_jax.errors import RunError, UnreachableError
from gotr1_jax.plan import parse_plan
from gotr1_jax.rewards.base import (
    NOT_FINITE,
    JudgeRequest,
    JudgeResult,
    group_places,
    to_uint8,
)
from gotr1_jax.rewards.scorer_configs import RewardServerConfig
from gotr1_jax.rewards.server_protocol import (
    Reply,
    ReplyError,
    SampleScores,
    read_reply,
    request_body,
)
from gotr1_jax.vlm_engine.http_client import HttpClient, RefusedError, TransientError, run_async

_log = logging.getLogger(__name__)
_FIRST = 16  # samples; a server that scores none of the first so many ends the run
_ADDRESS = "check {section}.url, which is the whole address of the scorer"
_HINTS = {
    401: "check key_file or key_variable of {section}",
    403: "check key_file or key_variable of {section}",
    404: _ADDRESS,
    405: _ADDRESS,
    413: "lower {section}.batch_size",
}


@dataclass(frozen=True)
class _Failure:
    """A batch without any score."""

    reason: str


class RewardServerJudge:
    """Scores terms through a server; its scores may have any range.

    Attributes:
        terms: the names of the scores here.
        group_wise: whether the server compares the samples of a caption; it then gets them in one
            request.
        identity: the scorer by the configuration's name and what the server says of itself; its
            address where it says nothing.
    """

    def __init__(
        self,
        config: RewardServerConfig,
        terms: Sequence[str] | Mapping[str, str],
        section: str = "judge.reward_server",
        wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Asks the server about two samples.

        Args:
          config: the server.
          terms: names of the scores, which are the server's too unless config.score is given; or a
            mapping from names to those of the server.
          section: of the configuration, for messages.
          wait: awaited with seconds between tries.

        InputError where address or key cannot be used; UnreachableError where the server does not
        answer; RunError where it refuses, or answers something else than scores.
        """
        self.terms: tuple[str, ...] = tuple(terms)
        self.group_wise = config.group_wise
        # To each term the server's name of it; two terms may be the same score.
        self._names = (
            dict(terms) if isinstance(terms, Mapping) else {t: config.score or t for t in terms}
        )
        self._config, self._section = config, section
        self._http = HttpClient(config, section, wait)
        self._address = _without_secrets(self._http.url)
        self._has_scored, self._num_failed_first = False, 0
        self._num_asked = self._num_failed = 0
        self._served = self._introduce()
        self.identity = self._describe()

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        """One result for each request; an image is uint8, or float from 0 to 255, which is rounded.

        RunError where the server scores none of its first 16 samples, or is another one by now.
        """
        images = [to_uint8(request.image) for request in requests]
        sendable = {
            i: replace(requests[i], image=image)
            for i, image in enumerate(images)
            if image is not None
        }
        batches = self._batches(sendable)
        samples = [[sendable[i] for i in batch] for batch in batches]
        outcomes = run_async(self._ask_all(samples)) if batches else []
        found: dict[int, SampleScores | _Failure] = {}
        for batch, outcome in zip(batches, outcomes):
            if isinstance(outcome, _Failure):
                found |= dict.fromkeys(batch, outcome)
            else:
                found |= zip(batch, outcome.samples)
                self._has_scored = True
        self._count(list(found.values()))
        return [self._result(found.get(i)) for i in range(len(requests))]

    def pop_metrics(self) -> dict[str, float]:
        """`judge/no_answer_frac/TERM`: the share of samples that the server did not score."""
        asked, failed = self._num_asked, self._num_failed
        self._num_asked = self._num_failed = 0
        return {f"judge/no_answer_frac/{self.terms[0]}": failed / asked} if asked else {}

    def _introduce(self) -> Reply:
        """The reply to two samples of our own; RunError in place of any failure."""
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[16:48, 8:40] = (200, 40, 30)
        plan = parse_plan(
            "<|obj_start|>red square<|obj_end|> <|box_start|>(125,250),(625,750)<|box_end|>"
        )
        one = JudgeRequest("a red square", plan, pixels)
        # Two show that each gets a score of its own.
        count = 2 if self.group_wise else min(2, self._config.batch_size)
        samples = [one, replace(one, image=pixels[:, ::-1])][:count]
        try:
            reply = run_async(self._ask_once(samples))
        except RefusedError as refusal:
            hint = _hint(refusal.status).format(section=self._section)
            raise RunError(f"{self._who()} refuses: {refusal}; {hint}") from refusal
        except TransientError as failure:
            raise UnreachableError(
                f"{self._who()} does not answer: {failure}; start it first, check "
                f"{self._section}.url, or see its log"
            ) from failure
        except ReplyError as error:
            raise RunError(
                f"{self._who()} gives no scores: {error}; see docs/reward_server.md"
            ) from error
        if any(sample.not_finite for sample in reply.samples):
            raise RunError(
                f"{self._who()} gives a number that is not finite; it should give null where it "
                "has no score"
            )
        return reply

    def _who(self) -> str:
        return f"the reward server at {self._address} ({self._section})"

    def _describe(self) -> str:
        config, served = self._config, self._served
        names = dict.fromkeys(name for name in (config.model, served.name) if name)
        parts = ["reward server", *names]
        if served.revision:
            parts.append(f"revision={served.revision}")
        if not (served.name or served.revision):
            parts.append(f"url={self._address}")
        asked = tuple(self._names.values())
        if asked != self.terms:
            parts.append(f"score={','.join(asked)}")
        # What scores depend on besides; a usual setting leaves the identity as it is.
        if config.image_format != "png":
            parts.append(f"images={config.image_format}")
        return " ".join(parts)

    def _batches(self, requests: Mapping[int, JudgeRequest]) -> list[list[int]]:
        """The keys of samples in batches: at most `batch_size`, or a whole group each."""
        size, keys = self._config.batch_size, list(requests)
        if not self.group_wise:
            return [keys[i : i + size] for i in range(0, len(keys), size)]
        groups = group_places(request.group for request in requests.values())
        return [[keys[place] for place in places] for places in groups]

    async def _ask_all(self, batches: Sequence[Sequence[JudgeRequest]]) -> list[Reply | _Failure]:
        slots = asyncio.Semaphore(self._config.concurrency)

        async def ask(batch: Sequence[JudgeRequest], first_id: int) -> Reply | _Failure:
            async with slots:
                try:
                    return await self._ask_once(batch, first_id)
                except (RefusedError, TransientError, ReplyError) as error:
                    return _Failure(str(error))

        starts = np.cumsum([0, *map(len, batches)])
        replies = await asyncio.gather(*(ask(b, int(i)) for b, i in zip(batches, starts)))
        for reply in replies:
            if isinstance(reply, Reply):
                self._check_same(reply)
        return list(replies)

    async def _ask_once(self, batch: Sequence[JudgeRequest], first_id: int = 0) -> Reply:
        config = self._config
        body = await asyncio.to_thread(
            request_body, config.model, batch, first_id, config.image_format
        )
        async with self._http.session() as session:
            data = await self._http.retried(lambda: self._http.post(session, self._http.url, body))
        return read_reply(data, tuple(dict.fromkeys(self._names.values())), len(batch))

    def _check_same(self, reply: Reply) -> None:
        now, then = (reply.name, reply.revision), (self._served.name, self._served.revision)
        if now != then:
            raise RunError(
                f"{self._who()} was {' '.join(then).strip() or 'nameless'} and is "
                f"{' '.join(now).strip() or 'nameless'} now: its scores would not compare"
            )

    def _count(self, found: Sequence[SampleScores | _Failure]) -> None:
        """Notes failures, and ends a run whose server has not scored anything yet."""
        failures = [item.reason for item in found if isinstance(item, _Failure)]
        self._num_asked += len(found)
        self._num_failed += len(failures)
        if not failures:
            return
        reason, number = Counter(failures).most_common(1)[0]
        if not self._has_scored:
            self._num_failed_first += len(failures)
            if self._num_failed_first >= _FIRST:
                raise RunError(
                    f"{self._who()} scores none of its first {self._num_failed_first} samples: "
                    f"{reason}"
                )
        _log.warning(
            "%s: no score for %d of %d samples; %d times: %s", self._address, len(failures),
            len(found), number, reason,
        )  # fmt: skip

    def _result(self, found: SampleScores | _Failure | None) -> JudgeResult:
        if isinstance(found, SampleScores):
            scores = {term: found.scores[name] for term, name in self._names.items()}
            return JudgeResult(scores, rationale=found.rationale)
        reason = NOT_FINITE if found is None else found.reason
        return JudgeResult(dict.fromkeys(self.terms, math.nan), rationale=f"no score: {reason}")


def _hint(status: int) -> str:
    # A redirection, which is not followed: often a / at the end too much or too little.
    return _ADDRESS if 300 <= status < 400 else _HINTS.get(status, "see the server's log")


def _without_secrets(url: httpx2.URL) -> str:
    """The address without user, password and query, which may hold a key."""
    port = f":{url.port}" if url.port else ""
    host = f"[{url.host}]" if ":" in url.host else url.host
    return f"{url.scheme}://{host}{port}{url.path}"
