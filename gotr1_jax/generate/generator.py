"""The batches of one job: its settings, and how many rows are drawn at once."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp

from gotr1_jax.generate.batches import (
    BatchSizes,
    SampleBatch,
    batch_rows,
    bytes_per_row,
    rows_that_fit,
)
from gotr1_jax.generate.config import GenerateConfig
from gotr1_jax.generate.runner import ModelRunner
from gotr1_jax.sampler.config import SamplerConfig
from gotr1_jax.sampler.image_decoder import ImageDecoder
from gotr1_jax.sampler.token_batch import TokenBatch


class ImageGenerator:
    """Samples and decodes batches of equal size with the settings of one job.

    No more devices are used than a batch has rows.

    Attributes:
      batch_size: rows of a batch; from the configuration, else what the free memory allows.
      decode: see `ModelRunner.decode`; None when the job samples plans only.
    """

    def __init__(
        self, config: GenerateConfig, source: Path, sizes: BatchSizes, dtype: str,
        devices: list[jax.Device] | None = None,
    ) -> None:  # fmt: skip
        """Loads the checkpoint in `source`.

        Args:
          config: the job.
          source: checkpoint directory.
          sizes: number of rows and their largest widths.
          dtype: of the policy's weights and activations; the image decoder's is float32.
          devices: to work on; None: all.
        """
        devices = jax.devices() if devices is None else devices
        rows = min(sizes.rows, config.batch_size or sizes.rows)
        self._runner = ModelRunner(source, dtype, devices[:rows])
        self._config, self._sampling = config, config.sampling
        self.decode: ImageDecoder | None = None if config.plans_only else self._runner.decode
        given = config.plans is not None or config.search is not None
        self.batch_size = find_batch_size(
            self._runner, sizes, self._sampling, given, config.batch_size
        )

    def sample(self, batch: SampleBatch) -> TokenBatch:
        """Plans and image tokens of a batch, on the host.

        Given plans are taken as they are. U = 0 when the job samples plans only.
        """
        with_images = batch.plan_ids_BT is not None or not self._config.plans_only
        return self._draw(batch, with_images)

    def sample_plans(self, batch: SampleBatch) -> TokenBatch:
        """Sampled plans of a batch, on the host; U = 0."""
        return self._draw(batch, with_images=False)

    def _draw(self, batch: SampleBatch, with_images: bool) -> TokenBatch:
        return self._runner.sample(batch, self._sampling, self._config.seed, with_images).rows


def find_batch_size(
    runner: ModelRunner, sizes: BatchSizes, sampling: SamplerConfig, given_plans: bool,
    wanted: int | None = None,
) -> int:  # fmt: skip
    """Rows of a batch: `wanted`, else what fits into the free memory; whole rows a device.

    given_plans: whether plans are read instead of sampled.
    """
    parts = runner.row_multiple
    if wanted is not None:
        return -(-wanted // parts) * parts
    itemsize = jnp.dtype(runner.dtype).itemsize
    row_bytes = bytes_per_row(runner.config, sizes, sampling, itemsize, given_plans)
    most = rows_that_fit(runner.config, row_bytes, runner.devices)
    return batch_rows(sizes.rows, most, parts)
