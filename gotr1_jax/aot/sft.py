"""The compiled step of `gotr1 train sft`, and its persistent arrays."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from gotr1_jax.aot.grpo import token_batch_shapes
from gotr1_jax.aot.job import JobCompiler, JobMemory, ModelSizes
from gotr1_jax.aot.measure import bytes_per_device
from gotr1_jax.aot.sampling import shard_rows
from gotr1_jax.aot.sizes import policy_sizes
from gotr1_jax.models.janus import abstract_policy
from gotr1_jax.parallel.mesh import job_mesh, replicated
from gotr1_jax.parallel.placement import check_rows, train_state_shardings
from gotr1_jax.parallel.sharding import placed_shapes
from gotr1_jax.sft.config import SftConfig
from gotr1_jax.sft.losses import SftWeights
from gotr1_jax.sft.update import make_sft_step
from gotr1_jax.trainer.optimizer import make_optimizer
from gotr1_jax.trainer.state import new_state


def compile_sft(config: SftConfig, models: ModelSizes, job: JobCompiler) -> None:
    """Compiles the step with the longest rows that the configuration allows."""
    mesh = job_mesh(config.mesh, job.target.devices)
    check_rows(config.micro_batch, mesh, "micro_batch")
    sizes, specials = policy_sizes(config.init or config.vq, models.policy)
    if config.model is not None:
        sizes = replace(sizes, decoder=config.model.decoder)
    module = abstract_policy(sizes, dtype=jnp.dtype(config.dtype), remat=config.remat)
    graphdef, params = nnx.split(module)
    optimizer = make_optimizer(config.optimizer, config.steps)
    shapes = jax.eval_shape(partial(new_state, optimizer=optimizer), params)
    state = placed_shapes(shapes, train_state_shardings(shapes, params, mesh))
    persistent = ("train state",)
    job.start(JobMemory(mesh, {"train state": bytes_per_device(state)}, persistent))

    weights = SftWeights(config.text_weight, config.image_weight, config.boi_weight)
    step = make_sft_step(
        graphdef, optimizer, specials, weights, config.caption_dropout, config.micro_batch,
        config.length_buckets,
    )  # fmt: skip
    limits = config.data.max_prompt_tokens, config.data.max_plan_tokens
    rows = shard_rows(token_batch_shapes(config.batch_size, *limits, sizes.num_image_tokens), mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))
    job.compile("sft step", step, state, rows, key, persistent_args=persistent, resident=persistent)
