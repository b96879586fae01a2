"""The compiled functions of a sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gotr1_jax.decoding.panels import panels_help
from gotr1_jax.sampler.policy_weights import PolicyWeights


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

    def loop_weights(self, params: PolicyWeights, rows: int) -> PolicyWeights:
        """The weights as a loop over tokens of `rows` rows reads them fastest."""
        if panels_help(params.norm_D, rows):
            return self.weights_in_panels(params, rows=rows)
        return params


def repeat_rows(tree: Any, times: int) -> Any:
    """Each row of arrays (N, ...) `times` times, together: (N * times, ...)."""
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), tree)
