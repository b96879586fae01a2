"""The samples of the steps: drawn, judged while more is drawn or computed, chosen."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gotr1_jax.data.pipeline import CaptionBatch
from gotr1_jax.grpo.credit import make_credit
from gotr1_jax.grpo.dynamic_sampling import SampledGroups, sample_groups
from gotr1_jax.grpo.rollout import PendingRollout, ScoredRollout
from gotr1_jax.grpo.setup import GrpoJob
from gotr1_jax.grpo.update import RolloutLogps, rollout_logps
from gotr1_jax.parallel.phases import phase
from gotr1_jax.rewards.base import pop_metrics
from gotr1_jax.rewards.judge_thread import Job, JudgeThread, begin_pop_metrics
from gotr1_jax.trainer.state import TrainState


@dataclass(frozen=True)
class _NextStep:
    """A step's samples, which are being judged, and the judge's own metrics of them."""

    pending: PendingRollout
    metrics: Sequence[Job[dict[str, float]]]


class StepSamples:
    """Draws and judges the samples of one step after the other; every process makes the same calls.

    While the judge works in its thread, the rest of a step is drawn, and the log-probs are
    computed that an update needs whatever the rewards are. With `rollout.async_steps` the next
    step is drawn meanwhile too, with the weights before this step's update. That the first step
    of a process is drawn with `TrainState.sampler_params` makes a resumed run the same.
    """

    def __init__(self, job: GrpoJob, thread: JudgeThread) -> None:
        self._job, self._thread = job, thread
        self._credit = make_credit(job.config)
        self._next: _NextStep | None = None
        self._metrics: Sequence[Job[dict[str, float]]] = ()
        self._weights_seconds = 0.0

    def draw(self, state: TrainState, step: int) -> tuple[SampledGroups, RolloutLogps | None]:
        """The groups that the update of `step` learns from, and the log-probs that are known.

        Those are of all groups in their order, where no round of dynamic sampling can follow.
        """
        job, rounds = self._job, self._job.config.update.resample_rounds
        if job.config.rollout.async_steps:
            return self._draw_ahead(state, step)
        pop_metrics(job.worker.judge)  # those of an evaluation are not this step's
        params = self._weights(job.rollout_params, state)
        first, known = self._begin(params, step, next(job.batches)), None
        if not rounds:
            # Decode weights live no longer than the sampling.
            params = None
            known = self._logps(first, state)

        def sample(resample_round: int) -> ScoredRollout:
            pending = first
            if resample_round:
                pending = self._begin(params, step, next(job.batches), resample_round)
            return job.worker.finish(pending)

        groups = sample_groups(sample, self._credit.groups, rounds, self._credit.batch)
        self._metrics = begin_pop_metrics(job.worker.judge, self._thread)
        return groups, known

    def pop_metrics(self) -> dict[str, float]:
        """The judge's own metrics of the step, and the seconds that the sampler's weights took."""
        jobs, self._metrics = self._metrics, ()
        seconds, self._weights_seconds = self._weights_seconds, 0.0
        metrics = {name: value for job in jobs for name, value in job.result().items()}
        return metrics | {"time/weights": seconds}

    def _weights(self, make: Callable[[TrainState], Any], state: TrainState) -> Any:
        start = time.perf_counter()
        params = make(state)
        self._weights_seconds += time.perf_counter() - start
        return params

    def _draw_ahead(
        self, state: TrainState, step: int
    ) -> tuple[SampledGroups, RolloutLogps | None]:
        job, begun = self._job, 0.0
        if self._next is None:
            params = self._weights(job.rollout_params, state)
            self._next = self._begin_step(params, step, next(job.batches))
            begun = self._next.pending.seconds
            del params
        else:
            job.batches.reach()
        current, self._next = self._next, None
        if step < job.config.steps:
            params = self._weights(job.sampling_params, state)
            self._next = self._begin_step(params, step + 1, job.batches.take_ahead())
            begun += self._next.pending.seconds
            del params
        # The times of a step are what passed in it, be it for the next one.
        pending = replace(current.pending, seconds=begun)
        known = self._logps(pending, state)
        groups = sample_groups(
            lambda _: job.worker.finish(pending), self._credit.groups, 0, self._credit.batch
        )
        self._metrics = current.metrics
        return groups, known

    def _begin_step(self, params: Any, step: int, batch: CaptionBatch) -> _NextStep:
        judge = self._job.worker.judge
        begin_pop_metrics(judge, self._thread)  # those of an evaluation are not this step's
        pending = self._begin(params, step, batch)
        return _NextStep(pending, begin_pop_metrics(judge, self._thread))

    def _begin(
        self, params: Any, step: int, batch: CaptionBatch, resample_round: int = 0
    ) -> PendingRollout:
        """One group of plans and images for each caption of a batch, which are being judged."""
        job, rollout = self._job, self._job.config.rollout
        G = rollout.samples_per_caption
        prompts = job.prompts.take(batch.indices_P)
        # A caption that comes up again in a later round gets other samples.
        first_sample = resample_round * G
        return job.worker.begin(
            params, prompts, G, job.config.seed, step, first_sample, rollout.images_per_plan,
            self._thread,
        )  # fmt: skip

    def _logps(self, pending: PendingRollout, state: TrainState) -> RolloutLogps:
        job, updates = self._job, self._job.config.update.updates_per_rollout
        with phase("log-probs"):
            return rollout_logps(
                pending.rollout, state, job.policy.frozen, job.learner, updates, job.mesh
            )
