"""Captions -> plans and pictures -> rewards, on the host side of a GRPO step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.data.pipeline import pad_rows
from gotr1_jax.errors import InputError
from gotr1_jax.models.vq import VQModel
from gotr1_jax.plan import Plan, parse_plan
from gotr1_jax.rewards import Judge, JudgeRequest, JudgeResult, combine, stack_scores
from gotr1_jax.sampling.rows import PromptBatch, Rows
from gotr1_jax.sampling.sampler import Rollout, Sampler, row_keys
from gotr1_jax.schema import RewardConfig
from gotr1_jax.text import TextTokenizer
from gotr1_jax.training.placement import put_rows
from gotr1_jax.training.run_dir import SampleRecord

PROMPT_MULTIPLE = 16


@dataclass(frozen=True)
class Prompts:
    """Captions as ids; `width` is the padded length that all of them fit in."""

    captions: tuple[str, ...]
    ids: tuple[list[int], ...]
    width: int
    pad: int

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


class Painter:
    """Picture ids -> uint8 pictures, some rows at a time, rows split over the mesh."""

    def __init__(self, vq: VQModel, grid: int, batch: int, mesh: Mesh) -> None:
        graphdef, self._state = nnx.split(vq)
        self._batch, self._mesh = batch, mesh

        def decode(state: Any, ids_BU: jax.Array) -> jax.Array:
            pixels = nnx.merge(graphdef, state).decode_ids(ids_BU, grid)
            # Cut off, not rounded, as the reference does.
            return jnp.clip((pixels + 1.0) / 2 * 255, 0, 255).astype(jnp.uint8)

        self._decode = jax.jit(decode)

    def __call__(self, ids_BU: np.ndarray) -> np.ndarray:
        """int32 (B,U) -> uint8 (B,H,W,3)."""
        parts = []
        for start in range(0, len(ids_BU), self._batch):
            part = ids_BU[start : start + self._batch]
            # The last batch is filled up: one shape, one compilation.
            full = np.concatenate([part, np.repeat(part[-1:], self._batch - len(part), axis=0)])
            pixels = self._decode(self._state, put_rows(full, self._mesh))
            parts.append(np.asarray(pixels)[: len(part)])
        return np.concatenate(parts)


@dataclass(frozen=True)
class Scored:
    """B sampled rows with what the judge said of them; host arrays, caption-major.

    Attributes:
      rows: sampled rows (numpy).
      plan_logp_BT, image_logp_BU: the sampler's own log-probabilities.
      captions: of each row; caption_indices_B: their places in the list of captions.
      plans: parsed plans; images_BHWC uint8.
      results: the judge's answers; scores: one float32 vector a term; total_B: combined.
      judge_seconds: how long the judge took; reward_seconds: that, and decoding the pictures.
    """

    rows: Rows
    plan_logp_BT: np.ndarray
    image_logp_BU: np.ndarray
    captions: tuple[str, ...]
    caption_indices_B: np.ndarray
    plans: tuple[Plan, ...]
    images_BHWC: np.ndarray
    results: tuple[JudgeResult, ...]
    scores: Mapping[str, np.ndarray]
    total_B: np.ndarray
    judge_seconds: float
    reward_seconds: float

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True)
class Roller:
    """Everything that turns captions into scored samples."""

    sampler: Sampler
    painter: Painter
    judge: Judge
    reward: RewardConfig
    tokenizer: TextTokenizer

    def __call__(
        self, params: Any, prompts: Prompts, indices: Sequence[int], samples: int,
        seed: int, step: int,
    ) -> Scored:  # fmt: skip
        """Sample `samples` rows for each caption of `indices`, decode and judge them.

        `params` is what `sampler.prepare` made.
        """
        keys_B = row_keys(seed, step, jnp.asarray(indices, jnp.int32), samples)
        rollout = self.sampler(params, prompts.batch(indices), keys_B, samples)
        rollout = jax.tree.map(np.asarray, rollout)
        return self.score(rollout, [prompts.captions[i] for i in indices], indices, samples)

    def score(
        self, rollout: Rollout, captions: Sequence[str], indices: Sequence[int], samples: int
    ) -> Scored:
        """Decode and judge a rollout that lies on the host."""
        start = time.perf_counter()
        rows = rollout.rows
        texts = [
            self.tokenizer.decode(ids[: n - 1])
            for ids, n in zip(np.asarray(rows.plan_ids_BT), np.asarray(rows.plan_len_B))
        ]
        plans = tuple(parse_plan(text) for text in texts)
        images = self.painter(np.asarray(rows.image_ids_BU))
        by_row = tuple(c for c in captions for _ in range(samples))
        requests = [JudgeRequest(c, p, i) for c, p, i in zip(by_row, plans, images)]
        asked = time.perf_counter()
        results = tuple(self.judge.judge(requests))
        answered = time.perf_counter()
        scores = stack_scores(results, self.judge.terms)
        total = combine(scores, self.reward.rule, self.reward.terms)
        return Scored(
            rows=rows,
            plan_logp_BT=np.asarray(rollout.plan_logp_BT),
            image_logp_BU=np.asarray(rollout.image_logp_BU),
            captions=by_row,
            caption_indices_B=np.repeat(np.asarray(indices), samples),
            plans=plans,
            images_BHWC=images,
            results=results,
            scores=scores,
            total_B=total,
            judge_seconds=answered - asked,
            reward_seconds=time.perf_counter() - start,
        )


def take_rows(scored: Scored, index: np.ndarray) -> Scored:
    """The rows at `index`, in its order."""

    def pick(values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(values[i] for i in index)

    return Scored(
        rows=jax.tree.map(lambda x: x[index], scored.rows),
        plan_logp_BT=scored.plan_logp_BT[index],
        image_logp_BU=scored.image_logp_BU[index],
        captions=pick(scored.captions),
        caption_indices_B=scored.caption_indices_B[index],
        plans=pick(scored.plans),
        images_BHWC=scored.images_BHWC[index],
        results=pick(scored.results),
        scores={name: values[index] for name, values in scored.scores.items()},
        total_B=scored.total_B[index],
        judge_seconds=scored.judge_seconds,
        reward_seconds=scored.reward_seconds,
    )


def join(parts: Sequence[Scored]) -> Scored:
    """Several rollouts as one."""
    if not parts:
        raise InputError("there is nothing to join")
    if len(parts) == 1:
        return parts[0]

    def chain(name: str) -> tuple[Any, ...]:
        return tuple(x for part in parts for x in getattr(part, name))

    def stack(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    return Scored(
        rows=jax.tree.map(lambda *x: np.concatenate(x), *[part.rows for part in parts]),
        plan_logp_BT=stack("plan_logp_BT"),
        image_logp_BU=stack("image_logp_BU"),
        captions=chain("captions"),
        caption_indices_B=stack("caption_indices_B"),
        plans=chain("plans"),
        images_BHWC=stack("images_BHWC"),
        results=chain("results"),
        scores={k: np.concatenate([p.scores[k] for p in parts]) for k in parts[0].scores},
        total_B=stack("total_B"),
        judge_seconds=sum(part.judge_seconds for part in parts),
        reward_seconds=sum(part.reward_seconds for part in parts),
    )


def records(
    scored: Scored, samples: int, advantages_B: np.ndarray, shown: int
) -> list[SampleRecord]:
    """The first `shown` captions' samples for the report."""
    found = []
    for row in range(min(shown * samples, len(scored))):
        result, plan = scored.results[row], scored.plans[row]
        found.append(
            SampleRecord(
                caption=scored.captions[row],
                caption_index=row // samples,
                sample_index=row % samples,
                plan_text=plan.text,
                planned=tuple(plan.boxes),
                located=tuple(result.located),
                scores=dict(result.scores),
                total=float(scored.total_B[row]),
                advantage=float(advantages_B[row]),
                image=scored.images_BHWC[row],
                words=result.words,
                said=result.said,
            )
        )
    return found
