"""Rollouts: captions -> plans and images -> rewards.

Sampling is one computation on the whole mesh. Then each process parses the plans, decodes the
images and runs the judge for rows of its own, on its own devices. The processes exchange only the
scores and a few other numbers of each row.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gotr1_jax.data.pipeline import pad_rows
from gotr1_jax.grpo.diversity import NUMBERS, SampleKeys, image_distances, plan_numbers
from gotr1_jax.grpo.per_modality import PerModality
from gotr1_jax.grpo.reward_config import RewardConfig
from gotr1_jax.grpo.watched import WatchedJudge
from gotr1_jax.parallel.mesh import assigned_groups, assigned_rows, fetch_any_rows, fetch_rows
from gotr1_jax.parallel.phases import phase
from gotr1_jax.parallel.placement import concatenate_on_mesh, take_on_mesh
from gotr1_jax.parallel.processes import gather, raise_on_all_processes
from gotr1_jax.plan import Plan, parse_plan
from gotr1_jax.rewards.base import Judge, JudgeRequest, is_group_wise, stack_scores
from gotr1_jax.rewards.combine import NO_TOTAL, combine, without_total
from gotr1_jax.rewards.multimodal.quotations import looks_like_answer
from gotr1_jax.sampler.image_decoder import ImageDecoder
from gotr1_jax.sampler.sampler import Rollout, Sampler, row_keys
from gotr1_jax.sampler.token_batch import PromptBatch
from gotr1_jax.tokenizers.janus import TextTokenizer
from gotr1_jax.trainer.samples import SampleRecord

PROMPT_MULTIPLE = 16


@dataclass(frozen=True)
class Prompt:
    """A caption, its place in the list of all captions, and the token ids of its prompt."""

    index: int
    caption: str
    ids: tuple[int, ...]  # BOS first


@dataclass(frozen=True)
class Prompts:
    """Prompts that are padded on the right to one width, with the pad token."""

    prompts: tuple[Prompt, ...]
    width: int
    pad: int

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def captions(self) -> tuple[str, ...]:
        return tuple(prompt.caption for prompt in self.prompts)

    def texts(self) -> Iterator[str]:
        """Caption and ids of each prompt, to compare between processes."""
        return (f"{prompt.caption}\0{list(prompt.ids)}" for prompt in self.prompts)

    def take(self, places: Sequence[int] | np.ndarray) -> Prompts:
        """The prompts at some places, with the width of all."""
        return replace(self, prompts=tuple(self.prompts[i] for i in places))

    def batch(self) -> PromptBatch:
        """The prompts as padded arrays."""
        ids_PC, len_P = pad_rows([list(p.ids) for p in self.prompts], self.width, self.pad)
        return PromptBatch(jnp.asarray(ids_PC), jnp.asarray(len_P))


def encode_captions(
    captions: Sequence[str], tokenizer: TextTokenizer, template: str, limit: int
) -> Prompts:
    """Encode every caption; InputError names the first that is empty or too long."""
    prompts = tuple(
        Prompt(index, caption, tuple(tokenizer.encode_prompt(caption, template, limit)))
        for index, caption in enumerate(captions)
    )
    longest = max(len(prompt.ids) for prompt in prompts)
    width = -(-longest // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
    return Prompts(prompts, width, tokenizer.specials.pad)


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
        and waiting for the other processes.
    """

    rollout: Rollout
    table: SampleTable
    group_size: int
    judge_seconds: float
    reward_seconds: float

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
        """`sample`, then `score`."""
        return self.score(self.sample(params, prompts, group_size, seed, step, first), prompts)

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
        parts, captions_at_once = [], max(1, self.rows_at_once // group_size)
        with phase("rollout", len(prompts) * group_size) as rollout:
            for start in range(0, len(prompts), captions_at_once):
                part = prompts.take(range(start, min(start + captions_at_once, len(prompts))))
                index_P = jnp.asarray([prompt.index for prompt in part.prompts], jnp.int32)
                keys_B = row_keys(seed, step, index_P, group_size, first)
                sampled = self.sampler(params, part.batch(), keys_B, group_size, images_per_plan)
                # Else the loops of the next part would get their memory before this one ends.
                parts.append(jax.block_until_ready(sampled))
                rollout.update((start + len(part)) * group_size)
        return parts[0] if len(parts) == 1 else concatenate_on_mesh(parts)

    def score(self, rollout: Rollout, prompts: Prompts) -> ScoredRollout:
        """Decode the images of a rollout of `prompts` and let the judge score every sample.

        Each process scores rows of its own, for a group-wise judge those of whole captions; then
        all get the scores of all.
        """
        start = time.perf_counter()
        B = rollout.rows.plan_len_B.shape[0]
        samples = B // len(prompts)
        prompt_B = [prompt for prompt in prompts.prompts for _ in range(samples)]
        own, sampled = self._own_rows(rollout, samples)
        with raise_on_all_processes():
            numbers_NF, records, judge_seconds = self._score_rows(
                sampled, [prompt_B[row] for row in own], own // samples
            )
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
        seconds = time.perf_counter() - start
        return ScoredRollout(rollout, table, samples, judge_seconds, seconds)

    def _own_rows(
        self, rollout: Rollout, group_size: int
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Indices of the N rows that this process scores, and of these rows the plan ids, plan
        lengths, plan masks and image ids."""
        rows, B = rollout.rows, rollout.rows.plan_len_B.shape[0]
        whole = any(map(is_group_wise, (self.judge, *self.watched)))
        own = assigned_groups(B, group_size) if whole else assigned_rows(B, self.mesh)
        fetch = fetch_any_rows if whole else fetch_rows
        columns = (rows.plan_ids_BT, rows.plan_len_B, rows.plan_mask_BT, rows.image_ids_BU)
        return own, tuple(fetch(column, own) for column in columns)

    def _score_rows(
        self, sampled: tuple[np.ndarray, ...], prompt_N: Sequence[Prompt], group_N: np.ndarray
    ) -> tuple[np.ndarray, list[SampleRecord], float]:
        """For N sampled rows, as of `_own_rows`, and the groups that they belong to: the table's
        columns from `scores_BK` to `score_like_B`, the `plan_numbers` and the watched terms as
        (N, F), the records, and the seconds that the judge took."""
        ids_NT, len_N, mask_NT, image_ids_NU = sampled
        plans = self._parse_plans(ids_NT, len_N)
        images = self.image_decoder(image_ids_NU)
        captions, groups = [prompt.caption for prompt in prompt_N], group_N.tolist()
        requests = [JudgeRequest(*sample) for sample in zip(captions, plans, images, groups)]
        start = time.perf_counter()
        with phase("judge", len(requests)):
            results = self.judge.judge(requests) if requests else []
        seconds = time.perf_counter() - start

        scores = stack_scores(results, self.judge.terms)
        total_N = combine(scores, self.reward.total, self.reward.terms)
        lost_N = without_total(scores, total_N, list(self.reward.expression.names))
        results = [
            replace(r, rationale=f"{r.rationale} | {NO_TOTAL}" if r.rationale else NO_TOTAL)
            if lost
            else r
            for r, lost in zip(results, lost_N)
        ]
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
        return np.hstack([np.stack(columns, axis=1), keys_NF, *watched]), records, seconds

    def _parse_plans(self, ids_NT: np.ndarray, len_N: np.ndarray) -> list[Plan]:
        """The plans of N rows; equal ones are decoded and parsed once."""
        read = cache(lambda ids: parse_plan(self.tokenizer.decode(ids)))
        return [read(tuple(ids[: n - 1].tolist())) for ids, n in zip(ids_NT, len_N)]


def _exchange(numbers_NF: np.ndarray, own: np.ndarray, rows: int) -> np.ndarray:
    """Float32 (rows, F): the numbers of all rows, from what each process has of its rows `own`."""
    table = np.zeros((rows, numbers_NF.shape[1] + 1), np.float32)
    table[own, :-1], table[own, -1] = numbers_NF, 1.0
    tables = gather(table)
    owner_B = tables[:, :, -1].argmax(axis=0)
    return tables[owner_B, np.arange(rows), :-1]
