"""Captions -> plans and images -> rewards: the sampling half of a GRPO step.

Sampling is one computation on the whole mesh. Then each process looks at rows of its own: it
reads their plans, decodes and judges them on its own devices, and tells the others a few numbers
a row.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gotr1_jax.data.pipeline import pad_rows
from gotr1_jax.errors import InputError
from gotr1_jax.grpo.config import RewardConfig
from gotr1_jax.parallel.mesh import assigned_rows, fetch_rows
from gotr1_jax.parallel.placement import concatenate_on_mesh, take_on_mesh
from gotr1_jax.parallel.processes import gather, raise_on_all_processes
from gotr1_jax.plan import Plan, parse_plan
from gotr1_jax.rewards.base import Judge, JudgeRequest, JudgeResult, stack_scores
from gotr1_jax.rewards.combine import combine
from gotr1_jax.sampler.image_decoder import ImageDecoder
from gotr1_jax.sampler.sampler import Rollout, Sampler, row_keys
from gotr1_jax.sampler.token_batch import PromptBatch
from gotr1_jax.tokenizers.janus import TextTokenizer
from gotr1_jax.trainer.samples import SampleRecord

PROMPT_MULTIPLE = 16


# Figures of a row besides its terms.
_TOKENS, _TRUNCATED, _BOXES = "plan tokens", "plan truncated", "plan boxes"


@dataclass(frozen=True)
class Prompts:
    """Captions as ids; `width` is the padded length that all of them fit in."""

    captions: tuple[str, ...]
    ids: tuple[list[int], ...]
    width: int
    pad: int

    def texts(self) -> Iterator[str]:
        """All that the prompts are, one after the other."""
        return (f"{caption}\0{ids}" for caption, ids in zip(self.captions, self.ids))

    def batch(self, indices: Sequence[int]) -> PromptBatch:
        """The prompts of some captions, padded to the common width."""
        ids_PC, len_P = pad_rows([self.ids[i] for i in indices], self.width, self.pad)
        return PromptBatch(jnp.asarray(ids_PC), jnp.asarray(len_P))


def encode_captions(
    captions: Sequence[str], tokenizer: TextTokenizer, template: str, limit: int
) -> Prompts:
    """Encode every caption once; InputError names the first that is empty or too long."""
    ids = tuple(tokenizer.encode_prompt(caption, template, limit) for caption in captions)
    longest = max(len(row) for row in ids)
    width = -(-longest // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
    return Prompts(tuple(captions), ids, width, tokenizer.specials.pad)


@dataclass(frozen=True)
class JudgedSample:
    """What a row came to, as the process that judged it knows: image uint8 (H,W,3)."""

    plan: Plan
    image: np.ndarray
    result: JudgeResult


@dataclass(frozen=True)
class ScoredRollout:
    """B sampled rows with what the judge said of them, caption-major.

    Attributes:
      rollout: the rows, over the rows of the mesh.
      captions: of each row; caption_indices_B: their places in the list of captions.
      judged: by place, the rows that this process judged: all of them where it is alone.
      scores: one float32 vector a term; total_B: combined; of all rows, in every process.
      plan_tokens_B: plan tokens that the policy chose; truncated_B: whether it was cut off at the
        limit; boxes_B: objects with a box. float32, of all rows, in every process.
      judge_seconds: how long the judge took here; reward_seconds: that, decoding the images,
        and waiting for the other processes.
    """

    rollout: Rollout
    captions: tuple[str, ...]
    caption_indices_B: np.ndarray
    judged: Mapping[int, JudgedSample]
    scores: Mapping[str, np.ndarray]
    total_B: np.ndarray
    plan_tokens_B: np.ndarray
    truncated_B: np.ndarray
    boxes_B: np.ndarray
    judge_seconds: float
    reward_seconds: float

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True)
class RolloutWorker:
    """Everything that turns captions into scored samples.

    Attributes:
      mesh: that of the sampler.
      rows_at_once: rows that are drawn at once, or one caption's where those are more.
    """

    sampler: Sampler
    painter: ImageDecoder
    judge: Judge
    reward: RewardConfig
    tokenizer: TextTokenizer
    mesh: Mesh
    rows_at_once: int

    def __call__(
        self, params: Any, prompts: Prompts, indices: Sequence[int], samples: int,
        seed: int, step: int, first: int = 0,
    ) -> ScoredRollout:  # fmt: skip
        """`sample`, then `score`."""
        rollout = self.sample(params, prompts, indices, samples, seed, step, first)
        return self.score(rollout, prompts, indices)

    def sample(
        self, params: Any, prompts: Prompts, indices: Sequence[int], samples: int,
        seed: int, step: int, first: int = 0,
    ) -> Rollout:  # fmt: skip
        """Sample `samples` plans and images for each caption of `indices`, caption-major.

        Args:
          params: decode weights, what `sampler.prepare` makes.
          seed, step, first: of the random streams; `first` numbers a caption's first sample.
        """
        parts, captions_at_once = [], max(1, self.rows_at_once // samples)
        for i in range(0, len(indices), captions_at_once):
            part = indices[i : i + captions_at_once]
            keys_B = row_keys(seed, step, jnp.asarray(part, jnp.int32), samples, first)
            drawn = self.sampler(params, prompts.batch(part), keys_B, samples)
            # Else the loops of the next part would be given their memory before this one ends.
            parts.append(jax.block_until_ready(drawn))
        return parts[0] if len(parts) == 1 else concatenate_on_mesh(parts)

    def score(self, rollout: Rollout, prompts: Prompts, indices: Sequence[int]) -> ScoredRollout:
        """Decode the images of a rollout and let the judge score every row.

        Each process does so for its own rows; the scores of all are then known to all.
        """
        samples = rollout.rows.plan_len_B.shape[0] // len(indices)
        start = time.perf_counter()
        captions = tuple(prompts.captions[i] for i in indices for _ in range(samples))
        own = assigned_rows(len(captions), self.mesh)
        with raise_on_all_processes():
            figures_NF, judged, judge_seconds = self._look(rollout, captions, own)
        columns = dict(zip(self._figures, _exchange(figures_NF, own, len(captions)).T))
        scores = {term: columns[term] for term in self.judge.terms}
        return ScoredRollout(
            rollout=rollout,
            captions=captions,
            caption_indices_B=np.repeat(np.asarray(indices), samples),
            judged=judged,
            scores=scores,
            total_B=combine(scores, self.reward.rule, self.reward.terms),
            plan_tokens_B=columns[_TOKENS],
            truncated_B=columns[_TRUNCATED],
            boxes_B=columns[_BOXES],
            judge_seconds=judge_seconds,
            reward_seconds=time.perf_counter() - start,
        )

    @property
    def _figures(self) -> tuple[str, ...]:
        """Names of the numbers that processes tell each other of a row."""
        return (*self.judge.terms, _TOKENS, _TRUNCATED, _BOXES)

    def _look(
        self, rollout: Rollout, captions: Sequence[str], own: np.ndarray
    ) -> tuple[np.ndarray, dict[int, JudgedSample], float]:
        """Figures float32 (N, F) of the N rows `own`, what they came to, seconds of the judge."""
        rows = rollout.rows
        ids_NT, len_N = fetch_rows(rows.plan_ids_BT, own), fetch_rows(rows.plan_len_B, own)
        mask_NT = fetch_rows(rows.plan_mask_BT, own)
        texts = [self.tokenizer.decode(ids[: n - 1]) for ids, n in zip(ids_NT, len_N)]
        plans = [parse_plan(text) for text in texts]
        images = self.painter(fetch_rows(rows.image_ids_BU, own))
        requests = [JudgeRequest(captions[b], p, i) for b, p, i in zip(own, plans, images)]
        asked = time.perf_counter()
        results = tuple(self.judge.judge(requests)) if requests else ()
        seconds = time.perf_counter() - asked
        scores = stack_scores(results, self.judge.terms)
        tokens_N = mask_NT.sum(axis=1)
        # A forced BOI stands behind the last token that was allowed.
        truncated_N = (len_N == mask_NT.shape[1]) & (tokens_N == len_N - 1)
        figures = {
            **scores,
            _TOKENS: tokens_N,
            _TRUNCATED: truncated_N,
            _BOXES: np.asarray([len(plan.boxes) for plan in plans]),
        }
        stacked = np.stack([figures[name] for name in self._figures], axis=1).astype(np.float32)
        parts = zip(own.tolist(), plans, images, results)
        judged = {b: JudgedSample(plan, image, result) for b, plan, image, result in parts}
        return stacked, judged, seconds


def _exchange(figures_NF: np.ndarray, own: np.ndarray, rows: int) -> np.ndarray:
    """Figures float32 (B, F) of all rows, from those that each process has of its own."""
    table = np.zeros((rows, figures_NF.shape[1] + 1), np.float32)
    table[own, :-1], table[own, -1] = figures_NF, 1.0
    tables = gather(table)
    owner_B = tables[:, :, -1].argmax(axis=0)
    return tables[owner_B, np.arange(rows), :-1]


def take_rows(scored: ScoredRollout, index: np.ndarray) -> ScoredRollout:
    """The rows at `index`, in its order; on a mesh they must divide over it."""
    if np.array_equal(index, np.arange(len(scored))):
        return scored
    places = {int(b): place for place, b in enumerate(index)}
    return replace(
        scored,
        rollout=take_on_mesh(scored.rollout, index),
        captions=tuple(scored.captions[b] for b in index),
        caption_indices_B=scored.caption_indices_B[index],
        judged={places[b]: judged for b, judged in scored.judged.items() if b in places},
        scores={name: values[index] for name, values in scored.scores.items()},
        total_B=scored.total_B[index],
        plan_tokens_B=scored.plan_tokens_B[index],
        truncated_B=scored.truncated_B[index],
        boxes_B=scored.boxes_B[index],
    )


def join(parts: Sequence[ScoredRollout]) -> ScoredRollout:
    """Several rollouts as one."""
    if not parts:
        raise InputError("there is nothing to join")
    if len(parts) == 1:
        return parts[0]

    def stack(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
    return ScoredRollout(
        rollout=concatenate_on_mesh([part.rollout for part in parts]),
        captions=tuple(caption for part in parts for caption in part.captions),
        caption_indices_B=stack("caption_indices_B"),
        judged={
            start + b: judged
            for start, part in zip(starts, parts)
            for b, judged in part.judged.items()
        },
        scores={k: np.concatenate([p.scores[k] for p in parts]) for k in parts[0].scores},
        total_B=stack("total_B"),
        plan_tokens_B=stack("plan_tokens_B"),
        truncated_B=stack("truncated_B"),
        boxes_B=stack("boxes_B"),
        judge_seconds=sum(part.judge_seconds for part in parts),
        reward_seconds=sum(part.reward_seconds for part in parts),
    )


def records(
    scored: ScoredRollout, samples: int, advantages_B: np.ndarray, shown: int
) -> list[SampleRecord]:
    """The first `shown` captions' samples for the report, as far as this process judged them."""
    found = []
    for row in range(min(shown * samples, len(scored))):
        if row not in scored.judged:
            continue
        judged = scored.judged[row]
        plan, result = judged.plan, judged.result
        found.append(
            SampleRecord(
                caption=scored.captions[row],
                caption_index=row // samples,
                sample_index=row % samples,
                plan_text=plan.text,
                planned=tuple(plan.boxes),
                detections=tuple(result.detections),
                scores=dict(result.scores),
                total=float(scored.total_B[row]),
                advantage=float(advantages_B[row]),
                image=judged.image,
                rationale=result.rationale,
                raw_answers=result.raw_answers,
            )
        )
    return found
