"""The configuration of `gotr1 train grpo`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from gotr1_jax.config import positive
from gotr1_jax.decoding.config import LogpMode
from gotr1_jax.errors import InputError
from gotr1_jax.grpo.advantages import AdvantageKind
from gotr1_jax.grpo.losses import PolicyLossConfig
from gotr1_jax.models.config import LoraConfig
from gotr1_jax.rewards.base import TERMS
from gotr1_jax.rewards.combine import check_rule
from gotr1_jax.rewards.factory import JudgeConfig
from gotr1_jax.sampler.config import SamplerConfig
from gotr1_jax.tokenizers.janus import GOTR1_TEMPLATE
from gotr1_jax.trainer.config import JobConfig


@dataclass(frozen=True)
class PolicyConfig:
    """The policy: checkpoint, dtypes, adapters, prompt."""

    # A checkpoint folder in a released format, or "embedded".
    init: str = "embedded"
    # dtype of activations; logits are always float32.
    dtype: Literal["float32", "bfloat16"] = "float32"
    # dtype of the trained parameters; adapters are always float32.
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    # What the backward pass recomputes: nothing, all but matrix products, or everything.
    remat: Literal["none", "dots", "full"] = "none"
    # Low-rank adapters; null trains every parameter of the policy.
    lora: LoraConfig | None = None
    template: str = GOTR1_TEMPLATE
    # Longer prompts are an error; prompts are padded to a multiple of 16.
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
    """Captions of the shapes world or of files."""

    # "shapes", or files, one or a list: text (a caption per line), .jsonl or .parquet, with the
    # wildcards * and ?. Files are concatenated in this order.
    source: str | tuple[str, ...] = "shapes"
    # Key of .jsonl and column of .parquet files; empty: "prompt" or, without it, "caption".
    column: str = ""
    # Number of captions of the shapes world's training split; not for files.
    count: int = 4096

    def check(self) -> None:
        if self.source == "shapes":
            positive("captions", count=self.count)
        elif not self.source:
            raise InputError("captions.source is empty; name a file, or shapes")


@dataclass(frozen=True)
class RolloutConfig:
    """Sampling of the rollout."""

    captions_per_step: int = 8
    samples_per_caption: int = 16
    max_plan_tokens: int = 600
    guidance: float = 5.0
    text_temperature: float = 1.0
    image_temperature: float = 1.0
    # Captions per sampling batch; fewer need less memory and more time. 0: captions_per_step. In
    # float32 it does not change the samples.
    captions_at_once: int = 0
    # Rows per batch of the VQ decoder in a process, rounded up to a multiple of its devices.
    decode_batch: int = 64

    @property
    def rows(self) -> int:
        """Samples of a step."""
        return self.captions_per_step * self.samples_per_caption

    @property
    def rows_at_once(self) -> int:
        """Samples per sampling batch, also in an evaluation."""
        return (self.captions_at_once or self.captions_per_step) * self.samples_per_caption

    @property
    def sampling(self) -> SamplerConfig:
        """Settings of the sampler; InputError for invalid values."""
        return SamplerConfig(
            max_plan_tokens=self.max_plan_tokens,
            guidance=self.guidance,
            text_temperature=self.text_temperature,
            image_temperature=self.image_temperature,
        )

    def check(self) -> None:
        positive(
            "rollout", captions_per_step=self.captions_per_step, decode_batch=self.decode_batch
        )
        try:
            _ = self.sampling
        except InputError as error:
            raise InputError(f"rollout.{error}") from error
        captions, at_once = self.captions_per_step, self.captions_at_once
        if at_once < 0 or (at_once and captions % at_once):
            raise InputError(
                f"rollout.captions_at_once is {at_once}; use a divisor of "
                f"rollout.captions_per_step, which is {captions}, or 0 for all of them"
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
    """How the judge's terms become one reward, and when judge failures end the run."""

    rule: Literal["v1", "v2", "sum"] = "v1"
    terms: tuple[str, ...] = ("sem", "spa", "ri", "pi")
    # The run ends when more than this fraction of the samples of the last `failure_steps` steps
    # could not be scored; 1: never.
    failure_limit: float = 0.2
    failure_steps: int = 10
    # Print an alarm after this many steps in a row with only zero rewards; 0: never.
    alarm_steps: int = 10

    def check(self) -> None:
        for term in self.terms:
            if term not in TERMS:
                raise InputError(f"reward.terms holds {term!r}; choose from {', '.join(TERMS)}")
        if not self.terms:
            raise InputError("reward.terms is empty; name at least one term")
        check_rule(self.rule, self.terms)
        positive("reward", failure_steps=self.failure_steps)
        if self.alarm_steps < 0:
            raise InputError(f"reward.alarm_steps is {self.alarm_steps}; use 0 or more")
        if not 0 <= self.failure_limit <= 1:
            raise InputError(f"reward.failure_limit is {self.failure_limit}; use 0 to 1")


@dataclass(frozen=True)
class GrpoLossConfig(PolicyLossConfig):
    """The policy loss, its advantages and its log-probs."""

    advantage: AdvantageKind = "mean_std"
    # Log-probs of image tokens: guided (both branches differentiated), guided_detach or
    # conditional.
    logp_mode: LogpMode = "conditional"

    def check(self) -> None:
        if (self.kl == "none") != (self.kl_weight == 0):
            raise InputError(
                f"loss.kl is {self.kl!r} with loss.kl_weight {self.kl_weight}; set both or neither"
            )


@dataclass(frozen=True)
class EntropyConfig:
    """Adaptive entropy; the defaults are ReasonGen-R1's. See `grpo.entropy`."""

    # Target entropies of the policy, in nats per token.
    text_target: float = 2.0
    image_target: float = 7.0
    # Learning rate of Adam on psi; the coefficient is sinh(psi).
    learning_rate: float = 5e-5
    # Largest absolute value of a coefficient.
    bound: float = 5e-3

    def check(self) -> None:
        positive("entropy", learning_rate=self.learning_rate, bound=self.bound)
        if min(self.text_target, self.image_target) < 0:
            raise InputError(
                f"entropy targets are {self.text_target} (text) and {self.image_target} (image); "
                "an entropy is never negative"
            )


@dataclass(frozen=True)
class UpdateConfig:
    """Optimizer steps per rollout and dynamic sampling."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"refill_rounds": "resample_rounds"}

    # Optimizer steps per rollout, each on different captions (mini-batches).
    updates_per_rollout: int = 1
    # Rows per forward and backward pass; gradients are accumulated.
    micro_batch: int = 64
    # Dynamic sampling: groups with equal rewards are replaced by new captions in at most this many
    # rounds.
    resample_rounds: int = 0
    # The run ends after this many non-finite updates in a row.
    max_bad_updates: int = 10

    def check(self) -> None:
        positive(
            "update", updates_per_rollout=self.updates_per_rollout, micro_batch=self.micro_batch
        )


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out captions, before, during and after training."""

    # As captions.source; "shapes" is its held-out split, of files evenly spaced captions are used.
    source: str | tuple[str, ...] = "shapes"
    # As captions.column.
    column: str = ""
    captions: int = 128
    # Samples per caption; a caption's score is their mean.
    samples: int = 4
    # Steps between evaluations; 0: only before and after training.
    every: int = 0
    # Number of captions with images in the report.
    shown: int = 12

    def check(self) -> None:
        positive("evaluation", captions=self.captions, samples=self.samples)


@dataclass(frozen=True, kw_only=True)
class GrpoConfig(JobConfig):
    """Reinforcement learning of plan and image together: `gotr1 train grpo`."""

    # Steps between saved groups of samples for the report.
    samples_every: int = 50
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    loss: GrpoLossConfig = field(default_factory=GrpoLossConfig)
    # Adaptive entropy term; null: none.
    entropy: EntropyConfig | None = None
    update: UpdateConfig = field(default_factory=UpdateConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @property
    def sampling(self) -> SamplerConfig:
        """Settings of the sampler, which also scores its tokens as the loss does."""
        return replace(self.rollout.sampling, logp_mode=self.loss.logp_mode)

    def check(self) -> None:
        super().check()
        positive("grpo", samples_every=self.samples_every)
        scored = [t for part in (self.judge, *self.judge.also) for t in part.scored_terms]
        for term in self.reward.terms:
            if term not in scored:
                raise InputError(
                    f"reward.terms holds {term!r}, but the judge gives {', '.join(scored)}; add a "
                    "judge for it (judge.also) or leave the term out"
                )
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
