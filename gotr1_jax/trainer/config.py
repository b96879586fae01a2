"""What the configurations of all jobs share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gotr1_jax.config import positive
from gotr1_jax.errors import InputError


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with global-norm clipping."""

    learning_rate: float = 1e-5
    schedule: Literal["cosine", "constant"] = "cosine"
    # Steps of linear warm-up from zero; they count as steps of the schedule.
    warmup_steps: int = 0
    # The cosine ends at this share of learning_rate.
    final_fraction: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
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
    """Training checkpoints in run_dir/checkpoints, and how a signal ends a run."""

    # A checkpoint every so many steps, and after so many minutes without one (0: by steps alone).
    every: int = 100
    every_minutes: float = 0.0
    # Newest checkpoints that are kept, and whether the one with the best held-out total is too:
    # then every evaluated step is saved.
    keep: int = 2
    keep_best: bool = True
    # A run that is told to stop ends its step and saves it. When that takes longer than so many
    # seconds, the step is given up and the last checkpoint stays; 0: as long as it takes. Set it to
    # the platform's own grace less the time of a save: spot TPU VMs give about 30 s, Slurm
    # GraceTime and KillWait, GKE terminationGracePeriodSeconds. What a given-up step costs is
    # bounded by every_minutes.
    grace_seconds: float = 0.0

    def check(self) -> None:
        positive("checkpoint", every=self.every, keep=self.keep)
        for name in ("every_minutes", "grace_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"checkpoint.{name} is {getattr(self, name)}; use 0 or more")
