"""An image generator without a model, for tests of what `gotr1 generate` reads and writes.

As a program it generates into a directory and is killed while the files of a caption are moved:

    fake_generator.py KILL_AT OPTIONS_OF_GENERATE...
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from gotr1_jax.generate import command as generate
from gotr1_jax.generate import generator
from gotr1_jax.generate.batches import BatchSizes, SampleBatch
from gotr1_jax.generate.config import GenerateConfig
from gotr1_jax.tokenizers.janus import TextTokenizer

SIDE = 4  # pixels of an image


class FakeImageGenerator:
    """Ids and pixels are functions of (seed, caption index, sample index) and of a given plan."""

    def __init__(self, config: GenerateConfig, source: Path, sizes: BatchSizes, dtype: str) -> None:
        self.batch_size = config.batch_size or 4
        self.decode = None if config.plans_only else decode
        self._config, self._boi = config, TextTokenizer.from_dir(source).specials.boi

    def sample(self, batch: SampleBatch) -> Any:
        """Rows as the sampler gives them."""
        seed_B = np.full_like(batch.caption_index_B, self._config.seed)
        ids_BU = np.stack([seed_B, batch.caption_index_B, batch.sample_index_B], axis=1)
        plans, lengths = batch.plan_ids_BT, batch.plan_len_B
        if plans is None:
            ends = np.full_like(batch.caption_index_B, self._boi)
            plans = np.stack(
                [100 + batch.caption_index_B % 300, 100 + batch.sample_index_B % 300, ends], axis=1
            )
            lengths = np.full_like(batch.caption_index_B, 3)
        return SimpleNamespace(plan_ids_BT=plans, plan_len_B=lengths, image_ids_BU=ids_BU)


def decode(ids_BU: np.ndarray) -> list[np.ndarray]:
    """Images of one color: seed, caption and sample."""
    color = (ids_BU * [50, 10, 40] % 256).astype(np.uint8)
    return list(np.broadcast_to(color[:, None, None], (len(ids_BU), SIDE, SIDE, 3)).copy())


def gotr1(*words: str | Path) -> None:
    """`gotr1 generate` with these options."""
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    generate.run(parser.parse_args([str(word) for word in words]))


def _die_at(count: int) -> None:
    """From now on the process is killed when it moves its file number `count`."""
    replace, moved = Path.replace, 0

    def counting(self: Path, target: Path) -> Path:
        nonlocal moved
        moved += 1
        if moved == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Path.replace = counting  # type: ignore[method-assign]


if __name__ == "__main__":
    generator.ImageGenerator = FakeImageGenerator  # type: ignore[assignment, misc]
    _die_at(int(sys.argv[1]))
    gotr1(*sys.argv[2:])
