"""Dynamic sampling (DAPO, arXiv 2503.14476): groups with zero variance are replaced.

A group whose advantages are all 0, as of equal rewards, teaches nothing. More captions are sampled
instead, in a bounded number of resample rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from gotr1_jax.grpo.advantages import SampleAdvantages, keep_groups
from gotr1_jax.grpo.alarms import JudgedCounts
from gotr1_jax.grpo.per_modality import PerModality
from gotr1_jax.grpo.rollout import ScoredRollout


@dataclass(frozen=True)
class SampledGroups:
    """The groups that an update learns from, and what it cost to find them.

    Attributes:
      scored: P groups of G samples.
      advantages: of the plan's and of the image's tokens, float32 (B,).
      row_mask_B: bool, False on samples that could not be scored, and on those that the kind of
        advantage leaves out.
      zero_variance_P: bool, groups whose advantages are all 0.
      zero_variance_frac: share of such groups in all that were sampled.
      rounds: how often P groups were sampled.
      drawn: counts over all samples of all rounds. `scored` has few of those that a judge could
        not score, as groups without variance are replaced.
    """

    scored: ScoredRollout
    advantages: PerModality
    row_mask_B: np.ndarray
    zero_variance_P: np.ndarray
    zero_variance_frac: float
    rounds: int
    drawn: JudgedCounts

    @property
    def wasted_frac(self) -> float:
        """Share of the sampled rows that do not contribute to the update: of dropped groups, of
        groups with zero variance, and those of `row_mask_B`."""
        used_B = self.row_mask_B & ~np.repeat(self.zero_variance_P, self.scored.group_size)
        return 1.0 - float(used_B.sum()) / (self.rounds * len(self.scored))


def sample_groups(
    sample: Callable[[int], ScoredRollout],
    advantages: Callable[[ScoredRollout], SampleAdvantages],
    resample_rounds: int,
    batch: Callable[[SampleAdvantages], SampleAdvantages] = lambda found: found,
) -> SampledGroups:
    """Sample groups until P have variance, in at most `resample_rounds` more rounds.

    No more than 2 P groups are held at once, so memory does not grow with the rounds.

    Args:
      sample: samples and scores P groups of the next captions, given the round: 0, 1, ….
      advantages: of some groups, each from its own samples.
      resample_rounds: rounds after the first.
      batch: what is left to do with the advantages of all groups that are kept.
    """
    scored = sample(0)
    P, zero_variance, rounds = len(scored.rewards_PG), 0, 1
    drawn = JudgedCounts.of(scored.table)
    while True:
        groups = advantages(scored)
        zero_variance += int(groups.zero_variance_P[-P:].sum())
        keep_P = np.asarray(keep_groups(groups.zero_variance_P, P))
        scored = scored.take_groups(keep_P)
        kept = _take(groups, keep_P)
        if rounds > resample_rounds or not kept.zero_variance_P.any():
            break
        new = sample(rounds)
        drawn += JudgedCounts.of(new.table)
        scored = scored.append(new)
        rounds += 1
    kept = batch(kept)
    return SampledGroups(
        scored=scored,
        advantages=jax.tree.map(lambda adv_PG: np.asarray(adv_PG).reshape(-1), kept.advantages),
        row_mask_B=np.asarray(kept.mask_PG).reshape(-1),
        zero_variance_P=np.asarray(kept.zero_variance_P),
        zero_variance_frac=zero_variance / (rounds * P),
        rounds=rounds,
        drawn=drawn,
    )


def _take(groups: SampleAdvantages, index_P: np.ndarray) -> SampleAdvantages:
    taken: SampleAdvantages = jax.tree.map(lambda x: np.asarray(x)[index_P], groups)
    return taken
