"""The compiled functions of a sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class SamplerPrograms:
    """The jitted functions of a `Sampler`, in the order of their use.

    Attributes:
      weights_in_panels: decode weights -> those of the loops for a few rows on one CPU.
      prefill_prompts: prompts -> their cache and the hidden states of their last tokens.
      start_plans, plan_bucket, finish_plans: the loop over plan tokens.
      repeat_plans: what is known of plans -> of the rows of their images.
      prefill_plans: given plans -> their cache.
      prefill_uncond: the cache of the unconditional prefix.
      start_images, image_bucket: the loop over image tokens.
      speculative_images: in their place with `SamplerConfig.speculative`.
    """

    weights_in_panels: Any
    prefill_prompts: Any
    start_plans: Any
    plan_bucket: Any
    finish_plans: Any
    repeat_plans: Any
    prefill_plans: Any
    prefill_uncond: Any
    start_images: Any
    image_bucket: Any
    speculative_images: Any


def repeat_rows(tree: Any, times: int) -> Any:
    """Each row of arrays (N, ...) `times` times, together: (N * times, ...)."""
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), tree)
