"""Settings shared by all training jobs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from gotr1_jax.config import CheckedConfig
from gotr1_jax.errors import ConfigError
from gotr1_jax.limits import FilledText, Fraction, Range, Seed, Steps, StepsOrNever
from gotr1_jax.parallel.config import DistributedConfig, MeshConfig
from gotr1_jax.trainer.tracking.config import TrackerConfig, TrackerName, check_report_to


@dataclass(frozen=True)
class OptimizerConfig(CheckedConfig):
    """AdamW or Muon, with global-norm clipping."""

    # muon: the matrices of the layers take orthogonalised momentum as their step; all else, such as
    # embeddings, output heads, biases and norms, is trained by AdamW.
    kind: Literal["adamw", "muon"] = "adamw"
    # Muon's own rate, on the same schedule (null: learning_rate). Its steps have the usual size of
    # AdamW's, so a rate for AdamW is one to begin with.
    muon_learning_rate: Annotated[float, Range("(0, 1]")] | None = None
    # Decay per step of Muon's momentum.
    muon_momentum: Annotated[float, Range("[0, 1)")] = 0.95
    # Step size after warm-up.
    learning_rate: Annotated[float, Range("(0, 1]")] = 1e-5
    # cosine: the learning rate falls along half a cosine until the run's last step; constant: it
    # stays.
    schedule: Literal["cosine", "constant"] = "cosine"
    # Steps of linear warm-up from zero, part of the schedule's steps.
    warmup_steps: StepsOrNever = 0
    # The cosine ends at this fraction of learning_rate.
    final_fraction: Fraction = 0.0
    # Decay per step of AdamW's running mean of gradients.
    beta1: Annotated[float, Range("[0, 1)")] = 0.9
    # Decay per step of AdamW's running mean of squared gradients.
    beta2: Annotated[float, Range("[0, 1)")] = 0.95
    # Weight decay of matrices and adapters; biases, norms and embeddings do not decay.
    weight_decay: Annotated[float, Range("[0, 1000]")] = 0.0
    # Gradients are scaled so that their global norm is at most this.
    clip_norm: Annotated[float, Range("(0, inf)")] = 1.0

    def check(self) -> None:
        """A step may not take away more of a weight than there is."""
        if self.kind != "muon" and self.muon_learning_rate is not None:
            raise ConfigError(
                f"muon_learning_rate is {self.muon_learning_rate}, but kind is {self.kind}; set "
                "kind: muon or remove it"
            )
        for name in ("learning_rate", "muon_learning_rate"):
            rate = getattr(self, name)
            if rate is not None and rate * self.weight_decay >= 1:
                raise ConfigError(
                    f"weight_decay is {self.weight_decay}; times {name} {rate} it must be below 1"
                )

    def check_trained(self, what: str) -> None:
        """Raise ConfigError for Muon where only `what` are trained, no matrices of layers."""
        if self.kind == "muon":
            raise ConfigError(
                f"optimizer.kind is muon, which trains matrices of layers; {what} are none. Set "
                "optimizer.kind: adamw"
            )


@dataclass(frozen=True)
class CheckpointConfig(CheckedConfig):
    """Checkpoints in run_dir/checkpoints, and how a signal ends a run."""

    # Steps between checkpoints.
    every: Steps = 100
    # Minutes after which a checkpoint is due anyway; 0: no such limit.
    every_minutes: Annotated[float, Range("[0, 1e6]")] = 0.0
    # Number of newest checkpoints to keep.
    keep: Annotated[int, Range("[1, 1e6]")] = 2
    # Whether to also keep the checkpoint with the best held-out total; every evaluated step is then
    # saved.
    keep_best: bool = True
    # After a stop signal the current step is finished and saved. If that takes longer than this,
    # the step is abandoned; null: no limit, 0: no step is waited for. Set it to the platform's
    # grace period minus the time of a save: about 30 s for spot TPU VMs, GraceTime and KillWait for
    # Slurm, terminationGracePeriodSeconds for GKE. every_minutes bounds the work that is then lost.
    grace_seconds: Annotated[float, Range("[0, 1e6]")] | None = None


@dataclass(frozen=True, kw_only=True)
class JobConfig(CheckedConfig):
    """Fields of every job's configuration.

    In each section, `may_change` names the settings that only affect how a job runs: a resumed run
    may have other values of them (`trainer.resume`). All others are refused then.
    """

    may_change: ClassVar[Collection[str]] = (
        "run_dir", "steps", "resume", "allow_changes", "report_to", "tracker", "checkpoint", "mesh",
        "distributed", "compile_cache",
    )  # fmt: skip

    # Directory of the run; created if missing. Also a URL in a bucket: gs://BUCKET/NAME.
    run_dir: FilledText
    # Seed of all random numbers of the run: initial weights, data order, samples.
    seed: Seed = 0
    # Total steps of the run.
    steps: Steps = 1000
    # auto: resume from run_dir's checkpoints if it has any; never: refuse a run_dir that holds a
    # run; PATH: start from that run, or from one of its checkpoints. Only the first start reads
    # PATH: the same command, started again, goes on from run_dir's own checkpoints.
    resume: FilledText = "auto"
    # Resume under settings, or on files, that differ from those that the run was trained under.
    allow_changes: bool = False
    # Trackers of experiments that get the metrics and sample images, one or a list: tensorboard
    # (event files in run_dir/tensorboard), wandb, trackio, mlflow (each an extra of that name), or
    # none. metrics.jsonl is always written.
    report_to: TrackerName | tuple[TrackerName, ...] = "tensorboard"
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    # Where compiled programs are kept for later starts. auto: the user's cache folder
    # (~/.cache/gotr1/programs, or below XDG_CACHE_HOME), and none with several processes; none;
    # a folder, of several processes one that all of them see, or a URL. What
    # JAX_COMPILATION_CACHE_DIR says wins.
    compile_cache: FilledText = "auto"

    def check(self) -> None:
        """Trackers that are named once."""
        check_report_to(self.report_to, self.tracker)

    @property
    def array_choices(self) -> Mapping[str, Any]:
        """What decides which arrays a checkpoint holds, by the name of its setting or section. A
        run cannot be resumed with another value, not even with `allow_changes`."""
        return {"optimizer.kind": self.optimizer.kind}
