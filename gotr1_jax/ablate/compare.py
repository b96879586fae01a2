"""The comparison of an ablation's finished runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gotr1_jax.ablate.config import AblationConfig
from gotr1_jax.ablate.orderings import compare_checks, judge_orderings
from gotr1_jax.ablate.results import AblationResult, MetricResult, TermResult, VariantResult
from gotr1_jax.ablate.runs import PlannedRun, took
from gotr1_jax.ablate.scores import (
    TOTAL,
    GroupScores,
    captions_of,
    change,
    load_scores,
    mean_score,
    scorer,
)
from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import read_json_object
from gotr1_jax.rewards.pairwise import PairwiseConfig
from gotr1_jax.trainer.metrics import read_metrics
from gotr1_jax.trainer.run_dir import RunDir


def compare_finished(config: AblationConfig, runs: Sequence[PlannedRun]) -> AblationResult:
    """All that the finished runs say; InputError if one of them cannot be read."""
    try:
        groups = load_scores(runs)
        firsts: dict[str, GroupScores] = {}
        for (condition, _), group in groups.items():
            firsts.setdefault(condition, group)
        # Totals of different rewards do not compare.
        finished = [run for group in groups.values() for run in group.runs]
        alike = {run.group for run in finished if _has_reward_of(run, runs[0])}
        results = [
            compare(group, firsts[key[0]], with_total=len(alike) > 1 and key in alike)
            for key, group in groups.items()
        ]
        minutes = [took(run) for run in finished]
        return AblationResult(
            variants=results,
            columns=config.columns,
            orderings=judge_orderings(config, groups),
            checks=compare_checks(config.checks, groups),
            metrics=_metrics(config.metrics, groups),
            runs=len(runs),
            finished=len(finished),
            hours=None if None in minutes else sum(filter(None, minutes)) / 60,
            at_once=config.at_once,
        )
    except InputError as error:
        raise InputError(
            f"a finished run cannot be compared: {error}; remove its directory to train it again"
        ) from error


def _has_reward_of(run: PlannedRun, other: PlannedRun) -> bool:
    return scorer(run.config, TOTAL) == scorer(other.config, TOTAL)


def compare(group: GroupScores, first: GroupScores, with_total: bool = False) -> VariantResult:
    """One variant compared with the first of its condition.

    All seeds are evaluated on the same captions. With `with_total` the total is the first of the
    terms. Win rates are left out: their mean is one half whatever was learned.
    """
    config, of_first = group.config, first.config
    is_comparable = group is not first and captions_of(config) == captions_of(of_first)
    # Seeds that only one of both has would make a difference of seeds one of variants.
    both = [s for s in group.seeds if s in first.seeds] if is_comparable else []
    terms = {}
    for term, after in group.after.items():
        own = scorer(config, term)
        if term not in group.before or isinstance(own, PairwiseConfig):
            continue
        if term == TOTAL and not with_total:
            continue
        # A term of the same name may be another function's or another judge's.
        is_shared = both and term in first.after and own == scorer(of_first, term)
        others = first.of_seeds(first.after[term], both) if is_shared else None
        terms[term] = TermResult(
            before=mean_score(group.before[term]),
            after=mean_score(after),
            gain=change(group.before[term], after),
            over_first=None if others is None else change(others, group.of_seeds(after, both)),
        )
    seconds = [_seconds(RunDir(planned.root).summary) for planned in group.runs]
    return VariantResult(
        name=group.runs[0].variant,
        title=group.title,
        seeds=group.seeds,
        steps=config.steps,
        captions=config.evaluation.captions,
        samples=config.evaluation.samples,
        minutes=float(np.mean(seconds)) / 60,
        terms=terms,
        condition=group.condition,
    )


def _metrics(
    names: Sequence[str], groups: Mapping[tuple[str, str], GroupScores]
) -> list[MetricResult]:
    """Each metric in the first and the last tenth of the steps, the mean over seeds."""
    found = []
    for group in groups.values() if names else ():
        records = [read_metrics(RunDir(run.root).metrics) for run in group.runs]
        for name in names:
            series = [[r[name] for r in run if _is_number(r.get(name))] for run in records]
            if not all(series):
                continue
            tenths = [max(1, round(len(values) / 10)) for values in series]
            found.append(
                MetricResult(
                    condition=group.condition,
                    title=group.title,
                    name=name,
                    first=tuple(float(np.mean(v[:n])) for v, n in zip(series, tenths)),
                    last=tuple(float(np.mean(v[-n:])) for v, n in zip(series, tenths)),
                )
            )
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _seconds(summary: Path) -> float:
    seconds = read_json_object(summary).get("seconds")
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        raise InputError(f"{summary} has no seconds")
    return float(seconds)
