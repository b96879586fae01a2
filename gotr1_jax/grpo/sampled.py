"""How rollouts are sampled where the configuration leaves it to the checkpoint, and how
the checkpoint that a run writes wants to be sampled."""

from __future__ import annotations

import logging

from gotr1_jax.convert.find import find_checkpoint
from gotr1_jax.convert.generation_config import GenerationConfig, read_generation_config
from gotr1_jax.grpo.config import SAMPLED, GrpoConfig
from gotr1_jax.sampler.config import sampling_defaults

BUILT_IN = sampling_defaults(*SAMPLED, "template")
"""Where neither the configuration nor the checkpoint states it."""
# Rollouts draw from the whole distribution: the log-probs of the loss are those of all tokens.
_WHOLE = sampling_defaults("greedy", "top_k", "top_p")
_log = logging.getLogger(__name__)


def resolve_job(config: GrpoConfig) -> GrpoConfig:
    """The job with a value for every setting of sampling, see `trainer.generation`."""
    from gotr1_jax.trainer.generation import resolve_run_sampling  # which imports jax

    source = find_checkpoint(config.policy.init)
    wanted = read_generation_config(source).stated
    resolved = resolve_run_sampling(config, source, BUILT_IN)
    cut = [name for name, value in _WHOLE.stated.items() if wanted.get(name, value) != value]
    if cut:
        names = ", ".join(cut)
        _log.info("%s of %s is for generation: rollouts draw from all tokens", names, source)
    return resolved


def trained_sampling(config: GrpoConfig) -> GenerationConfig:
    """How the policy of a run wants to be sampled: as its rollouts were."""
    return config.sampled.or_else(BUILT_IN, _WHOLE)
