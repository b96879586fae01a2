"""The configuration of advantages; no device is needed to read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gotr1_jax.config import CheckedConfig
from gotr1_jax.errors import ConfigError

AdvantageKind = Literal["mean", "mean_std", "leave_one_out", "gdpo", "raft"]
AdvantageScope = Literal["sample", "segment", "tree", "best_of_plan"]


@dataclass(frozen=True)
class AdvantageConfig(CheckedConfig):
    """How the rewards of a caption's samples become advantages. See docs/methods.md."""

    # mean, mean_std, leave_one_out: of one reward, see `group_advantages`. gdpo: each term
    # normalised within its group, then their weighted sum over the batch (arXiv 2601.05242).
    # raft: only the best of a group is learned from, as in fine-tuning on it (arXiv 2304.06767).
    kind: AdvantageKind = "mean_std"
    # sample: one advantage for all tokens of a sample. segment: the plan's tokens learn from the
    # terms that judge the plan, the image's from those that judge the image. tree: plans of a
    # caption are compared by the mean of their images, images with those of the same plan.
    # best_of_plan: only the best image of each plan is learned from, compared with the others'
    # best. The last two need rollout.images_per_plan.
    scope: AdvantageScope = "sample"
    # What the plan learns from with scope segment or tree: an expression of term names as
    # reward.total. Empty: segment chooses by the terms' own `stage`, tree takes reward.total.
    text: str = ""
    # What the image learns from with scope segment or tree, as advantage.text.
    image: str = ""

    @property
    def is_split(self) -> bool:
        """Whether plan and image have advantages of their own."""
        return self.scope in ("segment", "tree")

    def check(self) -> None:
        """Expressions where they are used, and a kind that the scope has a meaning for."""
        for name in ("text", "image"):
            if getattr(self, name).strip() and not self.is_split:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r} with scope {self.scope}, where plan and "
                    "image learn from reward.total; use scope segment or tree, or leave it empty"
                )
        if (self.kind, self.scope) == ("gdpo", "best_of_plan"):
            raise ConfigError(
                "kind is gdpo with scope best_of_plan; each of its terms could call another image "
                "the best: use another kind"
            )
