"""Rules that map the tensors of a checkpoint to a model's parameters: names, layouts, layers.

A table of rules belongs to one model and one naming scheme of it; this module knows neither.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]

# axes[d] is the axis of the stored tensor that becomes axis d of the parameter.
SAME: Shape | None = None
LINEAR: Shape = (1, 0)  # (out, in) -> (in, out)
CONV: Shape = (2, 3, 1, 0)  # OIHW -> HWIO
NOTHING = re.compile(r"(?!)")  # a pattern that matches no name


@dataclass(frozen=True)
class Rule:
    """One kind of parameter: its path in the model, its name and layout in the checkpoint.

    `{l}` in `name` is the number of a layer; the model stacks layers along a leading axis. `{x}`
    stands for the same dotted words in `path` and `name`.

    Attributes:
      path: dotted path of the parameter after the name of its tree ("policy.norm.scale").
      name: name of the stored tensor.
      axes: permutation from the stored axes to the parameter's (of one layer), None if equal.
      third: the stored tensor fuses q, k and v along its first axis: which of the three.
      leading_one: the stored tensor has a first axis of length 1 that the parameter lacks.
    """

    path: str
    name: str
    axes: Shape | None = SAME
    third: int | None = None
    leading_one: bool = False


def linear(path: str, name: str, third: int | None = None, *, bias: bool = True) -> list[Rule]:
    """A linear layer: `third` as in `Rule`."""
    rules = [
        Rule(f"{path}.kernel", f"{name}weight", LINEAR, third),
        Rule(f"{path}.bias", f"{name}bias", SAME, third),
    ]
    return rules if bias else rules[:1]


def norm(path: str, name: str) -> list[Rule]:
    """A layer norm."""
    return [Rule(f"{path}.scale", f"{name}.weight"), Rule(f"{path}.bias", f"{name}.bias")]


@dataclass(frozen=True)
class Naming:
    """How one kind of checkpoint names its tensors.

    Attributes:
      rules: the first rule whose `path` fits holds.
      unused: pattern of known names, matched from their start, that no parameter uses.
      rewrites: (pattern, replacement) pairs, applied in turn to every tensor name.
    """

    rules: tuple[Rule, ...]
    unused: re.Pattern[str] = NOTHING
    rewrites: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Source:
    """Where a parameter, or one layer of a stacked one, lies in a checkpoint.

    Attributes:
      name: the stored tensor.
      shape: the shape that the whole stored tensor must have.
      layer: index along the stacked axis, or None for a parameter that is not stacked.
      axes, third, leading_one: as in `Rule`.
    """

    name: str
    shape: Shape
    layer: int | None
    axes: Shape | None
    third: int | None
    leading_one: bool


def sources(path: str, shape: Shape, naming: Naming) -> list[Source]:
    """The stored tensors that make up the parameter `path` (dotted, its tree first) of `shape`.

    One for each layer of a stacked parameter, in order; otherwise one. KeyError without a rule.
    """
    rule, words = _rule_of(path, naming)
    name = rule.name.replace("{x}", words)
    for pattern, replacement in naming.rewrites:
        name = re.sub(pattern, replacement, name)
    stacked = "{l}" in name
    stored = _stored_shape(shape[1:] if stacked else shape, rule)
    layers: list[int | None] = list(range(shape[0])) if stacked else [None]
    return [
        Source(
            name if layer is None else name.replace("{l}", str(layer)),
            stored,
            layer,
            rule.axes,
            rule.third,
            rule.leading_one,
        )
        for layer in layers
    ]


def expected_tensors(leaves: Mapping[str, Shape], naming: Naming) -> dict[str, Shape]:
    """Names and shapes of the stored tensors that hold exactly the parameters `leaves`."""
    return {
        source.name: source.shape
        for path, shape in leaves.items()
        for source in sources(path, shape, naming)
    }


def _rule_of(path: str, naming: Naming) -> tuple[Rule, str]:
    """The first rule for `path`, and what its `{x}` stands for."""
    for rule in naming.rules:
        pattern = re.escape(rule.path).replace(r"\{x\}", "(.+)")
        if match := re.fullmatch(pattern, path):
            return rule, match[1] if match.groups() else ""
    raise KeyError(f"no checkpoint name is known for {path}")


def _stored_shape(shape: Shape, rule: Rule) -> Shape:
    if rule.axes is not None:
        shape = tuple(shape[rule.axes.index(axis)] for axis in range(len(shape)))
    if rule.third is not None:
        shape = (3 * shape[0], *shape[1:])
    return (1, *shape) if rule.leading_one else shape
