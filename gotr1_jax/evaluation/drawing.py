"""Draws of evaluations: a checkpoint's plans and images of captions, in equal batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gotr1_jax.generate.batches import SampleTask, batch_sizes
from gotr1_jax.generate.config import GenerateConfig
from gotr1_jax.generate.search.run import GeneratorDrawing


def load_drawing(
    config: GenerateConfig, source: Path, rows: Sequence[SampleTask]
) -> GeneratorDrawing:
    """Loads the checkpoint in `source`, to draw these rows in batches of `config.batch_size`."""
    # Imported late: settings are checked without waiting for jax.
    from gotr1_jax.generate import generator
    from gotr1_jax.parallel.startup import default_dtype

    limit, bucket = config.sampling.max_plan_tokens, config.sampling.plan_bucket
    sizes = batch_sizes(rows, limit, bucket)
    # No batch is smaller because there are few rows: results do not depend on their number.
    sizes = replace(sizes, rows=max(sizes.rows, config.batch_size or 1))
    images = generator.ImageGenerator(config, source, sizes, config.dtype or default_dtype())
    return GeneratorDrawing(images, limit, bucket)
