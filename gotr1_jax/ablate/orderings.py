"""Which of the claimed orderings hold, and where a policy fools the judge that it is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gotr1_jax.ablate.config import START, AblationConfig, OrderingConfig
from gotr1_jax.ablate.results import Change, CheckResult, OrderingResult
from gotr1_jax.ablate.runs import PlannedRun
from gotr1_jax.ablate.scores import TOTAL, GroupScores, captions_of, change, mean_score, scorer
from gotr1_jax.errors import InputError
from gotr1_jax.grpo.config import GrpoConfig

Group = tuple[str, str]


def check_terms(config: AblationConfig, runs: Sequence[PlannedRun]) -> None:
    """InputError for a term that no evaluation will have, or that two variants measure unlike."""
    configs = {run.group: run.config for run in runs}
    known = {name for one in configs.values() for name in _terms_of(one)}
    pairs = [name for pair in config.checks.items() for name in pair]
    for where, names in (("columns", config.columns), ("checks", pairs)):
        unknown = next((name for name in names if name not in known), None)
        if unknown is not None:
            raise InputError(
                f"{where} holds {unknown!r}, which no variant's evaluation has; choose from "
                f"{', '.join(sorted(known))}"
            )
    for ordering in config.orderings:
        for condition in _conditions(configs):
            _check_ordering(ordering, condition, configs)


def _check_ordering(
    ordering: OrderingConfig, condition: str, configs: Mapping[Group, GrpoConfig]
) -> None:
    sides = [side for side in (ordering.better, ordering.worse) if side != START]
    if not all((condition, side) in configs for side in sides):
        return
    found = [configs[condition, side] for side in sides]
    where = f"orderings: {ordering.name!r}" + (f" under {condition!r}" if condition else "")
    for side, one in zip(sides, found):
        if ordering.term not in _terms_of(one):
            raise InputError(
                f"{where}: the evaluation of {side!r} has no term {ordering.term!r}; choose from "
                f"{', '.join(_terms_of(one))}"
            )
    if any(scorer(one, ordering.term) != scorer(found[0], ordering.term) for one in found):
        raise InputError(
            f"{where}: {ordering.term!r} of {' and '.join(sides)} is scored by different judges or "
            "rewards; name a term that both are scored by, such as one of evaluation.judges"
        )
    if any(captions_of(one) != captions_of(found[0]) for one in found):
        raise InputError(f"{where}: {' and '.join(sides)} are evaluated on different captions")


def _terms_of(config: GrpoConfig) -> list[str]:
    """The terms of a run's evaluations that say how good its samples are."""
    judged = [t for part in (config.judge, *config.judge.also) for t in part.scored_terms]
    wins = {name for name, term in config.reward.terms.items() if term.pairwise is not None}
    names = dict.fromkeys([TOTAL, *judged, *config.reward.terms, *config.evaluation.judges])
    return [name for name in names if name not in wins]


def _conditions(groups: Mapping[Group, object]) -> list[str]:
    return list(dict.fromkeys(condition for condition, _ in groups))


def judge_orderings(
    config: AblationConfig, groups: Mapping[Group, GroupScores]
) -> list[OrderingResult]:
    """Every claim under every condition, of the seeds that both variants have finished."""
    return [
        _test_one(ordering, condition, groups)
        for ordering in config.orderings
        for condition in _conditions(groups)
    ]


def _test_one(
    ordering: OrderingConfig, condition: str, groups: Mapping[Group, GroupScores]
) -> OrderingResult:
    sides = [side for side in (ordering.better, ordering.worse) if side != START]
    trained = [groups[condition, side] for side in sides if (condition, side) in groups]
    seeds: tuple[int, ...] = ()
    difference: Change | None = None
    if len(trained) == len(sides):
        seeds = tuple(s for s in trained[0].seeds if all(s in other.seeds for other in trained))

        def scores(side: str) -> np.ndarray | None:
            # The start is the policy before the other's training.
            group = groups.get((condition, side), trained[0])
            found = group.before if side == START else group.after
            return group.of_seeds(found[ordering.term], seeds) if ordering.term in found else None

        worse, better = scores(ordering.worse), scores(ordering.better)
        if seeds and worse is not None and better is not None:
            difference = change(worse, better)
    title = next(group.condition for key, group in groups.items() if key[0] == condition)
    return OrderingResult(
        name=ordering.name, term=ordering.term, better=ordering.better, worse=ordering.worse,
        condition=title, seeds=seeds, difference=difference,
    )  # fmt: skip


def compare_checks(
    checks: Mapping[str, str], groups: Mapping[Group, GroupScores]
) -> list[CheckResult]:
    """For each variant: what the judge that it is trained on says of its gain, and what the term
    that checks it says. Terms that are the very same are left out."""
    found = []
    for group in groups.values():
        for term, check in checks.items():
            parts = (group.before, group.after)
            if any(name not in part for name in (term, check) for part in parts):
                continue
            before, after = (part[term] for part in parts)
            check_before, check_after = (part[check] for part in parts)
            pairs = ((before, check_before), (after, check_after))
            if all(np.array_equal(own, other, equal_nan=True) for own, other in pairs):
                continue
            found.append(
                CheckResult(
                    condition=group.condition,
                    title=group.title,
                    term=term,
                    check=check,
                    trained=term in group.config.reward.expression.names,
                    seeds=group.seeds,
                    before=mean_score(before),
                    after=mean_score(after),
                    gain=change(before, after),
                    check_before=mean_score(check_before),
                    check_after=mean_score(check_after),
                    check_gain=change(check_before, check_after),
                    excess=change(check_after - check_before, after - before),
                )
            )
    return found
