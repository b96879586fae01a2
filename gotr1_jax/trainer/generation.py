"""How a run samples where its settings leave it open: as it began, or as its checkpoint says."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from gotr1_jax.convert.generation_config import GenerationConfig, SamplingJob, resolve_sampling
from gotr1_jax.trainer.resume import resumed_settings

Job = TypeVar("Job", bound=SamplingJob)


def resolve_run_sampling(config: Job, checkpoint: Path | None, built_in: GenerationConfig) -> Job:
    """`resolve_sampling` of a training job, whose resumed run goes on as it began."""
    is_open = not built_in.stated.keys() <= config.sampled.stated.keys()
    stored = resumed_settings(config) if is_open else None
    former = GenerationConfig() if stored is None else stored.sampled
    return resolve_sampling(config, checkpoint, built_in, former)
