"""Reinforcement learning of plan and image: `gotr1 train grpo --config FILE`.

`train_grpo` reads as the algorithm. To exchange a part of it:

- a reward: the judge that `setup.make_job` builds (`rewards.factory`), its terms' combination in
  `rewards.combine`;
- an advantage: `advantages.sample_advantages`, of the rewards that `credit` gives plan and image;
- a loss: `losses.policy_loss`, which `update.make_policy_step` compiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from gotr1_jax.convert.find import RUN_MODEL
from gotr1_jax.convert.tree import tree_leaves
from gotr1_jax.grpo.alarms import RewardAlarms
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.grpo.dynamic_sampling import SampledGroups
from gotr1_jax.grpo.evaluate import Evaluation, compare_watched, format_table, format_watched
from gotr1_jax.grpo.held_out import HeldOut
from gotr1_jax.grpo.metrics import own_metrics, step_metrics
from gotr1_jax.grpo.run_weights import RunWeights, write_run_model
from gotr1_jax.grpo.sampled import resolve_job
from gotr1_jax.grpo.setup import GrpoJob, make_job, sampled_rows
from gotr1_jax.grpo.step_samples import StepSamples
from gotr1_jax.grpo.terms_file import write_terms
from gotr1_jax.grpo.update import policy_batches
from gotr1_jax.parallel.phases import phase
from gotr1_jax.parallel.placement import gather_to_main
from gotr1_jax.parallel.processes import is_main_process, raise_on_all_processes
from gotr1_jax.report.page import write_report
from gotr1_jax.rewards.judge_thread import JudgeThread
from gotr1_jax.trainer.bootstrap import gain_interval
from gotr1_jax.trainer.optimizer import float32_params
from gotr1_jax.trainer.run import Run
from gotr1_jax.trainer.samples import write_samples
from gotr1_jax.trainer.state import TrainState


def train_grpo(config: GrpoConfig) -> dict[str, Any]:
    """Train plan and image together; returns what summary.json holds.

    A step: sample, score, advantages, teacher-forced log-probs, update, log.
    """
    config = resolve_job(config)
    row_counts = {"update.micro_batch": config.update.micro_batch}
    if config.mesh.rollout is None:
        row_counts |= sampled_rows(config)
    bad_updates = config.update.max_bad_updates
    with (
        Run("grpo", config, row_counts=row_counts, max_bad_updates=bad_updates) as run,
        JudgeThread(config.rollout.overlap) as thread,
    ):
        job = make_job(config, run)
        # Adapters' shapes do not depend on the vocabulary and dtype of the weights under them.
        frozen = job.policy.frozen
        state = run.restore(job.initial_state(), job.batches, {"frozen": frozen})
        write_terms(run.dir, config, job.worker.judge, job.watched, run.note)
        held_out = HeldOut(job, run, thread.wait)
        before = held_out.before(job, state, run.first_step)
        job = job.release_initial_weights()
        learner, samples = job.learner, StepSamples(job, thread)
        alarms = RewardAlarms(config.reward, run.restored_meta.get("alarms"))
        updates = config.update.updates_per_rollout

        for step in run.steps():
            groups, known = samples.draw(state, step)
            state = job.keep_older(state)
            sampled = run.elapsed()
            results = []
            with phase("update"):
                batches = policy_batches(groups, state, frozen, learner, updates, job.mesh, known)
                for batch in batches:
                    state, result = learner.update(state, frozen, batch)
                    results.append(result)
                results = jax.device_get(results)
            state = job.refresh_sampler(state, step)

            metrics = step_metrics(config, groups, results, state, sampled, run.elapsed())
            metrics |= samples.pop_metrics()
            run.stop_timer()
            metrics |= held_out.after_step(job, state, run)
            shown = {"reward": metrics["reward/total/mean"], **own_metrics(results)}
            run.log(metrics, state.skipped_in_a_row, **shown)
            _write_samples(config, run, groups)
            failure = alarms.check(groups.drawn, run.note) or held_out.failure
            meta = {"alarms": alarms.state, **held_out.meta()}
            run.end_step(
                state, score=held_out.score, measure=held_out.measure, failure=failure, meta=meta
            )

        state = held_out.final_state(job, state, run)
        _export(run, job, state, held_out.final_step)  # whatever becomes of the comparison
        after = held_out.evaluate("eval_after", job.sampling_params(state))
        return _finish(run, before, after, held_out.outcome())


def _write_samples(config: GrpoConfig, run: Run, groups: SampledGroups) -> None:
    """Samples for the report: of several processes, those that process 0 scored."""
    with raise_on_all_processes():
        if config.stores_samples(run.step) and is_main_process():
            records = groups.scored.records(config.evaluation.shown, groups.advantages)
            write_samples(run.dir.samples, run.step, records)
            run.show_samples(records)


def _export(run: Run, job: GrpoJob, state: TrainState, step: int) -> None:
    """Writes the model of `step` in the released format, and says what was rounded."""
    trained = gather_to_main(float32_params(state.params, state.opt_state))
    with phase("exporting the model"), raise_on_all_processes():
        if is_main_process():
            arrays = dict(tree_leaves("policy", trained))
            weights = RunWeights(step, job.checkpoint.source, job.config, arrays)
            target = run.dir.root / RUN_MODEL
            print(f"{target}: {write_run_model(target, weights)}")


def _finish(
    run: Run, before: Evaluation | None, after: Evaluation, outcome: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes summary, with `outcome`, and report; returns the summary."""
    with raise_on_all_processes():
        if not is_main_process():
            return {}
        assert before is not None
        interval = gain_interval(before.total, after.total)
        values = {
            "before": before.means,
            "after": after.means,
            "total_gain_ci95": list(interval),
            "captions": len(before.total),
            **compare_watched(before, after),
            **outcome,
        }
        summary = run.write_summary(values)
        print(format_table(before, after, interval))
        if lines := format_watched(before, after):
            print(lines)
        print(f"report: {write_report(run.dir.root)}")
        return summary
