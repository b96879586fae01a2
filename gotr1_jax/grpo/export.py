"""`gotr1 export`: writes a run or checkpoint in the released layout, for transformers or peft."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gotr1_jax.convert.command import (
    add_target_arguments,
    check_dtype,
    check_target,
    parse_size,
    write,
)
from gotr1_jax.errors import InputError, RunError
from gotr1_jax.io.storage import local_path

if TYPE_CHECKING:
    from gotr1_jax.grpo.run_weights import RunWeights

FORMATS = ("original", "hf", "peft")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.description = (
        "Export a checkpoint: original (the released layout), hf (loads in transformers), peft "
        "(the adapters of a run alone). Adapters are merged for the first two."
    )
    parser.add_argument(
        "--ckpt", required=True, metavar="RUN_OR_DIR_OR_ID",
        help="run directory, checkpoint directory or id of the Hugging Face hub",
    )  # fmt: skip
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub id")
    parser.add_argument("--format", required=True, choices=FORMATS)
    add_target_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Export, and print one line about what was written."""
    check_dtype(options.dtype)
    shard_size = parse_size(options.shard_size)
    given, target = str(local_path(options.ckpt)), options.to
    run_dir = run_behind(Path(given))
    if options.format == "peft":
        if run_dir is None:
            raise InputError(f"--format peft needs the directory of a run, and {given} is not one")
        _export_adapters(run_dir, target, options.dtype)
        return
    check_target(target, Path(given))
    if run_dir is not None and options.revision is not None:
        raise InputError(f"--revision belongs to an id of the hub; {given} is a directory")
    # Imported late: a wrong argument is answered without waiting for jax.
    from gotr1_jax.convert.find import RUN_MODEL, find_checkpoint
    from gotr1_jax.convert.open_checkpoint import open_checkpoint

    settings: dict[str, Any] = {"dtype": options.dtype, "shard_size": shard_size, "whole": True}
    weights = None if run_dir is None else _trained_weights(run_dir)
    if run_dir is None or weights is None:
        source = find_checkpoint(given, options.revision)
        check_target(target, source)
        write(target, open_checkpoint(source), options.format, **settings)
        return
    from gotr1_jax.grpo.run_weights import Rounding

    for source in (weights.base, run_dir / RUN_MODEL):
        check_target(target, source)
    rounding = Rounding(weights, options.dtype or weights.dtype)
    write(
        target, open_checkpoint(weights.base), options.format,
        part_dtypes={"policy": weights.dtype}, changes=rounding.changes,
        describe=lambda: f"step {weights.step} of {run_dir}: {rounding.line()}",
        generation=weights.sampled, **settings,
    )  # fmt: skip


def run_behind(given: Path) -> Path | None:
    """The run that is meant by its directory or by that of its model."""
    from gotr1_jax.convert.find import CONFIG_FILE, RUN_CONFIG, run_of_model

    if (given / RUN_CONFIG).is_file() and not (given / CONFIG_FILE).is_file():
        return given
    return run_of_model(given)


def _trained_weights(run_dir: Path) -> RunWeights | None:
    """What the run trained, to be written exactly; None where only its model/ is left.

    Raises InputError or RunError for a run that has neither.
    """
    from gotr1_jax.convert.find import CONFIG_FILE, RUN_MODEL
    from gotr1_jax.convert.open_checkpoint import read_sizes
    from gotr1_jax.grpo.run_weights import grpo_config, read_run_weights, read_weights_of_model

    if not (run_dir / RUN_MODEL / CONFIG_FILE).is_file():
        weights = read_run_weights(run_dir)
        print(f"{run_dir} has no finished model: its checkpoint of step {weights.step} is taken")
        return weights
    if grpo_config(run_dir) is None:
        return None
    try:
        weights = read_weights_of_model(run_dir)
        read_sizes(weights.base)
    except (InputError, RunError) as error:
        print(f"{run_dir / RUN_MODEL} is taken as it is, not base and checkpoint: {error}")
        return None
    return weights


def _export_adapters(run_dir: Path, target: Path, dtype: str | None) -> None:
    if dtype not in (None, "float32"):
        raise InputError("--format peft writes the adapters as they are trained: float32")
    from gotr1_jax.convert.peft import save_adapters
    from gotr1_jax.grpo.run_weights import read_run_weights

    weights = read_run_weights(run_dir)
    if weights.lora is None:
        raise InputError(f"the run {run_dir} trains all parameters and has no adapters to export")
    count = save_adapters(target, weights.adapters(), weights.lora, weights.config.policy.init)
    print(f"{target}: {count} tensors of step {weights.step}, rank {weights.lora.rank}")
