"""Tokenise the images of records, once: `gotr1 tokenize-images --config FILE`."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from gotr1_jax.config import load_config, read_value
from gotr1_jax.errors import InputError
from gotr1_jax.limits import RowCount


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 tokenize-images`; keys of the configuration can be given too."""
    parser.description = (
        "Tokenise the images of the records that a configuration of gotr1 train sft names "
        "(data.source, data.records, vq). The same command resumes where it stopped. Every "
        "key of the configuration can be given as --section.key VALUE."
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="YAML file of gotr1 train sft"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help="folder to write, which data.source may then name; by default a folder in "
        "data.cache_dir, which gotr1 train sft finds by itself",
    )  # fmt: skip
    parser.add_argument(
        "--host", type=int, metavar="I",
        help="index of this host, from 0; hosts that share the folder do a part each (default: "
        "the index of this process)",
    )  # fmt: skip
    parser.add_argument("--hosts", type=int, metavar="N", help="number of hosts")
    parser.add_argument(
        "--batch",
        type=int,
        default=16,
        metavar="B",
        help="images of one forward pass on each device (16)",
    )
    parser.set_defaults(overrides=[])


def run(options: argparse.Namespace) -> None:
    """Run the parsed command; prints the folder."""
    if (options.host is None) != (options.hosts is None):
        raise InputError("give both --host and --hosts, or neither")
    if options.hosts is not None and not 0 <= options.host < options.hosts:
        raise InputError(
            f"--host is {options.host}, --hosts is {options.hosts}; use 0 to hosts - 1"
        )
    read_value(RowCount, options.batch, "--batch")
    from gotr1_jax.sft.config import SftConfig

    config = load_config(SftConfig, options.config, options.overrides)
    if config.data.source == "shapes":
        raise InputError(
            "data.source is shapes, whose images gotr1 train sft tokenises by itself; name records"
        )
    # Imported late: bad input is answered without waiting for jax.
    import jax

    from gotr1_jax.convert.find import find_checkpoint
    from gotr1_jax.convert.image_tokenizer import load_vq
    from gotr1_jax.io.lock import folder_lock
    from gotr1_jax.parallel.processes import raise_on_all_processes
    from gotr1_jax.parallel.startup import start_devices, start_processes
    from gotr1_jax.sft.tokenize_images import (
        HostShare,
        given_shards,
        show_progress,
        tokenize_records,
    )

    given = given_shards(config.data)
    if given is not None:
        raise InputError(f"data.source {given} holds image tokens already; name records")
    if options.host is None:
        start_processes(config.distributed)
    start_devices(config.mesh.cpu_devices)
    if options.host is None:
        share = HostShare(jax.process_index(), jax.process_count())
    else:
        share = HostShare(options.host, options.hosts)
    vq = load_vq(find_checkpoint(config.vq))
    lock: AbstractContextManager[None] = nullcontext()
    if options.out is not None:
        # Hosts write shards of their own; two processes of the same share would do them twice.
        lock = folder_lock(options.out, "--out", f"_{share.index}_of_{share.hosts}")
    with raise_on_all_processes(), lock, show_progress() as on_progress:
        folder = tokenize_records(config.data, vq, share, on_progress, options.out, options.batch)
    print(folder)
