"""The published reward terms and their totals: GoT-R1, arXiv 2505.17022 (section 3), and
ReasonGen-R1, arXiv 2505.24875. The only place that knows them by name beside their judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from gotr1_jax.errors import ConfigError

# The order is that of pages about runs of earlier versions.
MEANINGS: Mapping[str, str] = {
    "sem": "the plan names what the caption names",
    "spa": "the planned boxes obey the caption",
    "ri": "the image follows the plan (IoU)",
    "pi": "the caption is true of the image",
    "hps": "people would prefer the image",
    "verdict": "the caption is true of the image, yes or no",
}
# What each of them judges: from which tokens on its score is settled.
STAGES: Mapping[str, Literal["plan", "image"]] = {
    "sem": "plan",
    "spa": "plan",
    "ri": "image",
    "pi": "image",
    "hps": "image",
    "verdict": "image",
}
GOTR1_TERMS = ("sem", "spa", "ri", "pi")
RULES = ("v1", "v2", "sum")
_BRACKET, _FACTORS = ("sem", "spa"), ("pi", "ri", "hps")


def rule_text(rule: str, terms: Sequence[str]) -> str:
    """The total that a rule stands for, as an expression over the chosen terms.

    v1 = pi (sem + spa) ri and v2 = pi (sem + spa)/2 ri hps are the two versions of GoT-R1. With a
    subset of the terms a factor that is not chosen is 1. In the bracket v1 adds and v2 averages
    those of sem and spa that are chosen; with neither it is 1. `sum` is the mean of the chosen
    terms, of any names: a sum, scaled to one range whatever the number of terms; of the verdict
    alone it is the reward of ReasonGen-R1.

    ConfigError where a rule has no place for a term.
    """
    if not terms:
        raise ConfigError("names no term; name at least one")
    if rule == "sum":
        return terms[0] if len(terms) == 1 else f"({' + '.join(terms)}) / {len(terms)}"
    factors = [t for t in _FACTORS if t in terms]
    if rule == "v1" and "hps" in factors:
        raise ConfigError("is v1, which has no hps term: use v2 or sum, or leave hps out")
    other = [t for t in terms if t not in (*_BRACKET, *_FACTORS)]
    if other:
        raise ConfigError(
            f"is {rule}, which has no {other[0]} term: use sum, or write the total out, such as "
            f'"pi * {other[0]}"'
        )
    bracket = [t for t in _BRACKET if t in terms]
    if len(bracket) == 2:
        factors.append("(sem + spa)" if rule == "v1" else "((sem + spa) / 2)")
    return " * ".join(factors + bracket if len(bracket) == 1 else factors)
