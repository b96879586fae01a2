"""`gotr1 eval t2i_compbench`."""

from __future__ import annotations

import argparse

from gotr1_jax.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 eval t2i_compbench`."""


def run(options: argparse.Namespace) -> None:
    """Does what the parsed command line says."""
    raise InputError("gotr1 eval t2i_compbench is not there yet")
