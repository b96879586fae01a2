"""The section `reward` of a GRPO run: terms of the user's own, and their total."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from gotr1_jax.config import CheckedConfig
from gotr1_jax.errors import ConfigError
from gotr1_jax.limits import FilledText, Fraction, Steps, StepsOrNever
from gotr1_jax.rewards.combine import total_expression
from gotr1_jax.rewards.expression import Expression
from gotr1_jax.rewards.published import GOTR1_TERMS, RULES
from gotr1_jax.rewards.terms import TermConfig, as_terms, check_names


@dataclass(frozen=True)
class RewardConfig(CheckedConfig):
    """How the judge's terms become one reward, and when judge failures end the run."""

    may_change: ClassVar[Collection[str]] = ("failure_limit", "failure_steps", "alarm_steps")

    renamed_keys: ClassVar[Mapping[str, str]] = {"rule": "total"}

    # v1, v2 or sum of the terms (`rewards.published`), or an expression of their names, such as
    # "pi * (sem + spa) / 2 * aesthetic". Names that `terms` does not list are the judge's.
    total: FilledText = "v1"
    # Names of one's own, each with its source and weight; a list of names takes the judge's.
    terms: Mapping[str, TermConfig] = field(default_factory=lambda: as_terms(GOTR1_TERMS))
    # The run ends when more than this fraction of the samples of the last `failure_steps` steps
    # could not be scored; 1: never.
    failure_limit: Fraction = 0.2
    # Steps over which failure_limit counts.
    failure_steps: Steps = 10
    # Print an alarm after this many steps in a row whose rewards are all the same; 0: never.
    alarm_steps: StepsOrNever = 10

    def check(self) -> None:
        """Names that can be a term's, and a total that can be read."""
        try:
            check_names(self.terms)
        except ConfigError as error:
            raise ConfigError(f"terms holds {error}") from error
        if not self.terms and self.total in RULES:
            raise ConfigError("terms is empty; name at least one term")
        try:
            _ = self.expression
        except ConfigError as error:
            raise ConfigError(f"total {error}") from error

    @property
    def expression(self) -> Expression:
        """The total over the terms."""
        return total_expression(self.total, list(self.terms))

    @property
    def watched(self) -> list[str]:
        """Terms with a source of their own that are not in the total: scored, never trained on."""
        names = self.expression.names
        return [n for n, t in self.terms.items() if t.source != "judge" and n not in names]
