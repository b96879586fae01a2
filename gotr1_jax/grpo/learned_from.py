"""Which terms the tokens of plan and image learn from, by the configuration."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from gotr1_jax.errors import ConfigError
from gotr1_jax.grpo.advantage_config import AdvantageConfig
from gotr1_jax.rewards.combine import total_expression
from gotr1_jax.rewards.expression import Expression, Node
from gotr1_jax.rewards.stages import stage_total
from gotr1_jax.rewards.terms import Stage, TermConfig

if TYPE_CHECKING:
    from gotr1_jax.grpo.per_modality import PerModality


def find_learned_from(
    advantage: AdvantageConfig, total: str, terms: Mapping[str, TermConfig]
) -> PerModality:
    """The `Expression` of each modality; the total for both where the advantage is one.

    Args:
        advantage: of the configuration.
        total, terms: those of its reward.

    Raises:
        ConfigError: one that cannot be read, or no term of the total is about a modality.
    """
    from gotr1_jax.grpo.per_modality import PerModality  # which imports jax

    if not advantage.is_split:
        return PerModality(*[total_expression(total, list(terms))] * 2)

    def find(name: str, given: str, stage: Stage) -> Expression:
        if given:
            try:
                return total_expression(given, list(terms))
            except ConfigError as error:
                raise ConfigError(f"advantage.{name} {error}") from error
        if advantage.scope != "segment":
            return total_expression(total, list(terms))
        try:
            return total_expression(stage_total(stage, total, terms), list(terms))
        except ConfigError as error:
            raise ConfigError(
                f"advantage.scope is segment, but reward.total {error}; set advantage.{name}, or "
                "the stage of a term in reward.terms"
            ) from error

    text, image = advantage.text.strip(), advantage.image.strip()
    return PerModality(find("text", text, "plan"), find("image", image, "image"))


def check_known(
    where: str, text: str, expression: Expression, terms: Collection[str], scored: Collection[str]
) -> None:
    """ConfigError for a name in an expression that neither `terms` nor the judge's `scored` has."""
    for name, place in expression.names.items():
        if name not in terms and name not in scored:
            raise ConfigError(
                f"{where} is {text!r}; character {place}: no judge gives {name!r}: reward.terms "
                f"holds {', '.join(terms) or 'nothing'}, the judge gives "
                f"{', '.join(scored) or 'nothing'}"
            )


def check_sum(where: str, expression: Expression) -> None:
    """ConfigError where an expression falls as one of its terms grows: gdpo would add that term."""
    place = _falls_with_a_term(expression.root)
    if place is not None:
        raise ConfigError(
            f"{where} is {expression.text!r}; character {place}: advantage.kind gdpo adds the terms"
            " that it names by their weights; give what is subtracted or divided by a negative "
            "weight in reward.terms, and name it in a sum"
        )


def _falls_with_a_term(node: Node) -> int | None:
    """The place of a subtraction of, division by or negative factor of something with terms."""
    if node.function is None:
        return None
    last = node.parts[-1]
    if node.function in (np.subtract, np.divide) and last.value is None:
        return node.place
    is_negative = any(part.value is not None and part.value < 0 for part in node.parts)
    if is_negative and node.function in (np.multiply, np.divide, np.power):
        return node.place
    return next(filter(None, map(_falls_with_a_term, node.parts)), None)


def check_tree(advantage: AdvantageConfig, images_per_plan: int, samples: int) -> None:
    """ConfigError where a scope needs several images of a plan, or several plans, and has not."""
    if advantage.scope not in ("tree", "best_of_plan"):
        return
    if images_per_plan == 1:
        raise ConfigError(
            f"advantage.scope is {advantage.scope}, which compares images of one plan, but "
            "rollout.images_per_plan is 1; give a plan more, or use another scope"
        )
    if images_per_plan == samples and advantage.scope == "best_of_plan":
        raise ConfigError(
            "advantage.scope is best_of_plan, which compares plans of a caption, but "
            f"rollout.images_per_plan {images_per_plan} leaves one of {samples} "
            "samples_per_caption"
        )
