"""From the terms of a reward to its total, and the metrics that are logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gotr1_jax.errors import ConfigError, InputError
from gotr1_jax.rewards.expression import Expression, parse_expression
from gotr1_jax.rewards.published import RULES, rule_text
from gotr1_jax.rewards.terms import TermConfig, as_terms, check_names

# Of a sample whose terms are all known.
NO_TOTAL = (
    "total failed: a division by zero or another value that is not finite or beyond 1e30 in "
    "reward.total"
)


def total_expression(total: str, terms: Sequence[str]) -> Expression:
    """The expression of a total: of the rule v1, v2 or sum over `terms`, or the text itself.

    ConfigError, whose text goes on after "reward.total", for any other text or one without terms.
    """
    expression = parse_expression(rule_text(total, terms) if total in RULES else total)
    if not expression.names:
        raise ConfigError(f"is {total!r}, which names no term; name at least one")
    return expression


def combine(
    scores: Mapping[str, np.ndarray], total: str, terms: Mapping[str, TermConfig] | Sequence[str]
) -> np.ndarray:
    """The total reward of each row.

    Args:
        scores: float (B,) for at least each term of the total; NaN where it could not be scored.
        total: an expression or a rule, see `total_expression`.
        terms: the terms with their settings. A name in the total stands for
            weight * clip(scale * score); one that is not listed for its score.

    Returns:
        float32 (B,); NaN in the rows where a term of the total is NaN or the total is not finite
        or beyond ±1e30 (a division by zero, an overflow).

    Raises:
        InputError: an expression that cannot be read, or no scores for a term in it.
    """
    settings = as_terms(terms)
    try:
        check_names(settings)
        expression = total_expression(total, list(settings))
    except ConfigError as error:
        raise InputError(f"the total {error}") from error
    missing = [t for t in expression.names if t not in scores]
    if missing:
        raise InputError(
            f"reward terms {', '.join(missing)} have no scores: the judge gives "
            f"{', '.join(scores) or 'none'}; choose from these"
        )
    default = TermConfig()
    return expression.evaluate(
        {name: settings.get(name, default).value(scores[name]) for name in expression.names}
    )


def without_total(
    scores: Mapping[str, np.ndarray], total_B: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    """Bool (B,): rows whose total is NaN though all its terms are known."""
    known = np.isnan(total_B)
    for name in names:
        known = known & np.isfinite(scores[name])
    return known


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
