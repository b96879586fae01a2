"""Options that evaluations have in common."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from gotr1_jax.convert.generation_config import GenerationConfig

CHECKPOINT = "checkpoint directory, finished run, hub id, or embedded"


def add_sampling_options(
    parser: argparse.ArgumentParser, names: Iterable[str], says: str, recipe: GenerationConfig
) -> None:
    """The named of --cfg, --temperature and --max-plan-tokens, and --template.

    Their help says what holds without them: what `says` says, else `recipe`.
    """
    known: dict[str, tuple[Any, ...]] = {
        "cfg": (float, "W", "guidance weight", recipe.guidance),
        "temperature": (float, "T", "of the sampled tokens", recipe.text_temperature),
        "max-plan-tokens": (int, "T", "longest plan", recipe.max_plan_tokens),
    }
    for name in names:
        kind, metavar, what, default = known[name]
        text = f"{what} (as {says} says, else {default:g})"
        parser.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)
    parser.add_argument(
        "--template",
        help=f"prompt around the caption, as for gotr1 generate (as {says} says, else gotr1)",
    )


def add_batch_size(parser: argparse.ArgumentParser) -> None:
    """--batch-size."""
    parser.add_argument(
        "--batch-size", type=int, default=64, metavar="B", help="rows sampled at once (64)"
    )
