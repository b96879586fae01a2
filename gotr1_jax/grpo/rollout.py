"""Rollouts: captions -> plans and images -> rewards.

Sampling is one computation on the whole mesh. Then each process parses the plans, decodes the
images and runs the judge for rows of its own, on its own devices. The processes exchange only the
scores and a few other numbers of each row.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gotr1_jax.grpo.diversity import NUMBERS, SampleKeys, image_distances
from gotr1_jax.grpo.per_modality import PerModality
from gotr1_jax.grpo.prompts import Prompts
from gotr1_jax.grpo.reward_config import RewardConfig
from gotr1_jax.grpo.scoring import RowScorer, RowsToScore, ScoringRows
from gotr1_jax.grpo.watched import WatchedJudge
from gotr1_jax.parallel.mesh import assigned_groups, assigned_rows, fetch_any_rows, fetch_rows
from gotr1_jax.parallel.phases import phase
from gotr1_jax.parallel.placement import concatenate_on_mesh, take_on_mesh
from gotr1_jax.parallel.processes import gather, raise_on_all_processes
from gotr1_jax.rewards.base import Judge, is_group_wise
from gotr1_jax.rewards.judge_thread import JudgeThread
from gotr1_jax.sampler.image_decoder import ImageDecoder
from gotr1_jax.sampler.sampler import Rollout, Sampler, row_keys
from gotr1_jax.tokenizers.janus import TextTokenizer
from gotr1_jax.trainer.samples import SampleRecord

AT_ONCE = JudgeThread(is_concurrent=False)
"""Without a thread: the judge is asked in its turn."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SampleTable:
    """Columns of B samples: numpy arrays (B,), the same in every process but for `record_B`.

    Attributes:
      terms: names of the K reward terms.
      caption_index_B: int64, `Prompt.index`.
      scores_BK: float32, of each term; NaN where a sample could not be scored.
      total_B: float32, the combined reward.
      plan_tokens_B: float32, plan tokens that the policy sampled.
      truncated_B: float32, 1 where the plan was cut off at the limit.
      boxes_B: float32, objects with a box in the plan.
      score_like_B: float32, 1 where the plan holds what looks like a judge's answer.
      record_B: object, a `SampleRecord` without advantage; None where another process scored it.
      keys: what the diversity of the samples is measured by; None where it is not.
      watched: float32 (B,) by the name of each watched term; only evaluations have any.
    """

    terms: tuple[str, ...] = field(metadata={"static": True})
    caption_index_B: np.ndarray
    scores_BK: np.ndarray
    total_B: np.ndarray
    plan_tokens_B: np.ndarray
    truncated_B: np.ndarray
    boxes_B: np.ndarray
    score_like_B: np.ndarray
    record_B: np.ndarray
    keys: SampleKeys | None = None
    watched: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, np.ndarray]:
        """The scores (B,) of each term."""
        return dict(zip(self.terms, self.scores_BK.T))


@dataclass(frozen=True)
class ScoredRollout:
    """B = P·G sampled and scored rows, caption-major.

    Attributes:
      rollout: tokens and log-probabilities, sharded over the rows of the mesh.
      table: scores and all else that is known of each sample.
      group_size: samples of a caption, G.
      judge_seconds: time of the judge in this process; reward_seconds: with decoding the images
        and waiting for the other processes; overlap_seconds: of these, those in which this process
        did something else too.
    """

    rollout: Rollout
    table: SampleTable
    group_size: int
    judge_seconds: float
    reward_seconds: float
    overlap_seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.table.total_B)

    @property
    def rewards_PG(self) -> np.ndarray:
        """The combined rewards, float32; NaN where a sample could not be scored."""
        return self.table.total_B.reshape(-1, self.group_size)

    def take_groups(self, index_P: np.ndarray) -> ScoredRollout:
        """The groups at `index_P`, in its order; on a mesh their rows must divide over it."""
        G = self.group_size
        if np.array_equal(index_P, np.arange(len(self) // G)):
            return self
        index_B = (index_P[:, None] * G + np.arange(G)).reshape(-1)
        return replace(
            self,
            rollout=take_on_mesh(self.rollout, index_B),
            table=jax.tree.map(lambda column_B: column_B[index_B], self.table),
        )

    def append(self, other: ScoredRollout) -> ScoredRollout:
        """The groups of both."""
        return ScoredRollout(
            concatenate_on_mesh([self.rollout, other.rollout]),
            jax.tree.map(lambda *columns: np.concatenate(columns), self.table, other.table),
            self.group_size,
            self.judge_seconds + other.judge_seconds,
            self.reward_seconds + other.reward_seconds,
            self.overlap_seconds + other.overlap_seconds,
        )

    def records(self, captions: int, advantages: PerModality | None = None) -> list[SampleRecord]:
        """The samples of the first `captions` captions that this process scored, for the report."""
        G = self.group_size
        if advantages is None:
            advantages = PerModality(*[np.zeros(len(self))] * 2)
        is_one = np.array_equal(advantages.text, advantages.image, equal_nan=True)
        return [
            replace(
                record,
                caption_index=row // G,
                sample_index=row % G,
                advantage=float(advantages.text[row]),
                image_advantage=None if is_one else float(advantages.image[row]),
                watched={name: float(v[row]) for name, v in self.table.watched.items()},
            )
            for row, record in enumerate(self.table.record_B[: max(captions, 0) * G])
            if record is not None
        ]


@dataclass(frozen=True)
class PendingRollout:
    """Sampled rows whose scoring has begun.

    Attributes:
      rollout, prompts, group_size: the rows, caption-major, and what they were drawn for.
      parts: the scoring of each part in this process. own_N: indices of the rows in them.
      seconds: that beginning it took.
    """

    rollout: Rollout
    prompts: Prompts
    group_size: int
    parts: tuple[ScoringRows, ...]
    own_N: np.ndarray
    seconds: float

    @property
    def judge_seconds(self) -> float:
        """Seconds of the judge."""
        return sum(part.judge_seconds for part in self.parts)

    @property
    def concurrent_seconds(self) -> float:
        """Seconds that the thread of the judge worked for it."""
        return sum(part.concurrent_seconds for part in self.parts)


@dataclass(frozen=True)
class RolloutWorker:
    """Turns captions into scored samples.

    Attributes:
      mesh: that of the sampler.
      rows_at_once: rows that are sampled at once; at least those of one caption.
      watched: judges of watched terms; none in the worker that training uses.
    """

    sampler: Sampler
    image_decoder: ImageDecoder
    judge: Judge
    reward: RewardConfig
    tokenizer: TextTokenizer
    mesh: Mesh
    rows_at_once: int
    watched: tuple[WatchedJudge, ...] = ()

    def __call__(
        self, params: Any, prompts: Prompts, group_size: int, seed: int, step: int, first: int = 0
    ) -> ScoredRollout:
        """`begin` and `finish`, one part after the other."""
        return self.finish(self.begin(params, prompts, group_size, seed, step, first))

    def begin(
        self, params: Any, prompts: Prompts, group_size: int, seed: int, step: int, first: int = 0,
        images_per_plan: int = 1, thread: JudgeThread = AT_ONCE,
    ) -> PendingRollout:  # fmt: skip
        """Samples as `sample`, and begins to score each part before the next is drawn.

        thread: where the judge works meanwhile. Each process scores rows of its own, for a
        group-wise judge those of whole captions; the parts, and the judge's calls, are the same
        whether there is a thread or not.
        """
        drawn: list[Rollout] = []
        parts: list[ScoringRows] = []
        own: list[np.ndarray] = []
        seconds = 0.0

        def score_last(first_row: int, part: Prompts) -> None:
            nonlocal seconds
            start = time.perf_counter()
            rows_N, sampled = self._own_rows(drawn[-1], part)
            own.append(first_row + rows_N)
            parts.append(self._scorer.begin(sampled, thread))
            seconds += time.perf_counter() - start

        for start, part, rollout in self._draw(
            params, prompts, group_size, seed, step, first, images_per_plan
        ):
            drawn.append(rollout)
            score_last(start * group_size, part)
            _raise_where_alone(parts)
        return PendingRollout(
            _joined(drawn), prompts, group_size, tuple(parts), np.concatenate(own), seconds
        )

    def finish(self, pending: PendingRollout) -> ScoredRollout:
        """What `begin` began; waits for the judge. All processes get the scores of all."""
        start = time.perf_counter()
        rollout, prompts, samples = pending.rollout, pending.prompts, pending.group_size
        own, B = pending.own_N, len(prompts) * samples
        with phase("judge", len(own)), raise_on_all_processes():
            scored = [part.rows.result() for part in pending.parts]
        waited = time.perf_counter() - start
        numbers_NF = np.concatenate([numbers for numbers, _ in scored])
        records = [record for _, records in scored for record in records]
        prompt_B = [prompt for prompt in prompts.prompts for _ in range(samples)]
        distance_B = image_distances(rollout.rows.image_ids_BU, samples, self.mesh)
        numbers_BF, K = _exchange(numbers_NF, own, B), len(self.judge.terms)
        numbers_BF, plans_BF, watched_BF = np.split(
            numbers_BF,
            [-NUMBERS - len(self.watched), numbers_BF.shape[1] - len(self.watched)],
            axis=1,
        )
        record_B = np.full(B, None, object)
        for row, record in zip(own, records):
            record_B[row] = record
        caption_index_B = np.asarray([prompt.index for prompt in prompt_B], np.int64)
        total_B, plan_tokens_B, truncated_B, boxes_B, score_like_B = numbers_BF[:, K:].T
        table = SampleTable(
            self.judge.terms, caption_index_B, numbers_BF[:, :K], total_B, plan_tokens_B,
            truncated_B, boxes_B, score_like_B, record_B, SampleKeys.of(plans_BF, distance_B),
            dict(zip((judge.name for judge in self.watched), watched_BF.T)),
        )  # fmt: skip
        overlap = max(pending.concurrent_seconds - waited, 0.0)
        seconds = pending.seconds + time.perf_counter() - start + overlap
        return ScoredRollout(rollout, table, samples, pending.judge_seconds, seconds, overlap)

    def sample(
        self, params: Any, prompts: Prompts, group_size: int, seed: int, step: int, first: int = 0,
        images_per_plan: int = 1,
    ) -> Rollout:  # fmt: skip
        """Sample `group_size` plans and images for each prompt, caption-major, then plan-major.

        Args:
          params: decode weights, what `sampler.prepare` makes.
          prompts: of a step; their indices choose the random streams.
          seed, step, first: of the random streams; `first` numbers a caption's first sample.
          images_per_plan: rows in a row that share one plan; it divides `group_size`.
        """
        drawn = self._draw(params, prompts, group_size, seed, step, first, images_per_plan)
        return _joined([rollout for _, _, rollout in drawn])

    def score(self, rollout: Rollout, prompts: Prompts) -> ScoredRollout:
        """Decode the images of a rollout of `prompts` and let the judge score every sample."""
        start = time.perf_counter()
        own, sampled = self._own_rows(rollout, prompts)
        part = self._scorer.begin(sampled, AT_ONCE)
        samples, seconds = _samples(rollout, prompts), time.perf_counter() - start
        return self.finish(PendingRollout(rollout, prompts, samples, (part,), own, seconds))

    def _draw(
        self, params: Any, prompts: Prompts, group_size: int, seed: int, step: int, first: int,
        images_per_plan: int,
    ) -> Iterator[tuple[int, Prompts, Rollout]]:  # fmt: skip
        """The parts that are drawn at once: place of the first prompt, prompts, rows."""
        captions_at_once = max(1, self.rows_at_once // group_size)
        for start in range(0, len(prompts), captions_at_once):
            part = prompts.take(range(start, min(start + captions_at_once, len(prompts))))
            with phase("rollout", len(part) * group_size):
                index_P = jnp.asarray([prompt.index for prompt in part.prompts], jnp.int32)
                keys_B = row_keys(seed, step, index_P, group_size, first)
                sampled = self.sampler(params, part.batch(), keys_B, group_size, images_per_plan)
                # Else the loops of the next part would get their memory before this one ends.
                jax.block_until_ready(sampled)
            yield start, part, sampled

    @property
    def _scorer(self) -> RowScorer:
        return RowScorer(self.image_decoder, self.judge, self.reward, self.tokenizer, self.watched)

    def _own_rows(self, rollout: Rollout, prompts: Prompts) -> tuple[np.ndarray, RowsToScore]:
        """Indices of the N rows that this process scores, and these rows."""
        rows, B = rollout.rows, rollout.rows.plan_len_B.shape[0]
        samples = _samples(rollout, prompts)
        whole = any(map(is_group_wise, (self.judge, *self.watched)))
        own = assigned_groups(B, samples) if whole else assigned_rows(B, self.mesh)
        fetch = fetch_any_rows if whole else fetch_rows
        group_N = own // samples
        captions = [prompts.prompts[group].caption for group in group_N]
        return own, RowsToScore(
            fetch(rows.plan_ids_BT, own), fetch(rows.plan_len_B, own),
            fetch(rows.plan_mask_BT, own), fetch(rows.image_ids_BU, own), captions, group_N,
        )  # fmt: skip


def _samples(rollout: Rollout, prompts: Prompts) -> int:
    return rollout.rows.plan_len_B.shape[0] // len(prompts)


def _joined(parts: Sequence[Rollout]) -> Rollout:
    return parts[0] if len(parts) == 1 else concatenate_on_mesh(parts)


def _raise_where_alone(parts: Sequence[ScoringRows]) -> None:
    """A judge's error ends the sampling at once, unless other processes would wait in it."""
    if jax.process_count() == 1:
        for part in parts:
            if part.rows.has_failed:
                part.rows.result()


def _exchange(numbers_NF: np.ndarray, own: np.ndarray, rows: int) -> np.ndarray:
    """Float32 (rows, F): the numbers of all rows, from what each process has of its rows `own`."""
    table = np.zeros((rows, numbers_NF.shape[1] + 1), np.float32)
    table[own, :-1], table[own, -1] = numbers_NF, 1.0
    tables = gather(table)
    owner_B = tables[:, :, -1].argmax(axis=0)
    return tables[owner_B, np.arange(rows), :-1]
