"""What a term judges, the plan or the image, and the part of a total that is about one of them."""

from __future__ import annotations

from collections.abc import Mapping

from gotr1_jax.errors import ConfigError
from gotr1_jax.rewards.combine import total_expression
from gotr1_jax.rewards.published import RULES, STAGES, rule_text
from gotr1_jax.rewards.terms import BOTH, Stage, TermConfig


def stage_of(name: str, term: TermConfig) -> Stage:
    """What a term judges: as its settings say, else its source, else as published; else both."""
    if term.stage is not None:
        return term.stage
    if term.source != "judge":
        stage: Stage = getattr(getattr(term, term.source), "stage", BOTH)
        return stage
    return STAGES.get(name, BOTH)


def stage_total(stage: Stage, total: str, terms: Mapping[str, TermConfig]) -> str:
    """The part of `total` about the plan or the image, as an expression.

    A rule is applied to the terms of that stage; of any other total it is the mean of its terms of
    that stage. ConfigError where there are none.
    """
    names = total_expression(total, list(terms)).names
    stages = {name: stage_of(name, terms.get(name, TermConfig())) for name in names}
    chosen = [name for name, of in stages.items() if of in (stage, BOTH)]
    if not chosen:
        known = ", ".join(f"{name} {of}" for name, of in stages.items())
        raise ConfigError(f"has no term that judges the {stage} ({known})")
    return rule_text(total if total in RULES else "sum", chosen)
