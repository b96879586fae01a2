"""A whole step of GRPO, as `grpo.train` does it: rollout, VQ decoding, judge, update."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gotr1_jax.aot.chips import Chip
from gotr1_jax.bench.accelerator.clocks import CompileClock, measure
from gotr1_jax.bench.accelerator.judge import StepJudge, image_decoder_of, random_engine
from gotr1_jax.bench.accelerator.policy import PolicyRun
from gotr1_jax.bench.accelerator.sizes import JudgeToMeasure, PolicyToMeasure
from gotr1_jax.bench.reference import SPECIALS
from gotr1_jax.convert.find import EMBEDDED
from gotr1_jax.grpo.credit import make_credit
from gotr1_jax.grpo.dynamic_sampling import sample_groups
from gotr1_jax.grpo.prompts import Prompt, Prompts
from gotr1_jax.grpo.reward_config import RewardConfig
from gotr1_jax.grpo.rollout import RolloutWorker, ScoredRollout
from gotr1_jax.grpo.update import policy_batches
from gotr1_jax.tokenizers.janus import TextTokenizer


class StepRun:
    """Steps of a job with a judge in process.

    The total is `v1`, of the judge's terms alone: HPS is not measured.
    """

    def __init__(
        self, measured: PolicyToMeasure, judge: JudgeToMeasure, mesh: Mesh, chip: Chip,
        clock: CompileClock,
    ) -> None:  # fmt: skip
        config = replace(measured.config, reward=RewardConfig(total="v1"))
        self._measured, self._config, self._mesh = measured, config, mesh
        self._clock = clock
        self.policy_run = PolicyRun(measured, mesh, chip, clock)
        # The judge is loaded last, as in a job.
        sampler, decoder = self.policy_run.sampler, image_decoder_of(measured, mesh)
        engine = StepJudge(random_engine(judge, mesh), judge.questions)
        tokenizer = TextTokenizer.from_dir(EMBEDDED)
        self._worker = RolloutWorker(
            sampler, decoder, engine, config.reward, tokenizer, mesh, config.rollout.rows_at_once
        )
        rng, width = np.random.default_rng(0), measured.prompt_tokens
        prompts = (
            Prompt(i, f"caption {i}", (SPECIALS.bos, *rng.integers(8, 200, width - 1).tolist()))
            for i in range(config.rollout.captions_per_step)
        )
        self._prompts = Prompts(tuple(prompts), width, SPECIALS.pad)
        self._state = self.policy_run.first_state()
        self._credit = make_credit(config)

    def step(self, repeats: int) -> dict[str, Any]:
        """The seconds of each part of a step."""
        parts: list[dict[str, float]] = []

        def once() -> Any:
            parts.append({})
            return self._step(len(parts), parts[-1])

        timing = measure(once, self._clock, repeats)
        best = min(parts[1:], key=lambda part: sum(part.values()))
        rows = self._config.rollout.rows
        return timing.values() | {
            "rows": rows,
            "samples_per_second": rows / timing.seconds,
            "parts": best,
            "judge_share": best["judge"] / sum(best.values()),
        }

    def _step(self, step: int, parts: dict[str, float]) -> Any:
        run, rollout = self.policy_run, self._config.rollout
        start = time.perf_counter()

        def sample(resample_round: int) -> ScoredRollout:
            params = run.sampler.prepare(run.policy.whole(self._state.params))
            found = self._worker.sample(
                params, self._prompts, rollout.samples_per_caption, 0, step,
                images_per_plan=rollout.images_per_plan,
            )  # fmt: skip
            del params
            parts["rollout"] = time.perf_counter() - start
            return self._worker.score(found, self._prompts)

        groups = sample_groups(sample, self._credit.groups, 0, self._credit.batch)
        parts["decode"] = groups.scored.reward_seconds - groups.scored.judge_seconds
        parts["judge"] = groups.scored.judge_seconds
        begin = time.perf_counter()
        frozen, updates = run.policy.frozen, self._config.update.updates_per_rollout
        results = []
        batches = policy_batches(groups, self._state, frozen, run.learner, updates, self._mesh)
        for batch in batches:
            self._state, result = run.learner.update(self._state, frozen, batch)
            results.append(result)
        results = jax.device_get(results)
        parts["update"] = time.perf_counter() - begin
        return results
