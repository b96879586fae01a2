"""Options that evaluations have in common."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gotr1_jax.convert.generation_config import GenerationConfig
from gotr1_jax.errors import InputError

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


def add_card_option(parser: argparse.ArgumentParser) -> None:
    """--card."""
    parser.add_argument(
        "--card", type=Path, metavar="FILE",
        help="write a card too, .json: scores, sampling, versions, seed, hardware, seconds",
    )  # fmt: skip


def begin_card(options: argparse.Namespace) -> None:
    """Begins to count the seconds; InputError for a --card where no file can be."""
    options.started = time.monotonic()
    if options.card is None:
        return
    if options.card.is_dir():
        raise InputError(f"--card {options.card} is a folder; name a file")
    above = next(folder for folder in options.card.absolute().parents if folder.exists())
    if not above.is_dir():
        raise InputError(f"--card {options.card}: {above} is a file; choose another place")


def finish_card(
    options: argparse.Namespace, title: str, head: Mapping[str, Any], scores: Mapping[str, Any]
) -> None:
    """Writes the card where one is wanted; see `card.write_card`."""
    if options.card is not None:
        from gotr1_jax.evaluation.card import write_card

        write_card(options.card, title, head, scores, time.monotonic() - options.started)
