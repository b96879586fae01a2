"""What an experiment consists of: one dataclass a job, its parts shared between jobs.

Each field is documented where it stands; `configs/` holds one complete YAML an experiment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from gotr1_jax.errors import InputError
from gotr1_jax.models.config import DecoderConfig, LoraConfig, SiglipConfig

GOTR1_TEMPLATE = (
    "User: Follow the caption to generate an image through a chain of thought process: "
    "{caption}\n\nAssistant:"
)


def positive(where: str, **values: float) -> None:
    """Raise InputError for the first of `values` that is not above zero, and finite."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise InputError(f"{where}.{name} is {value}; it must be above 0")


def check_seed(seed: int) -> None:
    """Raise InputError unless every random stream can be seeded with `seed`."""
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}; use 0 to {2**32 - 1}")


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one axis may be -1: all devices that are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    # Devices that the CPU is divided into when there is no accelerator: one a core splits rows
    # over cores where single operations do not fill them.
    cpu_devices: int = 1


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
    """Training checkpoints in run_dir/checkpoints."""

    every: int = 100
    # Newest checkpoints that are kept.
    keep: int = 2

    def check(self) -> None:
        positive("checkpoint", every=self.every, keep=self.keep)


@dataclass(frozen=True)
class PolicyConfig:
    """The model that is trained and how it computes."""

    # A checkpoint folder in a released format, or "embedded".
    init: str = "embedded"
    # dtype of activations; logits are float32 always.
    dtype: Literal["float32", "bfloat16"] = "float32"
    # dtype of the trained parameters (adapters are float32 always).
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    # What the backward pass recomputes: none, dots (all but matrix products), full.
    remat: Literal["none", "dots", "full"] = "none"
    # Low-rank adapters; null trains every parameter of the policy.
    lora: LoraConfig | None = None
    template: str = GOTR1_TEMPLATE
    # Longer prompts are refused; prompts are padded to a multiple of 16.
    max_prompt_tokens: int = 256

    def check(self) -> None:
        positive("policy", max_prompt_tokens=self.max_prompt_tokens)
        if "{caption}" not in self.template:
            raise InputError(f"policy.template is {self.template!r}; it must hold {{caption}}")
        if self.lora is not None:
            positive("policy.lora", rank=self.lora.rank, alpha=self.lora.alpha)
            known = ("q", "k", "v", "o", "gate", "up", "down")
            for target in self.lora.targets:
                if target not in known:
                    raise InputError(
                        f"policy.lora.targets holds {target!r}; choose from {', '.join(known)}"
                    )


@dataclass(frozen=True)
class CaptionsConfig:
    """Captions of the shapes world, or of a text / JSONL file."""

    # "shapes", or the path of a .txt (a caption a line) or .jsonl file (key prompt or caption).
    source: str = "shapes"
    # Captions drawn from the shapes world's training split; a file is used whole.
    count: int = 4096


@dataclass(frozen=True)
class RolloutConfig:
    """Sampling: how many rows, how long, how hot."""

    captions_per_step: int = 8
    samples_per_caption: int = 16
    max_plan_tokens: int = 600
    guidance: float = 5.0
    text_temperature: float = 1.0
    image_temperature: float = 1.0
    # Rows decoded to pixels at once.
    decode_batch: int = 64

    def check(self) -> None:
        positive(
            "rollout",
            captions_per_step=self.captions_per_step,
            max_plan_tokens=self.max_plan_tokens,
            text_temperature=self.text_temperature,
            image_temperature=self.image_temperature,
            decode_batch=self.decode_batch,
        )
        if self.samples_per_caption < 2:
            raise InputError(
                f"rollout.samples_per_caption is {self.samples_per_caption}; a group needs at "
                "least 2 samples, because advantages compare samples of one caption"
            )
        if self.guidance < 1:
            raise InputError(f"rollout.guidance is {self.guidance}; use 1 (off) or more")


@dataclass(frozen=True)
class RewardConfig:
    """Which judge scores which terms, and how they become one number."""

    judge: Literal["shapes"] = "shapes"
    rule: Literal["v1", "v2", "sum"] = "v1"
    terms: tuple[str, ...] = ("sem", "spa", "ri", "pi")

    def check(self) -> None:
        known = ("sem", "spa", "ri", "pi")
        for term in self.terms:
            if term not in known:
                raise InputError(f"reward.terms holds {term!r}; choose from {', '.join(known)}")
        if not self.terms:
            raise InputError("reward.terms is empty; name at least one term")


@dataclass(frozen=True)
class GrpoLossConfig:
    """The policy loss; `rl.losses` has the formulas and their sources."""

    kind: Literal["grpo", "dapo", "dr_grpo", "gspo"] = "grpo"
    advantage: Literal["mean", "mean_std", "leave_one_out"] = "mean_std"
    clip_low: float = 0.2
    clip_high: float = 0.2
    text_weight: float = 1.0
    image_weight: float = 1.0
    kl: Literal["none", "k1", "k2", "k3"] = "none"
    kl_weight: float = 0.0
    # Which log-probabilities of picture tokens the ratio is made of; see `sampling.replay`.
    logp_mode: Literal["guided", "guided_detach", "conditional"] = "guided"

    def check(self) -> None:
        if not (0 < self.clip_low < 1 and self.clip_high > 0):
            raise InputError(
                f"loss.clip_low is {self.clip_low}, loss.clip_high is {self.clip_high}; "
                "use 0 < clip_low < 1 and clip_high > 0"
            )
        if (self.kl == "none") != (self.kl_weight == 0):
            raise InputError(
                f"loss.kl is {self.kl!r} with loss.kl_weight {self.kl_weight}; set both or neither"
            )


@dataclass(frozen=True)
class UpdateConfig:
    """How a rollout becomes optimizer steps."""

    # Optimizer steps a rollout, each on its own share of the captions.
    updates_per_rollout: int = 1
    # Rows of one forward and backward pass; gradients are summed over passes.
    micro_batch: int = 64
    # Groups whose rewards are all equal are replaced by new captions, at most this many rounds.
    refill_rounds: int = 0
    # The run ends after this many non-finite updates in a row.
    max_bad_updates: int = 10

    def check(self) -> None:
        positive(
            "update", updates_per_rollout=self.updates_per_rollout, micro_batch=self.micro_batch
        )


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out captions of the shapes world, before, during and after training."""

    captions: int = 128
    # Samples of each caption; a caption's score is their mean.
    samples: int = 4
    # Steps between evaluations; 0: only before and after.
    every: int = 0
    # Captions whose pictures are kept for the report.
    shown: int = 12

    def check(self) -> None:
        positive("evaluation", captions=self.captions, samples=self.samples)


@dataclass(frozen=True)
class GrpoConfig:
    """Reinforcement learning of plan and picture together: `gotr1 train grpo`."""

    run_dir: str
    seed: int = 0
    steps: int = 1000
    # auto: continue if run_dir has checkpoints; never: refuse to; PATH: continue that run.
    resume: str = "auto"
    # Steps between saved groups of samples for the report.
    samples_every: int = 50
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    loss: GrpoLossConfig = field(default_factory=GrpoLossConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def check(self) -> None:
        positive("grpo", steps=self.steps, samples_every=self.samples_every)
        check_seed(self.seed)
        captions, groups = self.rollout.captions_per_step, self.update.updates_per_rollout
        if captions % groups:
            raise InputError(
                f"rollout.captions_per_step {captions} does not divide by "
                f"update.updates_per_rollout {groups}; use a multiple"
            )
        rows = captions // groups * self.rollout.samples_per_caption
        if rows % self.update.micro_batch:
            raise InputError(
                f"update.micro_batch {self.update.micro_batch} does not divide the {rows} rows of "
                "one update (captions_per_step / updates_per_rollout x samples_per_caption)"
            )


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a new model; the tokenizer and the VQ give the vocabularies."""

    decoder: DecoderConfig
    siglip: SiglipConfig


@dataclass(frozen=True)
class SftDataConfig:
    """Examples of the shapes world: caption, plan, picture."""

    # Training examples; drawn and tokenised once, then shuffled every epoch.
    examples: int = 20000
    # Share of examples whose plan (and picture) contradicts the caption.
    unfaithful_fraction: float = 0.0
    max_prompt_tokens: int = 48
    max_plan_tokens: int = 80
    # Where picture tokens are kept between runs.
    cache_dir: str = ".cache/picture_tokens"

    def check(self) -> None:
        positive("data", examples=self.examples, max_plan_tokens=self.max_plan_tokens)
        if not 0 <= self.unfaithful_fraction <= 1:
            raise InputError(f"data.unfaithful_fraction is {self.unfaithful_fraction}; use 0 to 1")


@dataclass(frozen=True)
class SftConfig:
    """Plan and picture learned from examples: `gotr1 train sft`."""

    run_dir: str
    # Checkpoint folder that holds the VQ tokenizer (`gotr1 train vq` writes one).
    vq: str
    seed: int = 0
    steps: int = 1000
    resume: str = "auto"
    batch_size: int = 64
    # Rows of one forward and backward pass.
    micro_batch: int = 64
    # Probability that a row's prompt and plan are replaced by the null context.
    caption_dropout: float = 0.1
    # A checkpoint to start from; null: a new model of size `model`.
    init: str | None = None
    model: ModelSize | None = None
    # Where the finished model is written in the released format; null: run_dir/model.
    export_dir: str | None = None
    remat: Literal["none", "dots", "full"] = "none"
    dtype: Literal["float32", "bfloat16"] = "float32"
    template: str = GOTR1_TEMPLATE
    # Loss weights of plan tokens, picture tokens and the begin-of-image token.
    text_weight: float = 1.0
    image_weight: float = 1.0
    boi_weight: float = 1.0
    log_every: int = 20
    data: SftDataConfig = field(default_factory=SftDataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def check(self) -> None:
        positive("sft", steps=self.steps, batch_size=self.batch_size, micro_batch=self.micro_batch)
        check_seed(self.seed)
        if (self.init is None) == (self.model is None):
            raise InputError(
                "set exactly one of init (a checkpoint) and model (sizes of a new one)"
            )
        if self.batch_size % self.micro_batch:
            raise InputError(
                f"micro_batch {self.micro_batch} does not divide batch_size {self.batch_size}"
            )
        if self.batch_size > self.data.examples:
            raise InputError(
                f"batch_size is {self.batch_size}, data.examples is {self.data.examples}; a batch "
                "holds each example once, so use more examples"
            )
        weights = (self.text_weight, self.image_weight, self.boi_weight)
        if min(weights) < 0 or max(weights) == 0:
            raise InputError(f"text, image and boi weights are {weights}; none negative, not all 0")
        if not 0 <= self.caption_dropout < 1:
            raise InputError(f"caption_dropout is {self.caption_dropout}; use 0 to below 1")
