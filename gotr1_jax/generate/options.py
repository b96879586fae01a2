"""Options that several commands have in the same words."""

from __future__ import annotations

import argparse


def add_dtype_option(parser: argparse.ArgumentParser) -> None:
    """`--dtype` of the policy."""
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"),
        help="of weights and activations; default: bfloat16, on a CPU float32",
    )  # fmt: skip
