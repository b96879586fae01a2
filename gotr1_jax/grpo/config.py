"""The configuration of `gotr1 train grpo`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from gotr1_jax.config import CheckedConfig, load_config
from gotr1_jax.convert.generation_config import GenerationConfig
from gotr1_jax.decoding.config import LogpMode
from gotr1_jax.errors import ConfigError
from gotr1_jax.grpo.advantage_config import AdvantageConfig
from gotr1_jax.grpo.diversity_measures import MEASURES, OF_CAPTIONS
from gotr1_jax.grpo.learned_from import check_known, check_sum, check_tree, find_learned_from
from gotr1_jax.grpo.loss_config import PolicyLossConfig
from gotr1_jax.grpo.patience import DIVERSITY, PatienceConfig
from gotr1_jax.grpo.reward_config import RewardConfig
from gotr1_jax.grpo.reward_flag import expand_rewards
from gotr1_jax.grpo.rollout_config import SAMPLED, RolloutConfig
from gotr1_jax.grpo.watched import check_watched
from gotr1_jax.limits import (
    FilledText,
    Fraction,
    ItemCount,
    PromptTemplate,
    Range,
    RowCount,
    Steps,
    StepsOrNever,
    TokenCount,
)
from gotr1_jax.models.config import LoraConfig
from gotr1_jax.parallel.config import SplitMeshConfig
from gotr1_jax.rewards.expression import Expression
from gotr1_jax.rewards.judge_config import JudgeConfig
from gotr1_jax.rewards.terms import TermConfig, check_sources
from gotr1_jax.sampler.config import SamplerConfig
from gotr1_jax.tokenizers.janus import GOTR1_TEMPLATE
from gotr1_jax.trainer.config import JobConfig

if TYPE_CHECKING:
    from gotr1_jax.grpo.per_modality import PerModality

# What a mesh must divide, by its setting.
PLANS_AT_ONCE = "the number of plans sampled at once (rows / rollout.images_per_plan)"


@dataclass(frozen=True)
class PolicyConfig(CheckedConfig):
    """The policy: checkpoint, dtypes, adapters, prompt."""

    may_change: ClassVar[Collection[str]] = ("remat",)

    # A checkpoint folder in a released format, or "embedded".
    init: FilledText = "embedded"
    # dtype of activations; logits are always float32.
    dtype: Literal["float32", "bfloat16"] = "float32"
    # dtype of the trained parameters; adapters are always float32.
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    # What the backward pass recomputes: nothing, all but matrix products, or everything.
    remat: Literal["none", "dots", "full"] = "none"
    # Null: every parameter of the policy is trained.
    lora: LoraConfig | None = None
    # The prompt around {caption}. Null: as init's generation_config.json says, else GoT-R1's.
    template: PromptTemplate | None = None
    # Tokens of the longest prompt; longer ones are an error. Prompts are padded to a multiple of
    # 16.
    max_prompt_tokens: TokenCount = 256

    @property
    def prompt_template(self) -> str:
        """The prompt around a caption."""
        return GOTR1_TEMPLATE if self.template is None else self.template


@dataclass(frozen=True)
class CaptionsConfig(CheckedConfig):
    """Captions of the shapes world or of files."""

    may_change: ClassVar[Collection[str]] = ("unusable_limit",)

    # "shapes", or files, one or a list: text (a caption per line), .jsonl or .parquet, with the
    # wildcards * and ?. Files are concatenated in this order.
    source: FilledText | tuple[FilledText, ...] = "shapes"
    # Key of .jsonl and column of .parquet files; empty: "prompt" or, without it, "caption".
    column: str = ""
    # Number of captions of the shapes world's training split; not for files.
    count: ItemCount = 4096
    # Captions of files without text, with control characters or over policy.max_prompt_tokens are
    # left out, here and in the evaluation; a larger share of them than this is an error.
    unusable_limit: Fraction = 0.01

    def check(self) -> None:
        """A source that names something."""
        if not self.source:
            raise ConfigError("source is empty; name a file, or shapes")


@dataclass(frozen=True)
class GrpoLossConfig(PolicyLossConfig):
    """The policy loss and its log-probs."""

    # Log-probs of image tokens: guided (both branches differentiated), guided_detach or
    # conditional.
    logp_mode: LogpMode = "conditional"

    def check(self) -> None:
        """A KL term has an estimator and a weight."""
        super().check()
        if (self.kl == "none") != (self.kl_weight == 0):
            raise ConfigError(
                f"kl is {self.kl!r} with kl_weight {self.kl_weight}; set both or neither"
            )


@dataclass(frozen=True)
class EntropyConfig(CheckedConfig):
    """Adaptive entropy; the defaults are ReasonGen-R1's. See `grpo.entropy`."""

    # Entropy of the plan's tokens that is aimed for, in nats per token.
    text_target: Annotated[float, Range("[0, 100]")] = 2.0
    # The same of the image's tokens.
    image_target: Annotated[float, Range("[0, 100]")] = 7.0
    # Learning rate of Adam on psi; the coefficient is sinh(psi).
    learning_rate: Annotated[float, Range("(0, 1]")] = 5e-5
    # Largest absolute value of a coefficient.
    bound: Annotated[float, Range("(0, 1000]")] = 5e-3


@dataclass(frozen=True)
class UpdateConfig(CheckedConfig):
    """Optimizer steps per rollout and dynamic sampling."""

    may_change: ClassVar[Collection[str]] = ("micro_batch", "length_buckets", "max_bad_updates")

    renamed_keys: ClassVar[Mapping[str, str]] = {"refill_rounds": "resample_rounds"}

    # Optimizer steps per rollout, each on different captions (mini-batches).
    updates_per_rollout: RowCount = 1
    # Rows per forward and backward pass; gradients are accumulated.
    micro_batch: RowCount = 64
    # Lengths that prompts with their plans are padded to: so many, in equal steps from a quarter of
    # the longest that the limits allow up to it. Rows of like length share a micro-batch, so short
    # ones cost less where an update is several micro-batches. Every length is compiled.
    length_buckets: Annotated[int, Range("[1, 32]")] = 1
    # Dynamic sampling: groups with equal rewards are replaced by new captions in at most this many
    # rounds.
    resample_rounds: Annotated[int, Range("[0, 1000]")] = 0
    # The run ends after this many non-finite updates in a row.
    max_bad_updates: Steps = 10


@dataclass(frozen=True)
class EvaluationConfig(CheckedConfig):
    """Held-out captions, before, during and after training."""

    # Nothing of judges and patience reaches an update.
    may_change: ClassVar[Collection[str]] = ("every", "shown", "follow", "judges", "patience")

    # As captions.source: "shapes" (its held-out split), or files, one or a list, of which evenly
    # spaced captions are used.
    source: FilledText | tuple[FilledText, ...] = "shapes"
    # As captions.column: key of .jsonl and column of .parquet files.
    column: str = ""
    # Number of held-out captions.
    captions: Annotated[int, Range("[1, 1048576]")] = 128
    # Samples per caption; a caption's score is their mean.
    samples: Annotated[int, Range("[1, 65536]")] = 4
    # Steps between evaluations; 0: only before and after training.
    every: StepsOrNever = 0
    # Number of captions with images in the report.
    shown: Annotated[int, Range("[0, 1048576]")] = 12
    # Whether these captions are also sampled at the steps of samples_every, so that the report
    # shows each of them over the steps. Updates are the same without.
    follow: bool = True
    # Watched terms: scored in evaluations alone, never trained on. Each as in reward.terms, with a
    # source of its own.
    judges: Mapping[str, TermConfig] = field(default_factory=dict)
    # Ends the run early when a value of the evaluations falls; null: never.
    patience: PatienceConfig | None = None

    def check(self) -> None:
        """A source that names something, watched terms with sources, patience that can act."""
        if not self.source:
            raise ConfigError("source is empty; name a file, or shapes")
        check_watched(self.judges)
        if self.patience is None:
            return
        if not self.every:
            raise ConfigError(
                "patience needs evaluations during training; set every to a number of steps"
            )
        name = self.patience.term.removeprefix(DIVERSITY)
        compared = self.samples if name in OF_CAPTIONS else self.samples * self.captions
        if self.patience.is_diversity and compared < 2:
            raise ConfigError(
                f"patience.term is {self.patience.term}, which compares samples"
                f"{' of a caption' if name in OF_CAPTIONS else ''}; set samples to 2 or more, it "
                f"is {self.samples}"
            )


@dataclass(frozen=True, kw_only=True)
class GrpoConfig(JobConfig):
    """Reinforcement learning of plan and image together: `gotr1 train grpo`."""

    may_change: ClassVar[Collection[str]] = ("samples_every",)

    renamed_keys: ClassVar[Mapping[str, str]] = {"loss.advantage": "advantage.kind"}

    # Steps between saved groups of samples for the report.
    samples_every: Steps = 50
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    loss: GrpoLossConfig = field(default_factory=GrpoLossConfig)
    # Adaptive entropy term; null: none.
    entropy: EntropyConfig | None = None
    update: UpdateConfig = field(default_factory=UpdateConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    mesh: SplitMeshConfig = field(default_factory=SplitMeshConfig)

    @classmethod
    def from_file(cls, path: Path, overrides: Sequence[str] = ()) -> Self:
        """As `load_config`; `--reward FUNCTION` adds a term, see `grpo.reward_flag`."""
        return load_config(cls, path, expand_rewards(cls, path, overrides))

    def stores_samples(self, step: int) -> bool:
        """Whether samples of a step are stored for the report."""
        return step % self.samples_every == 0 or step in (1, self.steps)

    @property
    def sampled(self) -> GenerationConfig:
        """What is set of how plans and images are sampled; of a run's own file, all of it."""
        return replace(self.rollout.sampled, template=self.policy.template)

    def sampled_as(self, settings: GenerationConfig) -> Self:
        """A copy that is sampled with these `settings`."""
        try:
            rollout = replace(self.rollout, **{name: getattr(settings, name) for name in SAMPLED})
        except ConfigError as error:
            raise ConfigError(f"rollout.{error}") from error
        return replace(
            self, rollout=rollout, policy=replace(self.policy, template=settings.template)
        )

    @property
    def sampling(self) -> SamplerConfig:
        """Settings of the sampler, which also scores its tokens as the loss does."""
        return replace(self.rollout.sampling, logp_mode=self.loss.logp_mode)

    def check(self) -> None:
        """Terms that the judge gives, and updates that divide the rows."""
        super().check()
        if self.policy.lora is not None:
            self.optimizer.check_trained("adapters (policy.lora)")
        scored = [t for part in (self.judge, *self.judge.also) for t in part.scored_terms]
        advantage, reward, rollout = self.advantage, self.reward, self.rollout
        check_known("reward.total", reward.total, reward.expression, reward.terms, scored)
        learned_from = self.learned_from
        for name in ("text", "image"):
            expression: Expression = getattr(learned_from, name)
            where = f"advantage.{name}" if getattr(advantage, name).strip() else "reward.total"
            check_known(where, expression.text, expression, reward.terms, scored)
            if advantage.kind == "gdpo":
                check_sum(where, expression)
        check_tree(advantage, rollout.images_per_plan, rollout.samples_per_caption)
        check_sources(reward.terms, scored, self.evaluation.samples)
        self._check_watched(set(scored))
        corrects = self.loss.importance is not None or self.loss.is_own
        rollout.check_async(self.update.resample_rounds, corrects)
        captions, groups = self.rollout.captions_per_step, self.update.updates_per_rollout
        if captions % groups:
            raise ConfigError(
                f"rollout.captions_per_step {captions} does not divide by "
                f"update.updates_per_rollout {groups}; use a multiple"
            )
        rows = captions // groups * self.rollout.samples_per_caption
        if rows % self.update.micro_batch:
            raise ConfigError(
                f"update.micro_batch {self.update.micro_batch} does not divide the {rows} rows of "
                "one update (captions_per_step / updates_per_rollout x samples_per_caption)"
            )

    @property
    def array_choices(self) -> Mapping[str, Any]:
        """Coefficients of the entropy, and the weights of a sampler that lags behind."""
        return {
            **super().array_choices,
            "entropy": self.entropy is not None,
            "rollout.refresh_every": self.rollout.keeps_older_weights,
            "rollout.async_steps": self.rollout.keeps_older_weights,
        }

    @property
    def learned_from(self) -> PerModality:
        """The expressions (`Expression`) of what the plan's and the image's tokens learn from."""
        return find_learned_from(self.advantage, self.reward.total, self.reward.terms)

    def _check_watched(self, scored: Collection[str]) -> None:
        """Watched terms that are not trained ones, and patience with a value that there is."""
        trained = {*scored, *self.reward.terms}
        for name in self.evaluation.judges:
            if name in trained:
                raise ConfigError(
                    f"evaluation.judges holds {name!r}, which the run's own judge or reward.terms "
                    "give; choose another name for the watched term"
                )
        patience, every = self.evaluation.patience, self.evaluation.every
        if patience is None:
            return
        measures = [DIVERSITY + name for name in MEASURES]
        names = ["total", *self.evaluation.judges, *sorted(trained), *measures]
        if patience.term not in names:
            raise ConfigError(
                f"evaluation.patience.term is {patience.term!r}; choose from {', '.join(names)}"
            )
        wins = {name for name, term in self.reward.terms.items() if term.pairwise is not None}
        watched = self.reward.expression.names if patience.term == "total" else {patience.term}
        if wins.issuperset(watched):
            raise ConfigError(
                f"evaluation.patience.term is {patience.term}, a win rate between samples of one "
                "caption, whose mean is always 0.5; choose a term that scores each sample"
            )
        evaluations = (self.steps - 1) // every  # before the last step
        if evaluations < patience.evaluations:
            raise ConfigError(
                f"evaluation.patience.evaluations is {patience.evaluations}, but {self.steps} "
                f"steps with evaluation.every {every} have {evaluations} before the last; lower "
                "evaluation.every"
            )
        if patience.action == "restore_best" and not self.checkpoint.keep_best:
            raise ConfigError(
                "evaluation.patience.action is restore_best, but checkpoint.keep_best is false; "
                "set it true, or action to stop"
            )
