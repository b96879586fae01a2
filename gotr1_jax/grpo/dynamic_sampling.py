"""The groups of one step: sampled, scored, and those that teach nothing replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gotr1_jax.grpo.advantages import GroupAdvantages, keep_groups
from gotr1_jax.grpo.rollout import ScoredRollout, join, take_rows


@dataclass(frozen=True)
class SampledGroups:
    """What an update learns from, and what the search for it cost.

    Attributes:
      scored: P·G rows; advantages_B float32 and row_mask_B bool: what an update takes of them.
      zero_variance_P: bool, kept groups whose rewards are all equal; their advantages are 0.
      zero_variance_frac: such groups among all that were sampled.
      rounds: how often P groups were sampled.
    """

    scored: ScoredRollout
    advantages_B: np.ndarray
    row_mask_B: np.ndarray
    zero_variance_P: np.ndarray
    zero_variance_frac: float
    rounds: int

    @property
    def wasted_frac(self) -> float:
        """Sampled rows that nothing is learned from: of groups that were dropped or have no
        variance, and those that no judge could tell."""
        learned_B = self.row_mask_B & ~np.repeat(
            self.zero_variance_P, len(self.scored) // len(self.zero_variance_P)
        )
        return 1.0 - float(learned_B.sum()) / (self.rounds * len(self.scored))


def sample_groups(
    draw: Callable[[int], ScoredRollout],
    advantages: Callable[[np.ndarray], GroupAdvantages],
    samples: int,
    resample_rounds: int,
) -> SampledGroups:
    """Draw groups until all have variance, in at most `resample_rounds` more rounds.

    Only the groups that an update may use are held, so memory does not grow with the rounds.

    Args:
        draw: a round by its number, 0, 1, …: always as many groups, of captions that are next.
        advantages: of rewards (P, G).
        samples: rows of a group, G.
        refills: rounds after the first.
    """
    scored = draw(0)
    P, flat, rounds = len(scored) // samples, 0, 1
    while True:
        groups = advantages(scored.total_B.reshape(-1, samples))
        flat += int(groups.zero_variance_P[-P:].sum())
        keep_P = np.asarray(keep_groups(groups.zero_variance_P, P))
        index = (keep_P[:, None] * samples + np.arange(samples)).reshape(-1)
        scored = take_rows(scored, index)
        adv_PG, mask_PG, zero_variance_P = (
            np.asarray(x)[keep_P] for x in (groups.adv_PG, groups.mask_PG, groups.zero_variance_P)
        )
        if rounds > resample_rounds or not zero_variance_P.any():
            break
        scored = join([scored, draw(rounds)])
        rounds += 1
    return SampledGroups(
        scored=scored,
        advantages_B=adv_PG.reshape(-1),
        row_mask_B=mask_PG.reshape(-1),
        zero_variance_P=zero_variance_P,
        zero_variance_frac=flat / (rounds * P),
        rounds=rounds,
    )
