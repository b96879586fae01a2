"""`gotr1 compile`: compiles a training job ahead of time for devices that this machine lacks."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gotr1_jax.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 compile`; all others change the configuration."""
    parser.description = (
        "Compiles the programs of a grpo or sft configuration for a named topology, without the "
        "devices and without weights, and prints the memory, FLOPs and traffic of each. "
        "Every key of the configuration can be given as --section.key VALUE."
    )
    parser.set_defaults(overrides=[])
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML file")
    parser.add_argument(
        "--topology", required=True, metavar="NAME",
        help="v5e:16x16, v5p:4x4x4, v6e:8x8, h200:8, h100:1, cpu:8 and so on; v5e:16x16*4 is four "
        "slices, h100:8*2 two hosts",
    )  # fmt: skip
    parser.add_argument(
        "--only", default="", metavar="WORD",
        help="compile only the programs with WORD in their names, such as update",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--suggest", action="store_true",
        help="find a mesh, remat and micro-batch with which the job fits",
    )  # fmt: skip
    parser.add_argument("--policy-size", choices=("1b", "7b"), help="needed without the checkpoint")
    parser.add_argument(
        "--judge-size", choices=("3b", "7b", "2b", "4b", "8b", "32b"),
        help="needed without the checkpoint: 3b and 7b of Qwen2.5-VL, the others of Qwen3-VL",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Compile and print the report."""
    import jax

    from gotr1_jax.aot.chips import parse_topology
    from gotr1_jax.parallel.startup import start_devices

    chip, shape, slices = parse_topology(options.topology)
    config = read_job(options.config, options.overrides)
    # The compiler needs no device: leave this machine's to other programs.
    jax.config.update("jax_platforms", "cpu")
    # A program for other devices cannot be read from the cache.
    jax.config.update("jax_enable_compilation_cache", False)
    start_devices(int(shape) * slices if chip.platform == "cpu" else 1)
    from gotr1_jax.aot.job import ModelSizes
    from gotr1_jax.aot.report import compile_job, to_json, to_text
    from gotr1_jax.aot.suggest import MAX_ATTEMPTS, suggest
    from gotr1_jax.aot.target import find_target

    target = find_target(options.topology)
    models = ModelSizes(options.policy_size, options.judge_size)
    if not options.suggest:
        report = compile_job(config, target, models, only=options.only)
        print(json.dumps(to_json(report)) if options.json else to_text(report))
        return
    if options.only:
        raise InputError("--suggest needs all programs; leave --only out")
    found = suggest(config, target, models)
    if found is None:
        raise InputError(
            f"nothing fits on {target.name} ({MAX_ATTEMPTS} attempts at most); use more or larger "
            "chips, fewer rows a step, or a smaller judge"
        )
    if options.json:
        print(json.dumps(to_json(found.report) | {"overrides": found.overrides}))
    else:
        print(to_text(found.report))
        print(f"fits after {found.attempts} attempts, with:\n{found.overrides}")


def read_job(path: Path, overrides: list[str]) -> Any:
    """The configuration of a grpo or sft job, recognised by its keys."""
    from gotr1_jax.aot.sizes import local_checkpoint
    from gotr1_jax.convert.generation_config import resolve_sampling
    from gotr1_jax.grpo.sampled import BUILT_IN
    from gotr1_jax.jobs import job_schema, jobs_of_file

    found = jobs_of_file(path)
    job = next((one for one in ("grpo", "sft") if one in found), None)
    if job is None:
        raise InputError(
            f"{path} is a configuration of gotr1 train {' or '.join(found)}; only grpo and sft can "
            "be compiled"
        )
    config = job_schema(job).from_file(path, overrides)
    if job == "grpo":
        return resolve_sampling(config, local_checkpoint(config.policy.init), BUILT_IN)
    return config
