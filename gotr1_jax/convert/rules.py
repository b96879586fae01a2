"""Rules that map foreign tensors to our arrays: names, layouts, stacked layers.

A table of rules belongs to one model and one naming scheme of it; nothing here knows either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]

# axes[d] is the axis of the foreign array that becomes our axis d.
SAME: Shape | None = None
LINEAR: Shape = (1, 0)  # (out, in) -> (in, out)
CONV: Shape = (2, 3, 1, 0)  # OIHW -> HWIO
NOTHING = re.compile(r"(?!)")  # a pattern that matches no name


@dataclass(frozen=True)
class Rule:
    """One kind of array: its path here, its name there, and how it is laid out there.

    `{l}` in `theirs` counts the layers that we stack along a leading axis; `{x}` stands for the
    same dotted words in `ours` and `theirs`.

    Attributes:
      ours: dotted path of our array, the name of its tree in front ("policy.norm.scale").
      theirs: name of the foreign tensor.
      axes: permutation from foreign to our axes (of one layer), None if equal.
      third: the foreign tensor fuses q, k and v along its first axis: which of the three.
      leading_one: the foreign tensor has a first axis of length 1 that we lack.
    """

    ours: str
    theirs: str
    axes: Shape | None = SAME
    third: int | None = None
    leading_one: bool = False


@dataclass(frozen=True)
class Naming:
    """How one kind of checkpoint names its tensors.

    Attributes:
      rules: the first rule whose `ours` fits a path holds.
      unused: pattern of names, matched from their start, that are known and used by nothing.
      rewrites: (pattern, replacement) pairs, applied in turn to every foreign name.
    """

    rules: tuple[Rule, ...]
    unused: re.Pattern[str] = NOTHING
    rewrites: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Source:
    """Where one of our arrays, or one layer of a stacked one, lies in a checkpoint.

    Attributes:
      name: the foreign tensor.
      shape: the shape that the whole foreign tensor must have.
      layer: our index along the stacked axis, or None for an array that is not stacked.
      axes: permutation from foreign to our axes, None if equal.
      third: which third of the foreign tensor's first axis, None for all of it.
      leading_one: whether the foreign tensor has a first axis of length 1 that we lack.
    """

    name: str
    shape: Shape
    layer: int | None
    axes: Shape | None
    third: int | None
    leading_one: bool


def sources(path: str, shape: Shape, naming: Naming) -> list[Source]:
    """The foreign tensors that make up our array `path` (dotted, its tree in front) of `shape`.

    One for each layer of a stacked array, in order; otherwise one. KeyError if no rule knows it.
    """
    rule, words = _rule_of(path, naming)
    name = rule.theirs.replace("{x}", words)
    for pattern, replacement in naming.rewrites:
        name = re.sub(pattern, replacement, name)
    stacked = "{l}" in name
    foreign = _foreign_shape(shape[1:] if stacked else shape, rule)
    layers: list[int | None] = list(range(shape[0])) if stacked else [None]
    return [
        Source(
            name if layer is None else name.replace("{l}", str(layer)),
            foreign,
            layer,
            rule.axes,
            rule.third,
            rule.leading_one,
        )
        for layer in layers
    ]


def expected_tensors(leaves: Mapping[str, Shape], naming: Naming) -> dict[str, Shape]:
    """Names and shapes of the foreign tensors that hold exactly the arrays `leaves`."""
    return {
        source.name: source.shape
        for path, shape in leaves.items()
        for source in sources(path, shape, naming)
    }


def _rule_of(path: str, naming: Naming) -> tuple[Rule, str]:
    """The first rule for `path`, and what its `{x}` stands for."""
    for rule in naming.rules:
        pattern = re.escape(rule.ours).replace(r"\{x\}", "(.+)")
        if match := re.fullmatch(pattern, path):
            return rule, match[1] if match.groups() else ""
    raise KeyError(f"no checkpoint name is known for {path}")


def _foreign_shape(shape: Shape, rule: Rule) -> Shape:
    if rule.axes is not None:
        foreign = [0] * len(shape)
        for ours, theirs in enumerate(rule.axes):
            foreign[theirs] = shape[ours]
        shape = tuple(foreign)
    if rule.third is not None:
        shape = (3 * shape[0], *shape[1:])
    return (1, *shape) if rule.leading_one else shape
