"""The compiled programs of `gotr1 train grpo`, and its persistent arrays."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.aot.job import JobCompiler, JobMemory, ModelSizes
from gotr1_jax.aot.judge import JudgeShapes, compile_judge, judge_shapes
from gotr1_jax.aot.measure import bytes_per_device
from gotr1_jax.aot.sampling import SampledRows, array_shape, compile_rollout, shard_rows
from gotr1_jax.aot.sizes import judge_sizes, policy_sizes
from gotr1_jax.aot.target import Target
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.grpo.evaluate import captions_at_once
from gotr1_jax.grpo.per_modality import PerModality
from gotr1_jax.grpo.policy import policy_shapes
from gotr1_jax.grpo.prompts import PROMPT_MULTIPLE
from gotr1_jax.grpo.setup import make_learner, make_sampler, state_shapes
from gotr1_jax.grpo.update import Learner, PolicyBatch
from gotr1_jax.models.config import JanusConfig
from gotr1_jax.models.vq import abstract_vq, image_decoder
from gotr1_jax.parallel.mesh import (
    data_parallel_mesh,
    job_mesh,
    local_mesh,
    replicated,
    rollout_mesh,
    row_multiple,
)
from gotr1_jax.parallel.placement import check_rows
from gotr1_jax.parallel.sharding import placed_shapes
from gotr1_jax.rewards.scorer_configs import CLIP_KINDS
from gotr1_jax.sampler.image_decoder import round_up_to_devices
from gotr1_jax.sampler.sampler import Rollout
from gotr1_jax.sampler.token_batch import TokenBatch
from gotr1_jax.trainer.optimizer import make_optimizer

SAMPLED = "sampled policy"  # the copy of what is frozen on a mesh of its own


def compile_grpo(config: GrpoConfig, models: ModelSizes, job: JobCompiler) -> None:
    """Compiles the job's programs, the update first."""
    mesh = job_mesh(config.mesh, job.target.devices)
    apart = rollout_mesh(config.mesh, job.target.devices)
    sampling = mesh if apart is None else apart
    local = _host_mesh(sampling, job.target)
    check_rows(config.update.micro_batch, mesh, "update.micro_batch")
    _check_sampled(config, sampling)
    sizes, specials = policy_sizes(config.policy.init, models.policy)
    policy = policy_shapes(config.policy, sizes, mesh)
    optimizer = make_optimizer(config.optimizer, config.steps * config.update.updates_per_rollout)
    state = state_shapes(config, policy, optimizer, mesh)
    reference = None if config.loss.kl == "none" else policy.trained
    learner = make_learner(config, policy, sizes, specials, optimizer, reference)
    drawn_by = policy if apart is None else policy_shapes(config.policy, sizes, apart)
    sampler = make_sampler(config, drawn_by, sizes, specials, sampling)
    prepare, params = sampler.prepare_program(whole := drawn_by.whole(drawn_by.trained))
    decoding = data_parallel_mesh(local)
    judges = _judges(config, models, local)
    trains: tuple[str, ...] = ("policy", "train state", "reference")
    samples: tuple[str, ...] = ("pictures", "judge")
    made_from: tuple[str, ...] = ("policy", "train state")
    loading: tuple[str, ...] = ("policy", "trained parameters")
    persistent = {
        "policy": bytes_per_device(policy.frozen),
        "train state": bytes_per_device(state),
        "reference": bytes_per_device(reference),
        "pictures": bytes_per_device(_decoder_shapes(sizes, decoding)[1]),
        "judge": sum(part.bytes for part in judges),
        "sampler": bytes_per_device(params),
        "trained parameters": bytes_per_device(policy.trained),  # as loaded
    }
    memory = JobMemory(mesh, persistent, trains + samples, _notes(config, sampling))
    if apart is None:
        trains = samples = memory.always
    else:
        samples = (SAMPLED, *samples)
        memory = replace(
            memory, rollout_mesh=apart, always=trains + samples,
            persistent=persistent | {SAMPLED: bytes_per_device(drawn_by.frozen)},
            moved={"trained parameters": bytes_per_device(drawn_by.trained)},
        )  # fmt: skip
        made_from = loading = (SAMPLED,)
    job.start(memory)

    C, tokens = _prompt_width(config), sizes.num_image_tokens
    _compile_update(job, config, learner, policy.frozen, state, mesh, (C, tokens), trains)
    job.compile("sampler's weights", prepare, whole, persistent_args=made_from, resident=samples)
    resident = (*samples, "sampler")
    for sampled in _largest(*_rollouts(config, sampling)):
        compile_rollout(job, sampler, params, sampled, C, sampling, resident)
    own = _compile_decoder(job, config, sizes, decoding, sampling.size // local.size, resident)
    for part in judges:
        side = max(sizes.image_size, part.config.questions.canvas)
        job.compile(
            "judge: weights", part.programs.prepare_weights, part.state["text"], resident=loading
        )
        compile_judge(job, part, side, own, resident)


def _judges(config: GrpoConfig, models: ModelSizes, mesh: Mesh) -> list[JudgeShapes]:
    return [
        judge_shapes(part, judge_sizes(part.qwen_vl.checkpoint, models.judge), mesh)
        for part in (config.judge, *config.judge.also)
        if part.kind == "qwen_vl" and part.qwen_vl is not None
    ]


def _check_sampled(config: GrpoConfig, mesh: Mesh) -> None:
    """InputError unless what is sampled at once divides over the mesh."""
    for sampled in _rollouts(config, mesh):
        shared = f", {sampled.images} a plan" if sampled.images > 1 else ""
        what = f"{sampled.captions} captions of {sampled.samples} samples{shared}"
        check_rows(sampled.plans, mesh, f"{what}: their {'plans' if shared else 'rows'}")


def _compile_decoder(
    job: JobCompiler, config: GrpoConfig, sizes: JanusConfig, mesh: Mesh, hosts: int,
    resident: tuple[str, ...],
) -> int:  # fmt: skip
    """The image decoder of one of so many hosts; returns how many images it decodes a step."""
    decode, vq = _decoder_shapes(sizes, mesh)
    own = math.ceil(config.rollout.rows / hosts)
    batch = round_up_to_devices(config.rollout.decode_batch, mesh)
    ids = shard_rows(array_shape((batch, sizes.num_image_tokens), jnp.int32), mesh)
    job.compile(
        "image decoder", decode, vq, ids,
        persistent_args=("pictures",), resident=resident, runs_per_step=math.ceil(own / batch),
    )  # fmt: skip
    return own


def _decoder_shapes(sizes: JanusConfig, mesh: Mesh) -> tuple[Any, Any]:
    """The jitted image decoder, and its replicated parameters as shapes."""
    graphdef, state = nnx.split(abstract_vq(sizes.vq))
    shapes = placed_shapes(state, jax.tree.map(lambda _: replicated(mesh), state))
    return image_decoder(graphdef, sizes.grid), shapes


def _host_mesh(mesh: Mesh, target: Target) -> Mesh:
    """One process's part of the mesh, where it decodes and scores images."""
    part = local_mesh(mesh)
    devices = np.array(target.host_devices[: part.size])
    return Mesh(devices.reshape(part.devices.shape), part.axis_names)


def _rollouts(config: GrpoConfig, mesh: Mesh) -> tuple[SampledRows, SampledRows]:
    """Those of a training step and of an evaluation."""
    rollout = config.rollout
    rows, samples = rollout.rows_at_once, rollout.samples_per_caption
    held_out, tries = config.evaluation.captions, config.evaluation.samples
    at_once = captions_at_once(held_out, tries, rows, row_multiple(mesh))
    step = SampledRows(rows // samples, samples, rollout.images_per_plan, rollout.rows // rows)
    return step, SampledRows(at_once, tries)


def _largest(step: SampledRows, held_out: SampledRows) -> tuple[SampledRows, ...]:
    """Those whose programs are compiled: one with the most rows stands for both, but where images
    share plans in the step and not in the evaluation, each has programs of its own."""
    if step.images > 1 and held_out.plans > step.plans:
        return step, replace(held_out, label=", eval")
    return (step,) if step.rows >= held_out.rows else (replace(held_out, calls=step.calls),)


def _prompt_width(config: GrpoConfig) -> int:
    return -(-config.policy.max_prompt_tokens // PROMPT_MULTIPLE) * PROMPT_MULTIPLE


def _compile_update(
    job: JobCompiler, config: GrpoConfig, learner: Learner, frozen: Any, state: Any, mesh: Mesh,
    widths: tuple[int, int], resident: tuple[str, ...],
) -> None:  # fmt: skip
    """The update and the old log-probabilities of one update's rows.

    widths: tokens of prompts and images.
    """
    updates = config.update.updates_per_rollout
    B, T = config.rollout.rows // updates, config.sampling.max_plan_tokens + 1
    rows = token_batch_shapes(B, widths[0], T, widths[1])
    plan_logp_BT, image_logp_BU = _of(B, T, jnp.float32), _of(B, widths[1], jnp.float32)
    cond_BU = image_logp_BU if config.sampling.records_conditional else None
    logp_BN = _of(B, T + widths[1], jnp.float32)
    batch = PolicyBatch(
        rollout=Rollout(rows, plan_logp_BT, image_logp_BU, config.sampling.logp_settings, cond_BU),
        old_logp_BN=logp_BN if updates > 1 else None,
        ref_logp_BN=logp_BN if learner.reference is not None else None,
        advantages=PerModality(_of(B, None, jnp.float32), _of(B, None, jnp.float32)),
        row_mask_B=_of(B, None, bool),
        selected_BN=_of(B, T + widths[1], bool) if learner.tokens is not None else None,
        is_first_B=_of(B, None, bool) if updates > 1 else None,
    )
    batch = shard_rows(batch, mesh, heads=False)
    job.compile(
        "update", learner.update, state, frozen, batch, resident=resident,
        persistent_args=("policy", "train state"), runs_per_step=updates,
    )  # fmt: skip
    first = learner.tokens is not None  # whose entropies select tokens
    runs = updates - 1 + first + updates * (learner.reference is not None)
    job.compile(
        "old log-probabilities", learner.token_logps, state.params, frozen, batch.rollout.rows,
        persistent_args=("policy",), resident=resident, runs_per_step=runs,
    )  # fmt: skip


def token_batch_shapes(B: int, C: int, T: int, U: int) -> TokenBatch:
    """B rows with prompts of C, plans of T and images of U tokens."""
    return TokenBatch(
        prompt_ids_BC=_of(B, C, jnp.int32),
        prompt_len_B=_of(B, None, jnp.int32),
        plan_ids_BT=_of(B, T, jnp.int32),
        plan_len_B=_of(B, None, jnp.int32),
        plan_mask_BT=_of(B, T, bool),
        image_ids_BU=_of(B, U, jnp.int32),
    )


def _of(rows: int, width: int | None, dtype: Any) -> Any:
    return array_shape((rows,) if width is None else (rows, width), dtype)


def _notes(config: GrpoConfig, mesh: Mesh) -> tuple[str, ...]:
    notes = []
    kinds: list[str] = [part.kind for part in (config.judge, *config.judge.also)]
    terms = (*config.reward.terms.values(), *config.evaluation.judges.values())
    kinds += [term.source for term in terms]
    for kind in dict.fromkeys(kind for kind in kinds if kind in CLIP_KINDS):
        notes.append(f"the judge {kind} is not counted (as a ViT-H/14 about 2 GB, sharded)")
    step, held_out = (sampled.rows for sampled in _rollouts(config, mesh))
    if held_out > step:
        notes.append(
            f"an evaluation samples {held_out} rows at once, a step {step}: the loops are those of "
            "the evaluation; change evaluation.captions to make them smaller"
        )
    return tuple(notes)
