"""The samples of the steps: drawn, judged while more is drawn or computed, chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gotr1_jax.grpo.credit import make_credit
from gotr1_jax.grpo.dynamic_sampling import SampledGroups, sample_groups
from gotr1_jax.grpo.rollout import PendingRollout, ScoredRollout
from gotr1_jax.grpo.setup import GrpoJob
from gotr1_jax.grpo.update import RolloutLogps, rollout_logps
from gotr1_jax.parallel.phases import phase
from gotr1_jax.rewards.base import pop_metrics
from gotr1_jax.rewards.judge_thread import JudgeThread
from gotr1_jax.trainer.state import TrainState


class StepSamples:
    """Draws and judges the samples of one step after the other; every process makes the same calls.

    While the judge works in its thread, the rest of a step is drawn, and the log-probs are
    computed that an update needs whatever the rewards are.
    """

    def __init__(self, job: GrpoJob, thread: JudgeThread) -> None:
        self._job, self._thread = job, thread
        self._credit = make_credit(job.config)

    def draw(self, state: TrainState, step: int) -> tuple[SampledGroups, RolloutLogps | None]:
        """The groups that the update of `step` learns from, and the log-probs that are known.

        Those are of all groups in their order, where no round of dynamic sampling can follow.
        """
        job, rounds = self._job, self._job.config.update.resample_rounds
        pop_metrics(job.worker.judge)  # those of an evaluation are not this step's
        params = job.rollout_params(state)
        first, known = self._begin(params, step, 0), None
        if not rounds:
            # Decode weights live no longer than the sampling.
            params = None
            known = self._logps(first, state)
        finish: Callable[[PendingRollout], ScoredRollout] = job.worker.finish

        def sample(resample_round: int) -> ScoredRollout:
            return finish(self._begin(params, step, resample_round) if resample_round else first)

        return sample_groups(sample, self._credit.groups, rounds, self._credit.batch), known

    def pop_metrics(self) -> dict[str, float]:
        """The judge's own metrics of the step."""
        return pop_metrics(self._job.worker.judge)

    def _begin(self, params: Any, step: int, resample_round: int) -> PendingRollout:
        """One group of plans and images for each of the next captions, which are being judged."""
        job, rollout = self._job, self._job.config.rollout
        G = rollout.samples_per_caption
        prompts = job.prompts.take(next(job.batches).indices_P)
        # A caption that comes up again in a later round gets other samples.
        first_sample = resample_round * G
        return job.worker.begin(
            params, prompts, G, job.config.seed, step, first_sample, rollout.images_per_plan,
            self._thread,
        )  # fmt: skip

    def _logps(self, pending: PendingRollout, state: TrainState) -> RolloutLogps:
        job, updates = self._job, self._job.config.update.updates_per_rollout
        with phase("log-probs"):
            return rollout_logps(pending.rollout, state, job.policy.frozen, job.learner, updates)
