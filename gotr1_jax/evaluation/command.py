"""`gotr1 eval WHAT`: one sub-command for each benchmark, each in a module of its own."""

from __future__ import annotations

import argparse
import importlib

from gotr1_jax.io.lock import folder_lock

# What -> module with `add_arguments(parser)` and `run(options)`, one line of help. The modules
# import jax, torch and models inside functions only.
EVALUATIONS = {
    "t2i_compbench": ("gotr1_jax.evaluation.t2i_compbench", "T2I-CompBench: six categories"),
    "geneval": ("gotr1_jax.evaluation.geneval", "GenEval: objects, counts, colors, positions"),
    "geneval2": ("gotr1_jax.evaluation.geneval2", "GenEval 2: questions of one right word each"),
    "checklist": (
        "gotr1_jax.evaluation.checklist",
        "questions of a file: UniGenBench, R2I-Bench, T2I-CoReBench, SpatialGenEval, your own",
    ),
    "dpg": ("gotr1_jax.evaluation.dpg", "DPG-Bench: questions that depend on each other"),
    "shapes": ("gotr1_jax.evaluation.shapes", "the shapes world, by its exact judge"),
    "search": ("gotr1_jax.evaluation.search", "gain and cost of test-time search, on shapes"),
    "given_plans": ("gotr1_jax.evaluation.given_plans", "images of given true plans, on shapes"),
    "understanding": (
        "gotr1_jax.evaluation.understanding",
        "the same questions about images to two checkpoints",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A sub-command for each row of the table."""
    kinds = parser.add_subparsers(dest="evaluation", required=True, metavar="WHAT")
    for name, (module, summary) in EVALUATIONS.items():
        importlib.import_module(module).add_arguments(kinds.add_parser(name, help=summary))


def run(options: argparse.Namespace) -> None:
    """Runs the sub-command that was chosen."""
    with folder_lock(options.out, "--out"):
        importlib.import_module(EVALUATIONS[options.evaluation][0]).run(options)
