"""The configuration of `gotr1 ablate`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from gotr1_jax.config import CheckedConfig
from gotr1_jax.errors import ConfigError
from gotr1_jax.limits import FilledText, Range, Seed

START = "start"
"""In an ordering: the policy before training."""
Minutes = Annotated[float, Range("(0, 1e6]")]


@dataclass(frozen=True)
class ConditionConfig(CheckedConfig):
    """What several variants are trained under, such as a judge."""

    # Also a folder's name, as of a variant.
    name: str
    # Its name in tables; empty: `name`.
    title: str = ""
    # "key=value" each; they follow those of all variants and come before a variant's own.
    overrides: tuple[str, ...] = ()
    # Minutes of a run as they were measured once, for `--plan`; null: those of the variants.
    minutes: Minutes | None = None

    def check(self) -> None:
        """A name that a folder can have, and overrides with keys."""
        _check_name(self.name)
        _check_overrides(f"overrides of the condition {self.name!r}", self.overrides)


@dataclass(frozen=True)
class VariantConfig(CheckedConfig):
    """One way to train: a configuration of `gotr1 train grpo` with some fields changed."""

    # Also its folder's name: lower-case letters, digits, "_" and "-".
    name: str
    # Its name in the table; empty: `name`.
    title: str = ""
    # The configuration file; null: that of the ablation.
    base: FilledText | None = None
    # "key=value" each, as after `--` on the command line; they follow those of all variants.
    overrides: tuple[str, ...] = ()
    # The conditions that it is trained under; empty: all.
    conditions: tuple[str, ...] = ()
    # Minutes of a run as they were measured once, for `--plan`; null: those of its condition.
    minutes: Minutes | None = None

    def check(self) -> None:
        """A name that a folder can have, and overrides with keys."""
        _check_name(self.name)
        _check_overrides(f"overrides of the variant {self.name!r}", self.overrides)


@dataclass(frozen=True)
class OrderingConfig(CheckedConfig):
    """A claim: after training one variant is better than another by a term of the evaluations."""

    # The claim in words.
    name: FilledText
    # Name of a variant; start: the policy before the other's training.
    better: FilledText
    # The other name, as better.
    worse: FilledText
    # A term of the evaluations, best one that all conditions measure alike.
    term: FilledText

    def check(self) -> None:
        """Two different variants, one of them at least trained."""
        if self.better == self.worse:
            raise ConfigError(f"worse is {self.worse!r}, as better is; name two variants")


@dataclass(frozen=True)
class AblationConfig(CheckedConfig):
    """Variants trained and compared: `gotr1 ablate`."""

    # Directory of the ablation, with a folder for each run; created if missing.
    run_dir: FilledText
    # A configuration of `gotr1 train grpo` that variants change: a file, or the name of one that
    # ships.
    base: FilledText
    variants: tuple[VariantConfig, ...]
    # Seeds that every variant is trained with, each in a run of its own.
    seeds: tuple[Seed, ...] = (0,)
    # Runs at the same time. On a host with few cores small models train faster side by side, each
    # with mesh.cpu_devices=1, than one after the other on all cores.
    at_once: Annotated[int, Range("[1, 1024]")] = 1
    # "key=value" each, for all variants.
    overrides: tuple[str, ...] = ()
    # Every variant is trained under each of them; none: once.
    conditions: tuple[ConditionConfig, ...] = ()
    # Terms of the evaluations that the table and the plot show; empty: all.
    columns: tuple[str, ...] = ()
    # Claims that are tested under every condition.
    orderings: tuple[OrderingConfig, ...] = ()
    # Terms that runs are trained on, each with the watched term that checks it: where the first
    # rises without the second, the policy fools its judge.
    checks: Mapping[str, str] = field(default_factory=dict)
    # Names of metrics.jsonl whose first and last tenth of training are shown.
    metrics: tuple[str, ...] = ()

    def check(self) -> None:
        if not self.variants or not self.seeds:
            raise ConfigError("variants and seeds hold too little; give at least one of each")
        conditions = [condition.name for condition in self.conditions]
        names = [variant.name for variant in self.variants]
        _check_once("variants", names)
        _check_once("seeds", self.seeds)
        _check_once("conditions", conditions)
        _check_once("titles of conditions", [c.title or c.name for c in self.conditions])
        # One name on the command line would mean two things.
        _check_once("conditions and variants", [*conditions, *names])
        _check_once("orderings", [(o.name, o.term) for o in self.orderings])
        _check_overrides("overrides", self.overrides)
        for variant in self.variants:
            _check_known(
                f"variants: {variant.name!r}", "conditions", variant.conditions, conditions
            )
        for ordering in self.orderings:
            sides = [side for side in (ordering.better, ordering.worse) if side != START]
            _check_known(f"orderings: {ordering.name!r}", "variants", sides, names)
            self._check_meet(ordering, sides)
        for term, check in self.checks.items():
            if term == check:
                raise ConfigError(f"checks: {term!r} is checked by itself; name another term")

    def _check_meet(self, ordering: OrderingConfig, sides: list[str]) -> None:
        """The two sides of a claim are compared under some condition."""
        under = [
            {c and c.name for c in self.conditions_of(v)} for v in self.variants if v.name in sides
        ]
        if not set.intersection(*under):
            raise ConfigError(
                f"orderings: {ordering.name!r} compares {' and '.join(sides)}, which no condition "
                "has both; give them one, or leave the claim out"
            )

    def conditions_of(self, variant: VariantConfig) -> list[ConditionConfig | None]:
        """Those that a variant is trained under; [None] where the ablation has none."""
        chosen = [
            c for c in self.conditions if not variant.conditions or c.name in variant.conditions
        ]
        return [*chosen] if self.conditions else [None]


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z0-9_-]{1,100}", name):
        raise ConfigError(
            f"name {name!r} becomes a folder; use a to z, 0 to 9, _ and -, 100 at most"
        )
    if name == START:
        raise ConfigError(f"name {name!r} means the policy before training; choose another")


def _check_once(what: str, values: Iterable[object]) -> None:
    listed = list(values)
    double = next((value for value in listed if listed.count(value) > 1), None)
    if double is not None:
        raise ConfigError(f"{what} holds {double!r} twice; name each once")


def _check_known(where: str, what: str, names: Iterable[str], known: Iterable[str]) -> None:
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        choice = ", ".join(known) or "none is given"
        raise ConfigError(f"{where} names {unknown!r}; {what} are: {choice}")


def _check_overrides(where: str, overrides: tuple[str, ...]) -> None:
    for text in overrides:
        key, sign, _ = text.partition("=")
        if not sign or not re.fullmatch(r"[\w.]+", key):
            raise ConfigError(f"{where} holds {text!r}; write key=value")
        if key in ("seed", "run_dir"):
            raise ConfigError(f"{where} holds {text!r}; seeds and folders are the ablation's own")
