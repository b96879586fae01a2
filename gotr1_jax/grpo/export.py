"""`gotr1 export`: writes a run or checkpoint in the released layout, for transformers or peft."""

from __future__ import annotations

import argparse
from pathlib import Path

from gotr1_jax.convert.command import (
    add_target_arguments,
    check_dtype,
    check_target,
    parse_size,
    write,
)
from gotr1_jax.errors import InputError

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
    # Imported late: a wrong argument is answered without waiting for jax.
    from gotr1_jax.convert.find import CONFIG_FILE, RUN_CONFIG, RUN_MODEL, find_checkpoint

    given = Path(options.ckpt)
    is_run = (given / RUN_CONFIG).is_file() and not (given / CONFIG_FILE).is_file()
    if options.format == "peft":
        if not is_run:
            raise InputError(f"--format peft needs the directory of a run, and {given} is not one")
        _export_adapters(given, options.to, options.dtype)
        return
    check_target(options.to, given)
    changes = {}
    if is_run and not (given / RUN_MODEL / CONFIG_FILE).is_file():
        from gotr1_jax.grpo.run_weights import read_run_weights

        weights = read_run_weights(given)
        source, changes = weights.base, weights.changes()
        print(f"{given} has no finished model: its checkpoint of step {weights.step} is taken")
    else:
        source = find_checkpoint(options.ckpt, options.revision)
    check_target(options.to, source)
    from gotr1_jax.convert.open_checkpoint import open_checkpoint

    write(
        options.to, open_checkpoint(source), options.format, dtype=options.dtype,
        shard_size=shard_size, whole=True, changes=changes,
    )  # fmt: skip


def _export_adapters(run_dir: Path, target: Path, dtype: str | None) -> None:
    if dtype not in (None, "float32"):
        raise InputError("--format peft writes the adapters as they are trained: float32")
    from gotr1_jax.convert.peft import save_adapters
    from gotr1_jax.grpo.run_weights import read_run_weights

    weights = read_run_weights(run_dir)
    if weights.lora is None:
        raise InputError(f"the run {run_dir} trains all parameters and has no adapters to export")
    count = save_adapters(target, weights.adapters(), weights.lora, weights.init)
    print(f"{target}: {count} tensors of step {weights.step}, rank {weights.lora.rank}")
