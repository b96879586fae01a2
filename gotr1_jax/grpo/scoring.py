"""Sampled rows of this process -> images, scores and records, while the caller goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from gotr1_jax.grpo.diversity import NUMBERS, plan_numbers
from gotr1_jax.grpo.reward_config import RewardConfig
from gotr1_jax.grpo.watched import WatchedJudge
from gotr1_jax.parallel.phases import phase
from gotr1_jax.plan import Plan, parse_plan
from gotr1_jax.rewards.base import Judge, JudgeRequest, JudgeResult, stack_scores
from gotr1_jax.rewards.combine import NO_TOTAL, combine, without_total
from gotr1_jax.rewards.judge_thread import Job, JudgeThread, begin_judging, results_of
from gotr1_jax.rewards.multimodal.quotations import looks_like_answer
from gotr1_jax.sampler.image_decoder import ImageDecoder
from gotr1_jax.tokenizers.janus import TextTokenizer
from gotr1_jax.trainer.samples import SampleRecord


@dataclass(frozen=True)
class RowsToScore:
    """N sampled rows as host arrays: plan ids, plan lengths, plan masks, image ids; and their
    captions, and the number of the group that each belongs to."""

    plan_ids_NT: np.ndarray
    plan_len_N: np.ndarray
    plan_mask_NT: np.ndarray
    image_ids_NU: np.ndarray
    captions: Sequence[str]
    group_N: np.ndarray


@dataclass(frozen=True)
class ScoringRows:
    """The scoring of N rows that has begun.

    Attributes:
      rows: gives the table's columns from `scores_BK` to `score_like_B`, the `plan_numbers` and the
        watched terms as (N, F), and the records.
      judging: the judge's part of it. requests: what the judge is given.
    """

    rows: Job[tuple[np.ndarray, list[SampleRecord]]]
    judging: Sequence[Job[list[JudgeResult]]]
    requests: Job[list[JudgeRequest]]

    @property
    def judge_seconds(self) -> float:
        """Seconds that the judge took."""
        return sum(job.seconds for job in self.judging)

    @property
    def concurrent_seconds(self) -> float:
        """Seconds that the thread of the judges worked for these rows."""
        judging = sum(job.concurrent for job in self.judging)
        return self.requests.concurrent + judging + self.rows.concurrent


@dataclass(frozen=True)
class RowScorer:
    """Decodes the images of sampled rows and asks the judge, then the watched judges."""

    image_decoder: ImageDecoder
    judge: Judge
    reward: RewardConfig
    tokenizer: TextTokenizer
    watched: tuple[WatchedJudge, ...] = ()

    def begin(self, rows: RowsToScore, thread: JudgeThread) -> ScoringRows:
        """Begins the scoring of some rows.

        All programs on the devices are dispatched before this returns, so their order is the same
        with and without a thread.
        """
        images: Job[Callable[[], list[np.ndarray]]] = Job()
        images.run(lambda: self.image_decoder.begin(rows.image_ids_NU))
        with phase("judge", len(rows.captions)):  # of what is judged here
            requests, judging = begin_judging(
                self.judge, lambda: self._requests(rows, images.result()()), thread
            )
        return ScoringRows(
            thread.submit(
                lambda: self._numbers(rows, requests.result(), results_of(self.judge, judging))
            ),
            judging,
            requests,
        )

    def _requests(self, rows: RowsToScore, images: list[np.ndarray]) -> list[JudgeRequest]:
        plans = self._parse_plans(rows.plan_ids_NT, rows.plan_len_N)
        samples = zip(rows.captions, plans, images, rows.group_N.tolist(), strict=True)
        return [JudgeRequest(*sample) for sample in samples]

    def _numbers(
        self, rows: RowsToScore, requests: list[JudgeRequest], results: list[JudgeResult]
    ) -> tuple[np.ndarray, list[SampleRecord]]:
        scores = stack_scores(results, self.judge.terms)
        total_N = combine(scores, self.reward.total, self.reward.terms)
        lost_N = without_total(scores, total_N, list(self.reward.expression.names))
        results = [
            replace(r, rationale=f"{r.rationale} | {NO_TOTAL}" if r.rationale else NO_TOTAL)
            if lost
            else r
            for r, lost in zip(results, lost_N)
        ]
        len_N, mask_NT = rows.plan_len_N, rows.plan_mask_NT
        plans = [request.plan for request in requests]
        plan_tokens_N = mask_NT.sum(axis=1)
        # A plan that is cut off ends with a BOI that was not sampled.
        truncated_N = (len_N == mask_NT.shape[1]) & (plan_tokens_N == len_N - 1)
        boxes_N = np.asarray([len(plan.boxes) for plan in plans])
        score_like_N = np.asarray([looks_like_answer(plan.text) for plan in plans])
        records = [
            SampleRecord.scored(request, result, float(total))
            for request, result, total in zip(requests, results, total_N)
        ]
        columns = [*scores.values(), total_N, plan_tokens_N, truncated_N, boxes_N, score_like_N]
        keys_NF = np.asarray([plan_numbers(plan) for plan in plans]).reshape(-1, NUMBERS)
        # After all that an update learns from.
        watched = [judge.score(requests)[:, None] for judge in self.watched]
        return np.hstack([np.stack(columns, axis=1), keys_NF, *watched]), records

    def _parse_plans(self, ids_NT: np.ndarray, len_N: np.ndarray) -> list[Plan]:
        """The plans of N rows; equal ones are decoded and parsed once."""
        read = cache(lambda ids: parse_plan(self.tokenizer.decode(ids)))
        return [read(tuple(ids[: n - 1].tolist())) for ids, n in zip(ids_NT, len_N)]
