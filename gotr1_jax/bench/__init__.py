"""`gotr1 bench sample|update|judge|adapters|overlap|accelerator`: speed of this machine.

`sample`, `update` and `judge` can be compared with `transformers`. Both run the same random weights
in float32 in one process, in alternating repetitions, after one untimed call of each that compiles.
The model: 8 layers, 512 wide, mlp 1408, 8 heads of 64, text vocabulary 1024, 16384 image tokens,
576 for an image (about 35 M parameters in decoder and image head); 4 captions of 32 tokens,
guidance 5. The judge's model is in `bench.judge`. `adapters` times sampling with adapters beside
the weights against merged ones, `sample --speculative` several image tokens in a pass against one
(`sampler.speculative_loop`), `overlap` judging while samples are drawn against one after the other
(`bench.overlap`). `accelerator` measures a step at the released sizes, see `bench.accelerator`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

from gotr1_jax.bench import accelerator
from gotr1_jax.bench.timing import REFERENCE
from gotr1_jax.config import read_value
from gotr1_jax.errors import InputError
from gotr1_jax.limits import DraftWindow, Range, RowCount

Latency = Annotated[float, Range("[0, 60]")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 bench`."""
    parser.add_argument(
        "what",
        choices=("sample", "update", "judge", "adapters", "overlap", "accelerator"),
        help="which speed to measure",
    )
    parser.add_argument("--against", choices=(REFERENCE,), help="also time this")
    parser.add_argument(
        "--repeats", type=int, help="timed repetitions (default 3, of accelerator 1)"
    )
    parser.add_argument(
        "--captions", type=int, default=4,
        help="rows at once, of overlap the captions of a step (default 4)",
    )  # fmt: skip
    parser.add_argument(
        "--images", "--pictures", type=int, default=32, help="judge: images (default 32)"
    )
    parser.add_argument(
        "--decode",
        action="store_true",
        help="sample: also report ids and VQ decoding together",
    )
    parser.add_argument(
        "--speculative", type=int, default=0, metavar="WINDOW",
        help="sample: images with so many positions in a forward pass, against one",
    )  # fmt: skip
    parser.add_argument(
        "--ckpt", help="sample --speculative: a checkpoint such as embedded (random weights)"
    )
    parser.add_argument(
        "--latency", type=float, default=0.05, metavar="SECONDS",
        help="overlap: what the judge's server takes for a question (default 0.05)",
    )  # fmt: skip
    parser.add_argument("--rank", type=int, default=32, help="adapters: rank (default 32)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32",
        help="adapters: of weights and activations (default float32)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    accelerator.add_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Measure and print; InputError for numbers out of range."""
    if options.repeats is None:
        options.repeats = 1 if options.what == "accelerator" else 3
    for name in ("repeats", "captions", "images", "rank"):
        read_value(RowCount, getattr(options, name), f"--{name}")
    read_value(Latency, options.latency, "--latency")
    check_speculative(options)
    if options.what == "accelerator":
        accelerator.run(options)
        return
    # Imported late: `--help` and bad input answer at once.
    from gotr1_jax.bench.sample import bench_sample
    from gotr1_jax.bench.update import bench_update

    results: Sequence[Any]
    sizes = {"repeats": options.repeats, "captions": options.captions}
    if options.what == "judge":
        from gotr1_jax.bench.judge import bench_judge

        sizes = {"repeats": options.repeats, "images": options.images}
        results = [bench_judge(options.against, **sizes)]
    elif options.what == "overlap":
        from gotr1_jax.bench.overlap import bench_overlap

        results = [bench_overlap(latency=options.latency, **sizes)]
    elif options.what == "adapters":
        from gotr1_jax.bench.adapters import bench_adapters

        results = bench_adapters(rank=options.rank, dtype=options.dtype, **sizes)
    elif options.speculative:
        from gotr1_jax.bench.speculative import bench_speculative

        window, checkpoint = options.speculative, options.ckpt
        results = [bench_speculative(window, checkpoint=checkpoint, **sizes)]
    elif options.what == "sample":
        results = bench_sample(options.against, decode=options.decode, **sizes)
    else:
        results = bench_update(options.against, **sizes)
    if options.json:
        print(json.dumps([asdict(result) for result in results], indent=1))
    else:
        print("\n".join(line for result in results for line in result.lines()))


def check_speculative(options: argparse.Namespace) -> None:
    """InputError where `--speculative` or `--ckpt` has no meaning."""
    read_value(DraftWindow, options.speculative, "--speculative")
    if options.ckpt is not None and not options.speculative:
        raise InputError("--ckpt is of --speculative; other speeds are of random weights")
    if options.speculative and (options.what != "sample" or options.against or options.decode):
        raise InputError(
            "--speculative measures `sample` against one token a pass; leave out --against and "
            "--decode"
        )
