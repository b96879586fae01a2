"""Settings shared by all training jobs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from gotr1_jax.config import check_seed, positive
from gotr1_jax.errors import InputError
from gotr1_jax.parallel.config import DistributedConfig, MeshConfig


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with global-norm clipping."""

    learning_rate: float = 1e-5
    schedule: Literal["cosine", "constant"] = "cosine"
    # Steps of linear warm-up from zero, part of the schedule's steps.
    warmup_steps: int = 0
    # The cosine ends at this fraction of learning_rate.
    final_fraction: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    # Of matrices and adapters; biases, norms and embeddings do not decay.
    weight_decay: float = 0.0
    # Gradients are scaled so that their global norm is at most this.
    clip_norm: float = 1.0

    def check(self) -> None:
        positive("optimizer", learning_rate=self.learning_rate, clip_norm=self.clip_norm)
        if not 0 <= self.final_fraction <= 1:
            raise InputError(f"optimizer.final_fraction is {self.final_fraction}; use 0 to 1")
        if self.warmup_steps < 0:
            raise InputError(f"optimizer.warmup_steps is {self.warmup_steps}; use 0 or more")


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints in run_dir/checkpoints, and how a signal ends a run."""

    # Steps between checkpoints, and minutes after which one is due anyway (0: no such limit).
    every: int = 100
    every_minutes: float = 0.0
    # Number of newest checkpoints to keep, and whether to also keep the one with the best held-out
    # total; every evaluated step is then saved.
    keep: int = 2
    keep_best: bool = True
    # After a stop signal the current step is finished and saved. If that takes longer than this,
    # the step is abandoned; null: no limit, 0: no step is waited for. Set it to the platform's
    # grace period minus the time of a save: about 30 s for spot TPU VMs, GraceTime and KillWait for
    # Slurm, terminationGracePeriodSeconds for GKE. every_minutes bounds the work that is then lost.
    grace_seconds: float | None = None

    def check(self) -> None:
        positive("checkpoint", every=self.every, keep=self.keep)
        for name in ("every_minutes", "grace_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"checkpoint.{name} is {value}; use 0 or more")


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """Fields of every job's configuration."""

    # Directory of the run; created if missing.
    run_dir: str
    seed: int = 0
    # Total steps of the run.
    steps: int = 1000
    # auto: resume from run_dir's checkpoints if it has any; never: refuse a run_dir that holds a
    # run; PATH: resume from that run, or from one of its checkpoints.
    resume: str = "auto"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    def check(self) -> None:
        """Raise InputError for a value out of range."""
        if self.steps < 1:
            raise InputError(f"steps is {self.steps}; it must be above 0")
        check_seed(self.seed)
