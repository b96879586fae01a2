"""`gotr1 eval geneval`."""

from __future__ import annotations

import argparse

from gotr1_jax.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 eval geneval`."""


def run(options: argparse.Namespace) -> None:
    """Does what the parsed command line says."""
    raise InputError("gotr1 eval geneval is not there yet")
