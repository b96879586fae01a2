"""A loaded checkpoint that samples plans and image tokens, and decodes them to pixels."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gotr1_jax.convert.checkpoint import load_checkpoint
from gotr1_jax.generate.batches import (
    BatchSizes,
    SampleBatch,
    batch_rows,
    bytes_per_row,
    rows_that_fit,
)
from gotr1_jax.generate.config import GenerateConfig
from gotr1_jax.generate.load_policy import load_policy_to_sample
from gotr1_jax.parallel.mesh import make_mesh, row_multiple, row_sharding
from gotr1_jax.sampler.image_decoder import ImageDecoder
from gotr1_jax.sampler.sampler import Sampler, draw_keys
from gotr1_jax.sampler.token_batch import PromptBatch, TokenBatch


class ImageGenerator:
    """Samples and decodes batches with their rows split over the devices; each holds all weights.

    No more devices are used than a batch has rows.

    Attributes:
      batch_size: rows of a batch; from the configuration, else what the free memory allows.
      decode: image ids int32 (B, U) -> B images uint8 (H, W, 3). Each device decodes one image at
        a time: memory is bounded, and no pixel depends on the number of images. None when the
        job samples plans only.
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
        devices = devices[: min(sizes.rows, config.batch_size or sizes.rows)]
        mesh = make_mesh(devices=devices)
        self._mesh = mesh if len(devices) > 1 else None
        self._plans_only = config.plans_only
        self.decode: ImageDecoder | None = None
        if not config.plans_only:
            # The decoder is small, and bfloat16 would be visible in the image.
            vq = load_checkpoint(source, parts=("vq",))
            self.decode = ImageDecoder(vq.vq_module(), vq.config.grid, 1, mesh)
        checkpoint = load_checkpoint(source, parts=())
        model, specials = checkpoint.config, checkpoint.tokenizer.specials
        graphdef, state = load_policy_to_sample(source, dtype)
        self._sampler = Sampler(graphdef, model, specials, config.sampling, self._mesh)
        self._params = self._sampler.prepare(state)
        jax.block_until_ready(self._params)
        del state  # frees the weights as loaded; the sampler has its own
        self._keys = jax.jit(partial(draw_keys, config.seed))
        parts = row_multiple(mesh)
        if config.batch_size is not None:
            self.batch_size = -(-config.batch_size // parts) * parts
            return
        row_bytes = bytes_per_row(
            model, sizes, self._sampler.branches, jnp.dtype(dtype).itemsize,
            given_plans=config.plans is not None or config.search is not None,
        )  # fmt: skip
        self.batch_size = batch_rows(sizes.rows, rows_that_fit(model, row_bytes, devices), parts)

    def sample(self, batch: SampleBatch) -> TokenBatch:
        """Plans and image tokens of a batch, on the host.

        Given plans are taken as they are. U = 0 when the job samples plans only.
        """
        if batch.plan_ids_BT is None and self._plans_only:
            return self.sample_plans(batch)
        prompts = PromptBatch(jnp.asarray(batch.prompt_ids_BC), jnp.asarray(batch.prompt_len_B))
        keys_B = self._keys(batch.draw_B, batch.caption_index_B, batch.sample_index_B)
        if batch.plan_ids_BT is not None:
            plans, lengths = jnp.asarray(batch.plan_ids_BT), jnp.asarray(batch.plan_len_B)
            if self._mesh is not None:
                plans, lengths = jax.device_put((plans, lengths), row_sharding(self._mesh))
            rollout = self._sampler.sample_images(self._params, prompts, plans, lengths, keys_B)
        else:
            rollout = self._sampler(self._params, prompts, keys_B, 1)
        return jax.tree.map(np.asarray, rollout.rows)

    def sample_plans(self, batch: SampleBatch) -> TokenBatch:
        """Sampled plans of a batch, on the host; U = 0."""
        prompts = PromptBatch(jnp.asarray(batch.prompt_ids_BC), jnp.asarray(batch.prompt_len_B))
        keys_B = self._keys(batch.draw_B, batch.caption_index_B, batch.sample_index_B)
        return jax.tree.map(
            np.asarray, self._sampler.sample_plans(self._params, prompts, keys_B, 1).rows
        )
