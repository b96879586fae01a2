"""Reinforcement learning of plan and image: `gotr1 train grpo --config FILE`."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.config import to_yaml
from gotr1_jax.convert.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from gotr1_jax.data.pipeline import caption_batches
from gotr1_jax.data.sources import read_captions
from gotr1_jax.decoding.guidance import LogpSettings
from gotr1_jax.grpo.advantages import GroupAdvantages, group_advantages
from gotr1_jax.grpo.alarms import FailureTracker, ZeroRewardAlarm
from gotr1_jax.grpo.config import EvaluationConfig, GrpoConfig
from gotr1_jax.grpo.dynamic_sampling import SampledGroups, sample_groups
from gotr1_jax.grpo.entropy import new_entropy_state
from gotr1_jax.grpo.evaluate import Evaluation, evaluate, format_table
from gotr1_jax.grpo.losses import PolicyLossConfig
from gotr1_jax.grpo.metrics import step_metrics
from gotr1_jax.grpo.policy import SplitPolicy, load_policy, merge_adapters
from gotr1_jax.grpo.rollout import Prompts, RolloutWorker, ScoredRollout, encode_captions, records
from gotr1_jax.grpo.update import PolicyBatch, PolicyMetrics, make_policy_step, make_token_logps
from gotr1_jax.io.files import write_json_atomic
from gotr1_jax.io.progress import Progress
from gotr1_jax.models.config import JanusConfig
from gotr1_jax.parallel.mesh import connect, local_part, make_mesh, row_multiple
from gotr1_jax.parallel.placement import (
    check_rows,
    mirror_shardings,
    put_rows,
    take_on_mesh,
    to_first_host,
)
from gotr1_jax.parallel.processes import (
    broadcast_from_main,
    check_same_on_all_processes,
    is_main_process,
    raise_on_all_processes,
)
from gotr1_jax.parallel.sharding import placed_shapes, shardings_of
from gotr1_jax.report import write_report
from gotr1_jax.rewards import Judge, check_rule, make_judge
from gotr1_jax.rewards.multimodal.counts import pop_metrics
from gotr1_jax.sampler.image_decoder import ImageDecoder
from gotr1_jax.sampler.sampler import Sampler, SamplerConfig
from gotr1_jax.shapes.dataset import shapes_captions
from gotr1_jax.tokenizers.janus import SpecialIds
from gotr1_jax.trainer.bootstrap import gain_interval
from gotr1_jax.trainer.checkpoint import Checkpoints, restore_path
from gotr1_jax.trainer.loop import Loop
from gotr1_jax.trainer.optimizer import make_optimizer
from gotr1_jax.trainer.run_dir import RunDir
from gotr1_jax.trainer.samples import write_samples
from gotr1_jax.trainer.start import check_same_run, find_resume, open_run_dir, start_writing
from gotr1_jax.trainer.state import TrainState, new_state, stop_if_skipped
from gotr1_jax.trainer.stopping import StopSignals


@dataclass(frozen=True)
class Learner:
    """The compiled device side of a step: replay and update."""

    frozen: Any  # of the policy
    replay: Any
    update: Any
    reference: Any  # trained part of the reference policy; None without KL


def train_grpo(config: GrpoConfig) -> dict[str, Any]:
    """Run the job; returns what summary.json holds."""
    with StopSignals(config.checkpoint.grace_seconds) as signals:
        return _train(config, signals)


def _train(config: GrpoConfig, signals: StopSignals) -> dict[str, Any]:
    check_rule(config.reward.rule, config.reward.terms)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    check_rows(config.update.micro_batch, mesh, "update.micro_batch")
    held_out = config.evaluation.captions * config.evaluation.samples
    check_rows(held_out, mesh, "evaluation.captions x evaluation.samples")
    check_rows(config.rollout.rows_at_once, mesh, "the number of rows that are drawn at once")
    connect(mesh)
    check_same_run(config)
    resume = find_resume(config.resume, config.run_dir)
    with raise_on_all_processes():
        policy, checkpoint = load_policy(config.policy, config.seed, mesh)
        tokenizer = checkpoint.tokenizer
        encode = partial(
            encode_captions, tokenizer=tokenizer, template=config.policy.template,
            limit=config.policy.max_prompt_tokens,
        )  # fmt: skip
        prompts = encode(_captions(config))
        heldout = encode(_heldout(config.evaluation))
    check_same_on_all_processes(prompts.texts(), "set of captions, or tokenizer,")
    check_same_on_all_processes(heldout.texts(), "set of held-out captions")
    batches = iter(caption_batches(prompts.captions, config.rollout.captions_per_step, config.seed))
    # A run that ended before its first checkpoint is started again by the same command.
    run = open_run_dir(config.run_dir, to_yaml(config), may_exist=config.resume != "never")
    with raise_on_all_processes():
        # Answers stay with the run: a resumed step does not ask twice.
        judge = make_judge(config.judge, run.root / "judge_cache", local_part(mesh))
    worker = make_rollout_worker(config, policy, checkpoint, judge, mesh)
    optimizer = make_optimizer(config.optimizer, config.steps * config.update.updates_per_rollout)
    reference = policy.reference() if config.loss.kl != "none" else None
    learner = make_learner(config, policy, tokenizer.specials, optimizer, reference)
    state = _new_state(config, policy, optimizer, mesh)
    first, seconds = 0, 0.0
    saving = config.checkpoint
    # Adapters say nothing of the vocabulary and the dtype of the weights under them.
    beside = {"frozen": policy.frozen}
    with Checkpoints(run.checkpoints, saving.keep, saving.keep_best, beside) as checkpoints:
        loop = Loop(checkpoints, saving, config.steps, signals)
        if resume is not None:
            restored = restore_path(resume, state, beside)
            state, first = restored.tree, restored.step
            loop.resume(restored.meta)
            batches.set_state(restored.meta["data"])
            seconds = restored.meta["seconds"]
            checkpoints.drop_after(first)
        metrics = start_writing(run, to_yaml(config), first)
        if is_main_process() and resume is not None:
            print(f"resumed at step {first} from {resume}")

        def params(state: TrainState) -> Any:
            return worker.sampler.prepare(policy.whole(state.params))

        def score(name: str, state: TrainState) -> Evaluation:
            return evaluate(
                worker, params(state), heldout, config.evaluation, name, run.root,
                rows=config.rollout.rows_at_once, multiple=row_multiple(mesh),
            )  # fmt: skip

        failures = FailureTracker(config.reward.failure_limit, config.reward.failure_steps)
        alarm = ZeroRewardAlarm(config.reward.alarm_steps)
        before = _saved_evaluation(run) if first else None
        if not broadcast_from_main(before is not None):
            start = _new_state(config, policy, optimizer, mesh) if first else state
            # A state has what is trained: one copy is enough.
            policy = replace(policy, trained=None)
            before = score("eval_before", start)
            del start
        policy = replace(policy, trained=None)
        with signals.finishing_steps(), metrics, Progress("grpo", config.steps, first) as progress:
            for step in loop.steps(first):
                clock = time.perf_counter()
                pop_metrics(judge)  # those of an evaluation are not this step's
                # Weights laid out for sampling live no longer than the sampling.
                groups, times = _gather(config, worker, params(state), prompts, batches, step)
                after_rollout = time.perf_counter()
                state, results = _learn(config, learner, state, groups, mesh)
                times["time/update"] = time.perf_counter() - after_rollout
                times["time/step"] = time.perf_counter() - clock
                seconds += times["time/step"]
                times |= loop.measures()
                values = step_metrics(config, groups, results, state, times)
                with raise_on_all_processes():
                    metrics.write(step, values | pop_metrics(judge))
                    progress.update(step, reward=values["reward/total/mean"])
                    if (line := alarm.add(values["reward/total/mean"])) is not None:
                        progress.note(line)
                    limit = config.update.max_bad_updates
                    stop_if_skipped(state.skipped_in_a_row, limit, step)
                    if step % config.samples_every == 0 or step in (1, config.steps):
                        _write_samples(config, run, step, groups)
                every, total = config.evaluation.every, None
                if every and step % every == 0 and step < config.steps:
                    total = score(f"eval_step_{step:06d}", state).means["total"]
                    progress.note(f"held-out total at step {step}: {total:.3f}")
                failed = int(np.isnan(groups.scored.total_B).sum())
                broken = failures.add(failed, len(groups.scored))
                meta = {"seed": config.seed, "data": batches.get_state(), "seconds": seconds}
                loop.end_step(step, state, meta, score=total, failure=broken)
        after = score("eval_after", state)
    model = to_first_host(merge_adapters(policy, state.params))
    with raise_on_all_processes():
        if not is_main_process():
            return {}
        assert before is not None
        return _finish(config, run, model, checkpoint.source, before, after, seconds)


def _captions(config: GrpoConfig) -> tuple[str, ...]:
    if config.captions.source == "shapes":
        return shapes_captions("train", config.captions.count, config.seed)
    return read_captions(config.captions.source, config.captions.column)


def _heldout(config: EvaluationConfig) -> tuple[str, ...]:
    if config.source == "shapes":
        return shapes_captions("heldout", config.captions)
    return read_captions(config.source, config.column, config.captions)


def make_rollout_worker(
    config: GrpoConfig, policy: SplitPolicy, checkpoint: Checkpoint, judge: Judge, mesh: Mesh
) -> RolloutWorker:
    """What samples and scores in a job; the checkpoint has its tokenizers of text and images."""
    tokenizer = checkpoint.tokenizer
    sampler = make_sampler(config, policy, checkpoint.config, tokenizer.specials, mesh)
    grid, local = checkpoint.config.grid, local_part(mesh)
    painter = ImageDecoder(checkpoint.vq_module(), grid, config.rollout.decode_batch, local)
    at_once = config.rollout.rows_at_once
    return RolloutWorker(sampler, painter, judge, config.reward, tokenizer, mesh, at_once)


def make_sampler(
    config: GrpoConfig, policy: SplitPolicy, sizes: JanusConfig, specials: SpecialIds, mesh: Mesh
) -> Sampler:
    """The sampler of a job; `policy` may be shapes."""
    rollout = config.rollout
    sampling = SamplerConfig(
        max_plan_tokens=rollout.max_plan_tokens,
        guidance=rollout.guidance,
        text_temperature=rollout.text_temperature,
        image_temperature=rollout.image_temperature,
    )
    # The sampler reads one tree, adapters and all.
    graphdef = nnx.split(nnx.merge(policy.graphdef, policy.trained, policy.frozen))[0]
    return Sampler(graphdef, sizes, specials, sampling, mesh)


def make_learner(
    config: GrpoConfig, policy: SplitPolicy, specials: SpecialIds, optimizer: Any, reference: Any
) -> Learner:
    """The jitted functions of a job's updates; `policy` may be shapes."""
    rollout, loss = config.rollout, config.loss
    settings = LogpSettings(
        loss.logp_mode, rollout.guidance, rollout.text_temperature, rollout.image_temperature
    )
    loss_config = PolicyLossConfig(
        kind=loss.kind,
        clip_low=loss.clip_low,
        clip_high=loss.clip_high,
        text_weight=loss.text_weight,
        image_weight=loss.image_weight,
        kl_kind=loss.kl,
        kl_weight=loss.kl_weight,
        max_tokens=rollout.max_plan_tokens + 1,
    )
    graphdef, micro = policy.graphdef, config.update.micro_batch
    return Learner(
        frozen=policy.frozen,
        replay=make_token_logps(graphdef, specials, settings, micro),
        update=make_policy_step(
            graphdef, optimizer, specials, settings, loss_config, micro, config.entropy
        ),
        reference=reference,
    )


def _new_state(config: GrpoConfig, policy: SplitPolicy, optimizer: Any, mesh: Any) -> TrainState:
    """A state before the first update, laid out like the parameters; it owns its arrays."""
    shardings = shardings_of(state_shapes(config, policy, optimizer, mesh))

    def copy(params: Any) -> TrainState:
        return new_state(
            jax.tree.map(jnp.copy, params), optimizer, new_entropy_state(config.entropy)
        )

    return jax.jit(copy, out_shardings=shardings)(policy.trained)


def state_shapes(config: GrpoConfig, policy: SplitPolicy, optimizer: Any, mesh: Mesh) -> TrainState:
    """The state of a job as shapes that know their places; `policy` may be shapes."""
    abstract = jax.eval_shape(
        lambda params: new_state(params, optimizer, new_entropy_state(config.entropy)),
        policy.trained,
    )
    return placed_shapes(abstract, mirror_shardings(abstract, policy.trained, mesh))


def _gather(
    config: GrpoConfig,
    worker: RolloutWorker,
    params: Any,
    prompts: Prompts,
    batches: Any,
    step: int,
) -> tuple[SampledGroups, dict[str, float]]:
    """Sample and score groups; replace those without variance, a bounded number of times."""
    G = config.rollout.samples_per_caption

    def draw(number: int) -> ScoredRollout:
        indices = next(batches).indices_P.tolist()
        # A caption that comes up again in a later round gets other samples.
        return worker(params, prompts, indices, G, config.seed, step, number * G)

    clock = time.perf_counter()
    advantages = partial(_advantages, config)
    groups = sample_groups(draw, advantages, G, config.update.resample_rounds)
    scored = groups.scored
    seconds = time.perf_counter() - clock
    return groups, {
        "time/rollout": seconds - scored.reward_seconds,
        "time/reward": scored.reward_seconds,
        "judge/seconds": scored.judge_seconds,
    }


def _advantages(config: GrpoConfig, rewards_PG: np.ndarray) -> GroupAdvantages:
    rewards = jnp.asarray(rewards_PG)
    return group_advantages(rewards, jnp.isfinite(rewards), config.loss.advantage)


def _learn(
    config: GrpoConfig, learner: Learner, state: TrainState, groups: SampledGroups, mesh: Any
) -> tuple[TrainState, list[PolicyMetrics]]:
    """One optimizer step for each share of the captions, all against the policy that sampled."""
    scored, frozen = groups.scored, learner.frozen
    shares = np.split(np.arange(len(scored)), config.update.updates_per_rollout)
    batches = []
    for i, share in enumerate(shares):
        rollout = scored.rollout if len(shares) == 1 else take_on_mesh(scored.rollout, share)
        rows, reference = rollout.rows, learner.reference
        batches.append(
            PolicyBatch(
                rows=rows,
                sampled_text_BT=rollout.plan_logp_BT,
                sampled_image_BU=rollout.image_logp_BU,
                # Later updates move away from the policy that sampled; the first starts at it.
                old=learner.replay(state.params, frozen, rows) if i else None,
                ref=None if reference is None else learner.replay(reference, frozen, rows),
                advantages_B=put_rows(groups.advantages_B[share], mesh),
                row_mask_B=put_rows(groups.row_mask_B[share], mesh),
            )
        )
    results = []
    for batch in batches:
        state, result = learner.update(state, frozen, batch)
        results.append(result)
    return state, jax.device_get(results)


def _write_samples(config: GrpoConfig, run: RunDir, step: int, groups: SampledGroups) -> None:
    """For the report: of several processes those that process 0 judged."""
    if is_main_process():
        G, shown = config.rollout.samples_per_caption, config.evaluation.shown
        kept = records(groups.scored, G, groups.advantages_B, shown)
        write_samples(run.samples, step, kept)


def _saved_evaluation(run: RunDir) -> Evaluation | None:
    path = run.root / "eval_before.json"
    if not path.is_file():
        return None
    return Evaluation.from_json(json.loads(path.read_text(encoding="utf-8")))


def _finish(
    config: GrpoConfig,
    run: RunDir,
    model: Any,
    source: Path,
    before: Evaluation,
    after: Evaluation,
    seconds: float,
) -> dict[str, Any]:
    """Summary, model in the released format, report."""
    interval = gain_interval(before.total, after.total)
    summary = {
        "before": before.means,
        "after": after.means,
        "total_gain_ci95": list(interval),
        "captions": len(before.total),
        "steps": config.steps,
        "seconds": seconds,
    }
    write_json_atomic(run.summary, summary)
    rest = load_checkpoint(source, parts=("vq", "understanding"))
    save_checkpoint(
        run.root / "model", rest.config, model, rest.vq, rest.understanding, source,
        dtype="bfloat16",
    )  # fmt: skip
    print(format_table(before, after, interval))
    print(f"report: {write_report(run.root)}")
    return summary
