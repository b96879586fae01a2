"""From the scores of a rollout to the advantages of its plan and image tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax
import numpy as np

from gotr1_jax.grpo.advantage_config import AdvantageConfig
from gotr1_jax.grpo.advantages import (
    SampleAdvantages,
    gdpo_advantages,
    mean_over_chosen,
    normalise_batch,
    sample_advantages,
)
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.grpo.per_modality import PerModality
from gotr1_jax.grpo.rollout import ScoredRollout
from gotr1_jax.rewards.combine import combine
from gotr1_jax.rewards.expression import Expression
from gotr1_jax.rewards.terms import TermConfig

# Compiled as a whole: dozens of small programs take seconds in the first step. The single
# comparison of a caption's samples stays as it always was, to the bit.
_gdpo = jax.jit(gdpo_advantages, static_argnames=("scope", "images_per_plan"))
_normalise = jax.jit(normalise_batch)
_compare = jax.jit(sample_advantages, static_argnames=("kind", "scope", "images_per_plan"))


@dataclass(frozen=True)
class Credit:
    """What the tokens of plan and image learn from, as the configuration says.

    Attributes:
        terms: the reward's.
        learned_from: `Expression` of each modality; only `text` where the advantage is one.
        images_per_plan: rows in a row with one plan.
    """

    advantage: AdvantageConfig
    terms: Mapping[str, TermConfig]
    learned_from: PerModality
    images_per_plan: int

    def groups(self, scored: ScoredRollout) -> SampleAdvantages:
        """Advantages of P groups, each from its own samples only."""
        scope, images = self.advantage.scope, self.images_per_plan
        if self.advantage.kind == "gdpo":
            columns = [self._terms(scored, e) for e in (self._text, self._image)]
            terms, weights = (PerModality(*pair) for pair in zip(*columns))
            return _gdpo(terms, weights, scope, images)
        rewards = PerModality(scored.rewards_PG, scored.rewards_PG)
        if scope == "sample":
            return sample_advantages(rewards, self.advantage.kind)
        if self.advantage.is_split:
            rewards = PerModality(*(self._reward(scored, e) for e in (self._text, self._image)))
        return _compare(rewards, self.advantage.kind, scope, images)

    def batch(self, found: SampleAdvantages) -> SampleAdvantages:
        """The same groups with what depends on all of them together."""
        if self.advantage.kind == "gdpo":
            return _normalise(found)
        is_split_raft = self.advantage.kind == "raft" and self.advantage.is_split
        return mean_over_chosen(found) if is_split_raft else found

    @property
    def _text(self) -> Expression:
        expression: Expression = self.learned_from.text
        return expression

    @property
    def _image(self) -> Expression:
        expression: Expression = self.learned_from.image
        return expression

    def _reward(self, scored: ScoredRollout, expression: Expression) -> np.ndarray:
        total_B = combine(scored.table.scores, expression.text, self.terms)
        return total_B.reshape(-1, scored.group_size)

    def _terms(
        self, scored: ScoredRollout, expression: Expression
    ) -> tuple[list[np.ndarray], list[float]]:
        """The terms (P, G) that an expression names, without their weights, and the weights."""
        values, weights = [], []
        for name in expression.names:
            term = self.terms.get(name, TermConfig())
            value_B = replace(term, weight=1.0).value(scored.table.scores[name])
            values.append(value_B.astype(np.float32).reshape(-1, scored.group_size))
            weights.append(term.weight)
        return values, weights


def make_credit(config: GrpoConfig) -> Credit:
    """The credit of a job."""
    images = config.rollout.images_per_plan
    return Credit(config.advantage, config.reward.terms, config.learned_from, images)
