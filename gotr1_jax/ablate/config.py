"""The configuration of `gotr1 ablate`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gotr1_jax.config import check_seed
from gotr1_jax.errors import InputError


@dataclass(frozen=True)
class VariantConfig:
    """One way to train: a configuration of `gotr1 train grpo` with some fields changed."""

    # Also its folder's name: lower-case letters, digits, "_" and "-".
    name: str
    # Its name in the table; empty: `name`.
    title: str = ""
    # The configuration file; null: that of the ablation.
    base: str | None = None
    # "key=value" each, as after `--` on the command line; they follow those of all variants.
    overrides: tuple[str, ...] = ()

    def check(self) -> None:
        if not re.fullmatch(r"[a-z0-9_-]+", self.name):
            raise InputError(
                f"the variant's name {self.name!r} becomes a folder; use a to z, 0 to 9, _ and -"
            )
        _check_overrides(f"overrides of the variant {self.name!r}", self.overrides)


@dataclass(frozen=True)
class AblationConfig:
    """Variants trained one after the other and compared: `gotr1 ablate`."""

    run_dir: str
    # A configuration of `gotr1 train grpo` that variants change.
    base: str
    variants: tuple[VariantConfig, ...]
    seeds: tuple[int, ...] = (0,)
    # "key=value" each, for all variants.
    overrides: tuple[str, ...] = ()

    def check(self) -> None:
        if not self.variants or not self.seeds:
            raise InputError("an ablation needs at least one of variants and one of seeds")
        names: list[str | int] = [variant.name for variant in self.variants]
        seeds: list[str | int] = list(self.seeds)
        for what, values in (("variants", names), ("seeds", seeds)):
            double = next((value for value in values if values.count(value) > 1), None)
            if double is not None:
                raise InputError(f"{what} holds {double!r} twice; name each once")
        for seed in self.seeds:
            check_seed(seed)
        _check_overrides("overrides", self.overrides)


def _check_overrides(where: str, overrides: tuple[str, ...]) -> None:
    for text in overrides:
        if not re.match(r"[\w.]+=", text):
            raise InputError(f"{where} holds {text!r}; write key=value")
