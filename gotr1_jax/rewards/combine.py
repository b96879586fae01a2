"""From the terms of a reward to its total, and the metrics that are logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.rewards.base import TERMS

RULES = ("v1", "v2", "sum")


def check_rule(rule: str, terms: Sequence[str]) -> None:
    """Raise InputError, naming the fix, unless `rule` can combine `terms`."""
    if rule not in RULES:
        raise InputError(f"unknown reward rule {rule!r}: use one of {', '.join(RULES)}")
    if not terms or len(set(terms)) != len(terms) or not set(terms) <= set(TERMS):
        raise InputError(
            f"reward terms {tuple(terms)} must be one or more of {', '.join(TERMS)}, each once"
        )
    if rule == "v1" and "hps" in terms:
        raise InputError("reward rule v1 has no hps term: use v2 or sum, or leave hps out")
    if rule != "sum" and "verdict" in terms:
        raise InputError(f"reward rule {rule} has no verdict term: use sum, or leave verdict out")


def combine(scores: Mapping[str, np.ndarray], rule: str, terms: Sequence[str]) -> np.ndarray:
    """The total reward of each row.

    v1 = pi · (sem + spa) · ri and v2 = pi · (sem + spa)/2 · ri · hps are the two published
    versions of GoT-R1 (arXiv 2505.17022). With a subset of the terms a factor that is not
    chosen is 1. In the bracket v1 adds and v2 averages those of sem and spa that are chosen;
    with neither it is 1. `sum` is the mean of the chosen terms: a sum, scaled to one range
    whatever the number of terms; of the verdict alone it is the reward of ReasonGen-R1 (arXiv
    2505.24875).

    The total is in [0, 1]; only v1 with both sem and spa reaches 2.

    Args:
        scores: float (B,) in [0, 1] for at least each chosen term; NaN where it could not be
            scored.
        rule: "v1", "v2" or "sum".
        terms: the chosen terms, a subset of `TERMS` in any order.

    Returns:
        float32 (B,); NaN in the rows where a chosen term is NaN, and in no other.

    Raises:
        InputError: an unknown rule or term, a rule that cannot use a term, or no scores for one.
    """
    check_rule(rule, terms)
    missing = [t for t in terms if t not in scores]
    if missing:
        raise InputError(
            f"reward terms {', '.join(missing)} have no scores: the judge gives "
            f"{', '.join(scores) or 'none'}; choose from these"
        )
    chosen = {t: np.asarray(scores[t], np.float64) for t in terms}
    if rule == "sum":
        return np.mean(list(chosen.values()), axis=0).astype(np.float32)
    bracket = [chosen[t] for t in ("sem", "spa") if t in chosen]
    factors = [chosen[t] for t in ("pi", "ri", "hps") if t in chosen]
    if bracket:
        factors.append(np.sum(bracket, axis=0) if rule == "v1" else np.mean(bracket, axis=0))
    # A NaN must win over a factor of 0, and does: 0 · NaN is NaN.
    return np.prod(factors, axis=0).astype(np.float32)


def term_statistics(scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Metrics of reward vectors (B,), the total among them under the name "total".

    Returns:
        `reward/NAME/mean` and `reward/NAME/std` (population) of each vector over the rows that
        are not NaN (NaN where there are none), and `judge/failed_frac`, the share of rows in
        which any vector is NaN.
    """
    metrics: dict[str, float] = {}
    failed = np.zeros((), bool)
    for name, values in scores.items():
        values = np.asarray(values, np.float64)
        scored = values[~np.isnan(values)]
        metrics[f"reward/{name}/mean"] = float(scored.mean()) if scored.size else float("nan")
        metrics[f"reward/{name}/std"] = float(scored.std()) if scored.size else float("nan")
        failed = failed | np.isnan(values)
    metrics["judge/failed_frac"] = float(failed.mean())
    return metrics
