"""AdamW with warm-up, schedule and clipping, from its configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from gotr1_jax.trainer.config import OptimizerConfig


def make_schedule(config: OptimizerConfig, steps: int) -> Callable[[Any], Any]:
    """Learning rate of update 0 .. steps - 1: linear warm-up, then cosine or constant."""
    warmup = config.warmup_steps
    if config.schedule == "constant":
        after = optax.constant_schedule(config.learning_rate)
    else:
        span = max(steps - warmup, 1)
        after = optax.cosine_decay_schedule(config.learning_rate, span, config.final_fraction)
    if not warmup:
        return after
    # The rate of the first update is learning_rate / warmup, not 0.
    rise = optax.linear_schedule(config.learning_rate / warmup, config.learning_rate, warmup - 1)
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW; the first moment is float32 for parameters of any dtype."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_schedule(config, steps),
            b1=config.beta1,
            b2=config.beta2,
            weight_decay=config.weight_decay,
            mu_dtype=jnp.float32,
        ),
    )
