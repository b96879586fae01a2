"""A loaded checkpoint that draws batches: plans, image tokens, pixels."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gotr1_jax.convert.checkpoint import load_checkpoint
from gotr1_jax.generate.config import GenerateConfig
from gotr1_jax.generate.work import Batch, Survey, batch_rows, bytes_per_row, default_rows
from gotr1_jax.models.janus import abstract_policy
from gotr1_jax.models.vq import image_decoder
from gotr1_jax.parallel.mesh import make_mesh, replicated, row_multiple, row_sharding
from gotr1_jax.sampler.sampler import Sampler, SamplerConfig, sample_keys
from gotr1_jax.sampler.token_batch import PromptBatch, TokenBatch


def sampler_config(config: GenerateConfig) -> SamplerConfig:
    """How the job draws."""
    return SamplerConfig(
        max_plan_tokens=config.max_plan_tokens,
        guidance=config.cfg,
        text_temperature=config.temperature,
        image_temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        greedy=config.greedy,
    )


class BatchPainter:
    """Draws batches on all devices, rows split over them; weights lie on each.

    No more devices are used than there are rows at once.

    Attributes:
      batch_size: rows of a batch; from the settings, else what the free memory allows.
    """

    def __init__(
        self, config: GenerateConfig, source: Path, work: Survey, dtype: str,
        devices: list[jax.Device] | None = None,
    ) -> None:  # fmt: skip
        """Loads the checkpoint in `source`.

        Args:
          config: the job.
          source: checkpoint directory.
          work: what there is to do.
          dtype: of the policy's weights and activations; the image decoder's is float32.
          devices: to work on; None are all.
        """
        devices = jax.devices() if devices is None else devices
        devices = devices[: min(work.rows, config.batch_size or work.rows)]
        self._mesh = make_mesh(devices=devices) if len(devices) > 1 else None
        self._config = config
        if not config.plans_only:
            # The image decoder is small: bfloat16 would be seen in the image.
            self._load_decoder(source)
        checkpoint = load_checkpoint(source, parts=("policy",), dtype=jnp.dtype(dtype))
        abstract = abstract_policy(
            checkpoint.config, dtype=checkpoint.dtype, param_dtype=checkpoint.dtype
        )
        self._sampler = Sampler(
            nnx.split(abstract)[0], checkpoint.config, checkpoint.tokenizer.specials,
            sampler_config(config), self._mesh,
        )  # fmt: skip
        self._params = self._sampler.prepare(checkpoint.policy)
        jax.block_until_ready(self._params)
        model = checkpoint.config
        del checkpoint  # the policy's weights as they were loaded are used up
        self._keys = jax.jit(partial(sample_keys, config.seed, 0))
        parts = 1 if self._mesh is None else row_multiple(self._mesh)
        if config.batch_size is not None:
            self.batch_size = -(-config.batch_size // parts) * parts
            return
        row_bytes = bytes_per_row(
            model, work, self._sampler.branches, jnp.dtype(dtype).itemsize, config.plans is not None
        )
        self.batch_size = batch_rows(work.rows, default_rows(model, row_bytes, devices), parts)

    @property
    def plan_bucket(self) -> int:
        """Slots by which the sampler's plans grow."""
        return self._sampler.config.plan_bucket

    def draw(self, batch: Batch) -> TokenBatch:
        """Plans and image tokens of a batch, on the host; for given plans only the latter, and
        no image tokens (U = 0) when only plans are wanted."""
        prompts = PromptBatch(jnp.asarray(batch.prompt_ids_BC), jnp.asarray(batch.prompt_len_B))
        keys_B = self._keys(batch.place_B, batch.index_B)
        if batch.plan_ids_BT is not None:
            plans, lengths = jnp.asarray(batch.plan_ids_BT), jnp.asarray(batch.plan_len_B)
            if self._mesh is not None:
                plans, lengths = jax.device_put((plans, lengths), row_sharding(self._mesh))
            rollout = self._sampler.sample_images(self._params, prompts, plans, lengths, keys_B)
        elif self._config.plans_only:
            rollout = self._sampler.sample_plans(self._params, prompts, keys_B, 1)
        else:
            rollout = self._sampler(self._params, prompts, keys_B, 1)
        return jax.tree.map(np.asarray, rollout.rows)

    def decode(self, ids_BU: np.ndarray) -> np.ndarray:
        """Image ids int32 (B, U) -> uint8 (B, H, W, 3).

        Each device decodes one image at a time: the memory is bounded, and no pixel depends on
        how many images there are.
        """
        parts = 1 if self._mesh is None else row_multiple(self._mesh)
        out = []
        for start in range(0, len(ids_BU), parts):
            part = ids_BU[start : start + parts]
            filled = np.concatenate([part, np.repeat(part[:1], parts - len(part), axis=0)])
            if self._mesh is not None:
                filled = jax.device_put(filled, row_sharding(self._mesh))
            out.append(np.asarray(self._decode(self._vq, filled))[: len(part)])
        return np.concatenate(out)

    def _load_decoder(self, source: Path) -> None:
        checkpoint = load_checkpoint(source, parts=("vq",))
        graphdef, self._vq = nnx.split(checkpoint.vq_module())
        if self._mesh is not None:
            self._vq = jax.device_put(self._vq, replicated(self._mesh))
        self._decode = image_decoder(graphdef, checkpoint.config.grid)
