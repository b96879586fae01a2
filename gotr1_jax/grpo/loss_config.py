"""The configuration of a policy loss; no device is needed to read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from gotr1_jax.config import CheckedConfig
from gotr1_jax.errors import ConfigError
from gotr1_jax.limits import FilledText, Range, Weight

KlKind = Literal["none", "k1", "k2", "k3"]
LOSS_KINDS = ("grpo", "dapo", "dr_grpo", "gspo", "cispo", "gmpo")


@dataclass(frozen=True)
class ImportanceConfig(CheckedConfig):
    """Weights exp(log-prob of the trainer - log-prob of the sampler), as `losses.importance`."""

    # Of each token, or of a sample (the product of its tokens'); truncate: held within low and
    # high; mask: 0 outside of them. The names are TRL's.
    kind: Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = (
        "token_truncate"
    )
    # The least weight that is left as it is.
    low: Annotated[float, Range("[0, 1]")] = 0.0
    # The largest weight that is left as it is.
    high: Annotated[float, Range("[1, 1e6]")] = 2.0


@dataclass(frozen=True)
class TokenChoiceConfig(CheckedConfig):
    """Tokens whose surrogate is in the loss: the share of highest entropy in a mini-batch."""

    # Share of the plan's tokens; 1: all.
    text_share: Annotated[float, Range("(0, 1]")] = 1.0
    # Share of the image's tokens; 1: all.
    image_share: Annotated[float, Range("(0, 1]")] = 1.0


@dataclass(frozen=True)
class EntropyBonusConfig(CheckedConfig):
    """Added to a token's advantage A: min(weight · entropy, limit · |A|); entropy in nats."""

    # Weight of a plan token's entropy.
    text_weight: Weight = 0.4
    # Weight of an image token's entropy.
    image_weight: Weight = 0.0
    # The most that is added, as a share of |A|; below 1 no advantage changes its sign.
    limit: Annotated[float, Range("(0, 1)")] = 0.5


@dataclass(frozen=True)
class PolicyLossConfig(CheckedConfig):
    """Which policy loss, and its weights."""

    # grpo: weighted mean over a sample's tokens, then mean over samples (arXiv 2402.03300).
    # dapo: weighted mean over all tokens (arXiv 2503.14476). dr_grpo: weighted sum over a sample's
    # tokens / max_tokens, then mean over samples (arXiv 2503.20783). gspo: one ratio a sample,
    # exp(weighted mean log-ratio), clipped as one (arXiv 2507.18071). gmpo: the same of log-ratios
    # that are clipped token by token (arXiv 2507.20673). cispo: clipped ratio, not differentiated,
    # times log-prob; mean over all tokens (arXiv 2506.13585). Or a function of one's own,
    # module:function or file.py:function.
    kind: FilledText = "grpo"
    # What gspo and gmpo take for one sequence: the whole sample, or the plan and the image, each
    # with a ratio of its own. In a run's configuration auto stands for what advantage.scope
    # compares.
    gspo_ratio: Literal["auto", "sample", "segment"] = "auto"
    # The ratio is clipped to [1 - clip_low, 1 + clip_high]; clip_low 1: not from below. In gmpo it
    # is the log-ratio, clipped to [-clip_low, clip_high]; its paper has 0.4 for both.
    clip_low: Annotated[float, Range("(0, 1]")] = 0.2
    # The upper bound of the ratio, see clip_low.
    clip_high: Annotated[float, Range("(0, 1000]")] = 0.2
    # Weight of a plan token.
    text_weight: Weight = 1.0
    # Weight of an image token.
    image_weight: Weight = 1.0
    # Estimator of the KL to the reference, the policy before training, which is added to each
    # token's loss; none: no KL.
    kl: KlKind = "none"
    # Weight of the KL in the loss.
    kl_weight: Weight = 0.0
    # The constant length of dr_grpo; in a run's configuration 0 stands for all tokens that a sample
    # can have: rollout.max_plan_tokens and those of an image.
    max_tokens: Annotated[int, Range("[0, 10000000]")] = 0
    # Correction for a sampler whose log-probs are not the trainer's; null: none.
    importance: ImportanceConfig | None = None
    # Only tokens of high entropy; null: all. Costs a forward pass of the first mini-batch.
    tokens: TokenChoiceConfig | None = None
    # Larger advantages where the policy was uncertain; null: none.
    entropy_bonus: EntropyBonusConfig | None = None

    @property
    def is_own(self) -> bool:
        """Whether `kind` names a function of the user's."""
        return ":" in self.kind

    def check(self) -> None:
        """A loss that exists, and something to learn."""
        if not self.is_own and self.kind not in LOSS_KINDS:
            raise ConfigError(
                f"kind is {self.kind!r}; choose from {', '.join(LOSS_KINDS)}, or name a function "
                "of your own as file.py:function or module:function"
            )
        if self.text_weight == self.image_weight == 0:
            raise ConfigError("text_weight and image_weight are both 0; give one a weight")
