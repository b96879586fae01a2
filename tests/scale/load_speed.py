"""How fast a checkpoint is loaded, compared with `safetensors` reading the same file.

    python tests/scale/load_speed.py DIR [--turns 5]

Both read every value of model.safetensors in its stored dtype into memory of their own, in turns
after one warm-up each (the file is then in the page cache). Prints both medians, the median of
the turns' ratios and its range.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
from safetensors.numpy import load_file

from gotr1_jax.convert.open_checkpoint import open_checkpoint, split_part
from gotr1_jax.convert.reader import FLOAT_DTYPES
from gotr1_jax.convert.tree import load_tree
from gotr1_jax.convert.writer import WEIGHTS_FILE


def load_everything(path: Path) -> None:
    """All parts of a checkpoint on the default device, in the dtype that most is stored in."""
    opened = open_checkpoint(path)
    kinds = [tensor.dtype for tensor in opened.tensors.values()]
    dtype = FLOAT_DTYPES[max(set(kinds), key=kinds.count)]
    trees = [
        load_tree(
            part, split_part(part, opened.config, dtype)[1], opened.naming, opened.tensors, dtype
        )
        for part in opened.parts
    ]
    jax.block_until_ready(trees)


def measure(path: Path, turns: int) -> tuple[list[float], list[float]]:
    """Seconds of every turn: ours, theirs."""

    def seconds(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        result = work()
        spent = time.perf_counter() - start
        del result
        return spent

    def ours() -> None:
        load_everything(path)

    def theirs() -> object:
        return load_file(path / WEIGHTS_FILE)

    seconds(ours), seconds(theirs)
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(turns)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    size = (options.directory / WEIGHTS_FILE).stat().st_size / 1e9
    ours, theirs = measure(options.directory, options.turns)
    ratios = [a / b for a, b in zip(ours, theirs)]
    print(
        f"{size:.2f} GB on {jax.devices()[0].device_kind}: ours {statistics.median(ours):.2f} s, "
        f"safetensors {statistics.median(theirs):.2f} s, ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f} over {options.turns} turns)"
    )


if __name__ == "__main__":
    main()
