"""The configuration of `gotr1 ablate`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from gotr1_jax.config import CheckedConfig
from gotr1_jax.errors import ConfigError
from gotr1_jax.limits import FilledText, Range, Seed


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

    def check(self) -> None:
        """A name that a folder can have, and overrides with keys."""
        if not re.fullmatch(r"[a-z0-9_-]{1,100}", self.name):
            raise ConfigError(
                f"name {self.name!r} becomes a folder; use a to z, 0 to 9, _ and -, 100 at most"
            )
        _check_overrides(f"overrides of the variant {self.name!r}", self.overrides)


@dataclass(frozen=True)
class AblationConfig(CheckedConfig):
    """Variants trained and compared: `gotr1 ablate`."""

    run_dir: FilledText
    # A configuration of `gotr1 train grpo` that variants change.
    base: FilledText
    variants: tuple[VariantConfig, ...]
    seeds: tuple[Seed, ...] = (0,)
    # Runs at the same time. On a host with few cores small models train faster side by side, each
    # with mesh.cpu_devices=1, than one after the other on all cores.
    at_once: Annotated[int, Range("[1, 1024]")] = 1
    # "key=value" each, for all variants.
    overrides: tuple[str, ...] = ()

    def check(self) -> None:
        if not self.variants or not self.seeds:
            raise ConfigError("variants and seeds hold too little; give at least one of each")
        names: list[str | int] = [variant.name for variant in self.variants]
        seeds: list[str | int] = list(self.seeds)
        for what, values in (("variants", names), ("seeds", seeds)):
            double = next((value for value in values if values.count(value) > 1), None)
            if double is not None:
                raise ConfigError(f"{what} holds {double!r} twice; name each once")
        _check_overrides("overrides", self.overrides)


def _check_overrides(where: str, overrides: tuple[str, ...]) -> None:
    for text in overrides:
        key, sign, _ = text.partition("=")
        if not sign or not re.fullmatch(r"[\w.]+", key):
            raise ConfigError(f"{where} holds {text!r}; write key=value")
        if key in ("seed", "run_dir"):
            raise ConfigError(f"{where} holds {text!r}; seeds and folders are the ablation's own")
