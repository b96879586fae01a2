"""The evaluations of an ablation's finished runs: scores by seed and caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gotr1_jax.ablate.results import Change
from gotr1_jax.ablate.runs import PlannedRun
from gotr1_jax.errors import InputError
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.io.reading import read_json
from gotr1_jax.rewards.judge_config import CacheConfig
from gotr1_jax.rewards.terms import TermConfig
from gotr1_jax.trainer.bootstrap import crossed_interval

if TYPE_CHECKING:
    from gotr1_jax.grpo.evaluate import Evaluation

TOTAL = "total"
Scores = dict[str, np.ndarray]
"""By term, the total among them: float32 (S, P), a row a seed; NaN where none could be scored."""


@dataclass(frozen=True)
class GroupScores:
    """The finished runs of one variant under one condition, one a seed, with their scores."""

    runs: tuple[PlannedRun, ...]
    before: Scores
    after: Scores

    @property
    def config(self) -> GrpoConfig:
        """Of the first seed."""
        return self.runs[0].config

    @property
    def title(self) -> str:
        """Of the variant."""
        return self.runs[0].title

    @property
    def condition(self) -> str:
        """The title of its condition; empty without conditions."""
        return self.runs[0].condition_title

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, in the order of the rows."""
        return tuple(run.seed for run in self.runs)

    def of_seeds(self, scores_SP: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """The rows of `seeds`, in their order."""
        return scores_SP[[self.seeds.index(seed) for seed in seeds]]


def load_scores(runs: Sequence[PlannedRun]) -> dict[tuple[str, str], GroupScores]:
    """The scores of all finished runs, by `PlannedRun.group`; InputError if one cannot be read."""
    groups: dict[tuple[str, str], list[PlannedRun]] = {}
    for planned in runs:
        if planned.is_finished:
            groups.setdefault(planned.group, []).append(planned)
    # Of one evaluation, as variants are compared too, where it is the same.
    lengths: dict[tuple[object, ...], tuple[Path, int]] = {}
    return {key: _read_group(tuple(group), lengths) for key, group in groups.items()}


def _read_group(
    group: tuple[PlannedRun, ...], lengths: dict[tuple[object, ...], tuple[Path, int]]
) -> GroupScores:
    before, after = (
        {run.root / f"{name}.json": _evaluation(run.root / f"{name}.json") for run in group}
        for name in ("eval_before", "eval_after")
    )
    first, scores = next(iter(before.items()))
    for file, others in {**before, **after}.items():
        if set(others.terms) != set(scores.terms):
            raise InputError(f"{file} has other terms than {first}")
        known, length = lengths.setdefault(captions_of(group[0].config), (file, len(others.total)))
        if any(len(values) != length for values in (others.total, *others.terms.values())):
            raise InputError(f"{file} has {len(others.total)} captions, and {known} {length}")
    return GroupScores(group, _stack(list(before.values())), _stack(list(after.values())))


def _evaluation(file: Path) -> Evaluation:
    from gotr1_jax.grpo.evaluate import Evaluation

    return Evaluation.from_json(read_json(file, allow_nan=True), str(file))


def _stack(found: Sequence[Evaluation]) -> Scores:
    """The total first and watched terms last. A watched term that one of the runs could not score
    at all is left out."""
    terms = {name: np.stack([s.terms[name] for s in found]) for name in found[0].terms}
    names = [n for n in found[0].watched if all(n in s.watched for s in found)]
    watched = {n: np.stack([s.watched[n] for s in found]) for n in names}
    known = {n: values for n, values in watched.items() if np.isfinite(values).all(0).any()}
    return {TOTAL: np.stack([s.total for s in found]), **terms, **known}


def mean_score(scores_SP: np.ndarray) -> float:
    """The mean over the captions that every seed could score."""
    return float(np.nanmean(np.mean(scores_SP, axis=0)))


def change(old_SP: np.ndarray, new_SP: np.ndarray) -> Change:
    """The mean difference of the same seeds and captions, and its interval."""
    difference_SP = np.asarray(new_SP, np.float64) - old_SP
    return Change(mean_score(difference_SP), *crossed_interval(difference_SP))


def scorer(config: GrpoConfig, term: str) -> object:
    """What gives a term its values in evaluations: of terms that compare, equal in two runs. None
    for a name that no term has."""
    if term == TOTAL:
        return config.reward, config.judge
    if (watched := config.evaluation.judges.get(term)) is not None:
        return watched
    own = config.reward.terms.get(term, TermConfig())
    if own.source != "judge":
        return getattr(own, own.source)
    parts = (config.judge, *config.judge.also)
    part = next((part for part in parts if term in part.scored_terms), None)
    return part and replace(part, terms=(term,), also=(), cache=CacheConfig())


def captions_of(config: GrpoConfig) -> tuple[object, ...]:
    """What two variants must share for their captions' scores to be compared in pairs."""
    evaluation = config.evaluation
    return evaluation.source, evaluation.column, evaluation.captions, evaluation.samples
