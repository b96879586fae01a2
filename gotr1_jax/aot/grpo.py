"""The programs of `gotr1 train grpo`, and what lies in memory all the time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.aot.judging import judge_shapes, judging, load_judge
from gotr1_jax.aot.measure import Program, device_bytes
from gotr1_jax.aot.sampling import Run, on_rows, prompt_shapes, rollout, shape, weights
from gotr1_jax.aot.sizes import judge_sizes, policy_sizes
from gotr1_jax.aot.target import Target
from gotr1_jax.decoding.config import LogpSettings
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.grpo.evaluate import captions_at_once
from gotr1_jax.grpo.policy import policy_shapes
from gotr1_jax.grpo.rollout import PROMPT_MULTIPLE
from gotr1_jax.grpo.setup import make_learner, make_sampler, state_shapes
from gotr1_jax.grpo.update import Learner, PolicyBatch
from gotr1_jax.models.vq import abstract_vq, image_decoder
from gotr1_jax.parallel.mesh import (
    data_parallel_mesh,
    local_mesh,
    make_mesh,
    replicated,
    row_multiple,
)
from gotr1_jax.parallel.placement import check_rows
from gotr1_jax.parallel.sharding import placed_shapes
from gotr1_jax.rewards.factory import JudgeConfig
from gotr1_jax.sampler.image_decoder import round_up_to_devices
from gotr1_jax.sampler.sampler import Rollout
from gotr1_jax.sampler.token_batch import TokenBatch
from gotr1_jax.trainer.optimizer import make_optimizer


@dataclass(frozen=True)
class Models:
    """Sizes that the command line gives; None: by the configuration."""

    policy: str | None = None
    judge: str | None = None


@dataclass(frozen=True)
class Job:
    """What a job consists of.

    Attributes:
      mesh: of the policy.
      lasting: bytes on one device of trees that outlive the programs that use them, by name.
      always: which of them lie in memory all the time.
      remarks: what the numbers leave out.
    """

    mesh: Mesh
    lasting: dict[str, int]
    always: tuple[str, ...]
    remarks: tuple[str, ...] = ()


def grpo(config: GrpoConfig, models: Models, target: Target, run: Run) -> Iterator[Job]:
    """Compiles the job's programs, the update first; yields once, before the first of them."""
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, target.devices)
    local = _host_mesh(mesh, target)
    check_rows(config.update.micro_batch, mesh, "update.micro_batch")
    for captions, samples in _rollouts(config, mesh):
        check_rows(
            captions * samples, mesh, f"{captions} captions of {samples} samples: their rows"
        )
    sizes, specials = policy_sizes(config.policy.init, models.policy)
    policy = policy_shapes(config.policy, sizes, mesh)
    optimizer = make_optimizer(config.optimizer, config.steps * config.update.updates_per_rollout)
    state = state_shapes(config, policy, optimizer, mesh)
    has_kl = config.loss.kl != "none"
    reference = policy.trained if has_kl else None
    learner = make_learner(config, policy, specials, optimizer, reference)
    sampler = make_sampler(config, policy, sizes, specials, mesh)
    params = sampler.prepare_program(policy.whole(policy.trained))[1]
    vq_graph, vq = nnx.split(abstract_vq(sizes.vq))
    decoding = data_parallel_mesh(local)
    vq = placed_shapes(vq, jax.tree.map(lambda _: replicated(decoding), vq))
    judges = [part for part in (config.judge, *config.judge.also) if part.kind == "qwen2_5_vl"]
    judge_parts = [judge_shapes(part, _sizes_of(part, models), local) for part in judges]
    lasting = {
        "policy": device_bytes(policy.frozen),
        "train state": device_bytes(state),
        "reference": device_bytes(policy.trained) if has_kl else 0,
        "pictures": device_bytes(vq),
        "judge": sum(part.bytes for part in judge_parts),
        "sampler": device_bytes(params),
        # The train state makes a copy; until then it is as it was loaded.
        "what is trained": device_bytes(policy.trained),
    }
    always = ("policy", "train state", "reference", "pictures", "judge")
    yield Job(mesh, lasting, always, _remarks(config, mesh))

    sampling = (*always, "sampler")
    tokens, C = sizes.num_image_tokens, _prompt_width(config)
    _learning(run, config, learner, policy.frozen, state, mesh, (C, tokens), always)
    weights(run, sampler, policy.whole(policy.trained), always)
    captions, samples = max(_rollouts(config, mesh), key=math.prod)
    prompts = prompt_shapes(captions, C, mesh)
    parts = config.rollout.rows // config.rollout.rows_at_once
    rollout(run, sampler, params, prompts, samples, parts, mesh, sampling)
    batch = round_up_to_devices(config.rollout.decode_batch, decoding)
    ids = on_rows(shape((batch, tokens), jnp.int32), decoding)
    own = math.ceil(config.rollout.rows * local.size / mesh.size)
    decode = image_decoder(vq_graph, sizes.grid)
    run(
        Program(
            "image decoder", decode, (vq, ids), holds=("pictures",), beside=sampling,
            times=math.ceil(own / batch),
        )
    )  # fmt: skip
    for part in judge_parts:
        side = max(sizes.image_size, part.config.questions.canvas)
        load_judge(run, part, ("policy", "what is trained"))
        judging(run, part, side, own, sampling)


def _host_mesh(mesh: Mesh, target: Target) -> Mesh:
    """The part of the mesh that one process decodes and judges on."""
    part = local_mesh(mesh)
    return Mesh(np.array(target.host[: part.size]).reshape(part.devices.shape), part.axis_names)


def _sizes_of(part: JudgeConfig, models: Models) -> Any:
    assert part.qwen2_5_vl is not None
    return judge_sizes(part.qwen2_5_vl.checkpoint, models.judge)


def _rollouts(config: GrpoConfig, mesh: Mesh) -> tuple[tuple[int, int], tuple[int, int]]:
    """Captions and samples that a step draws at once, and those that an evaluation does."""
    rows, samples = config.rollout.rows_at_once, config.rollout.samples_per_caption
    held_out, tries = config.evaluation.captions, config.evaluation.samples
    at_once = captions_at_once(held_out, tries, rows, row_multiple(mesh))
    return (rows // samples, samples), (at_once, tries)


def _prompt_width(config: GrpoConfig) -> int:
    return -(-config.policy.max_prompt_tokens // PROMPT_MULTIPLE) * PROMPT_MULTIPLE


def _learning(
    run: Run, config: GrpoConfig, learner: Learner, frozen: Any, state: Any, mesh: Mesh,
    widths: tuple[int, int], beside: tuple[str, ...],
) -> None:  # fmt: skip
    """Old log-probabilities and the update, of one share of a rollout."""
    updates = config.update.updates_per_rollout
    B, T = config.rollout.rows // updates, config.rollout.max_plan_tokens + 1
    rows = row_shapes(B, widths[0], T, widths[1])
    plan_logp_BT, image_logp_BU = _of(B, T, jnp.float32), _of(B, widths[1], jnp.float32)
    logp_BN = _of(B, T + widths[1], jnp.float32)
    batch = PolicyBatch(
        rollout=Rollout(rows, plan_logp_BT, image_logp_BU, LogpSettings()),
        old_logp_BN=logp_BN if updates > 1 else None,
        ref_logp_BN=logp_BN if learner.reference is not None else None,
        advantages_B=_of(B, None, jnp.float32),
        row_mask_B=_of(B, None, bool),
    )
    batch = on_rows(batch, mesh, heads=False)
    holds = ("policy", "train state")
    run(
        Program(
            "update", learner.update, (state, frozen, batch), holds=holds, beside=beside,
            times=updates,
        )
    )  # fmt: skip
    times = updates - 1 + updates * (learner.reference is not None)
    run(
        Program(
            "old log-probabilities", learner.token_logps,
            (state.params, frozen, batch.rollout.rows),
            holds=("policy",), beside=beside, times=times,
        )
    )  # fmt: skip


def row_shapes(B: int, C: int, T: int, U: int) -> TokenBatch:
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
    return shape((rows,) if width is None else (rows, width), dtype)


def _remarks(config: GrpoConfig, mesh: Mesh) -> tuple[str, ...]:
    remarks = []
    if any(part.kind == "hps" for part in (config.judge, *config.judge.also)):
        remarks.append("the judge hps is not counted (a ViT-H/14: about 2 GB, split like the rest)")
    step, held_out = map(math.prod, _rollouts(config, mesh))
    if held_out > step:
        remarks.append(
            f"an evaluation draws {held_out} rows at once, a step {step}: the loops are those of "
            "the evaluation; another number of evaluation.captions makes them smaller"
        )
    return tuple(remarks)
