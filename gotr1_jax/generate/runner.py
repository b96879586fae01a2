"""A checkpoint on this process's devices, with the programs that were compiled for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gotr1_jax.convert.checkpoint import load_checkpoint
from gotr1_jax.errors import InputError
from gotr1_jax.generate.load_policy import load_policy_to_sample
from gotr1_jax.parallel.mesh import make_mesh, row_multiple, row_sharding
from gotr1_jax.sampler.answer import AnswerSampler
from gotr1_jax.sampler.config import AnswerConfig, SamplerConfig
from gotr1_jax.sampler.image_decoder import ImageDecoder
from gotr1_jax.sampler.policy_weights import PolicyWeights
from gotr1_jax.sampler.sampler import Rollout, Sampler, draw_keys
from gotr1_jax.sampler.token_batch import PromptBatch

if TYPE_CHECKING:
    from gotr1_jax.generate.batches import SampleBatch


class ModelRunner:
    """Draws plans and images, and answers questions, with one checkpoint.

    A part's weights are loaded when it is first used, and lie whole on each device; the rows of a
    batch are split over the devices. Programs are compiled once for each settings of sampling and
    each width of a batch.

    Attributes:
      source: checkpoint directory.
      dtype: "float32" or "bfloat16", of the policy's weights and activations; the image decoder's
        is float32.
      devices: in use.
      config, tokenizer: of the checkpoint.
    """

    def __init__(
        self, source: Path, dtype: str, devices: Sequence[jax.Device] | None = None
    ) -> None:
        """Reads sizes and tokenizer. InputError for a directory that holds no checkpoint.

        devices: one or more to work on; None: all.
        """
        self.source, self.dtype = source, dtype
        self.devices = list(jax.devices() if devices is None else devices)
        if not self.devices:
            raise InputError("there is no device to work on; give one or more, or None for all")
        checkpoint = load_checkpoint(source, parts=())
        self.config, self.tokenizer = checkpoint.config, checkpoint.tokenizer
        self._mesh = make_mesh(devices=self.devices)
        # Where it is None, arrays lie on the default device without being put there.
        self._spread = None if self.devices == jax.devices()[:1] else self._mesh
        self._samplers: dict[SamplerConfig, Sampler] = {}
        self._answerers: dict[AnswerConfig, AnswerSampler] = {}
        self._keys = jax.jit(draw_keys)

    @property
    def row_multiple(self) -> int:
        """The number of a batch's rows is a multiple of this."""
        return row_multiple(self._mesh)

    @cached_property
    def decode(self) -> ImageDecoder:
        """Image ids int32 (B, U) -> B images uint8 (H, W, 3).

        Each device decodes one image at a time: memory is bounded, and no pixel depends on the
        number of images.
        """
        # The decoder is small, and bfloat16 would be visible in the image.
        vq = load_checkpoint(self.source, parts=("vq",))
        return ImageDecoder(vq.vq_module(), vq.config.grid, 1, self._mesh)

    @property
    def policy(self) -> PolicyWeights:
        """The policy's weights as sampling reads them."""
        return self._policy[1]

    @property
    def policy_graphdef(self) -> nnx.GraphDef:
        """Of the split policy."""
        return self._policy[0]

    @cached_property
    def understanding(self) -> tuple[nnx.GraphDef, nnx.State]:
        """Vision tower and aligner, split."""
        dtype = jnp.dtype(self.dtype)
        loaded = load_checkpoint(self.source, parts=("understanding",), dtype=dtype)
        return nnx.split(loaded.understanding_module())

    def sampler(self, sampling: SamplerConfig) -> Sampler:
        """The compiled sampling with these settings; InputError where they do not fit the model."""
        sampling.check_window(self.config.num_image_tokens)  # before weights are read
        if sampling not in self._samplers:
            self._samplers[sampling] = self._make_sampler(self.policy_graphdef, sampling)
        return self._samplers[sampling]

    def answerer(self, sampling: AnswerConfig) -> AnswerSampler:
        """The compiled answering with these settings."""
        if sampling not in self._answerers:
            tower, specials = self.understanding[0], self.tokenizer.specials
            self._answerers[sampling] = AnswerSampler(
                self.policy_graphdef, tower, self.config, specials, sampling
            )
        return self._answerers[sampling]

    def sample(
        self, batch: SampleBatch, sampling: SamplerConfig, seed: int, with_images: bool = True
    ) -> Rollout:
        """Plans and images of a batch, on the host.

        A plan that the batch gives is taken as it is. Without images U = 0. A sample depends on
        (seed, draw, caption index, sample index) alone, not on its batch.
        """
        sampler = self.sampler(sampling)
        prompts = PromptBatch(jnp.asarray(batch.prompt_ids_BC), jnp.asarray(batch.prompt_len_B))
        indices = batch.draw_B, batch.caption_index_B, batch.sample_index_B
        keys_B = self._keys(jax.random.key(seed), *indices)
        if not with_images:
            rollout = sampler.sample_plans(self.policy, prompts, keys_B, 1)
        elif batch.plan_ids_BT is not None:
            plans, lengths = jnp.asarray(batch.plan_ids_BT), jnp.asarray(batch.plan_len_B)
            if self._spread is not None:
                plans, lengths = jax.device_put((plans, lengths), row_sharding(self._spread))
            rollout = sampler.sample_images(self.policy, prompts, plans, lengths, keys_B)
        else:
            rollout = sampler(self.policy, prompts, keys_B, 1)
        return jax.tree.map(np.asarray, rollout)

    @cached_property
    def _policy(self) -> tuple[nnx.GraphDef, PolicyWeights]:
        graphdef, state = load_policy_to_sample(self.source, self.dtype)
        # Of all settings' samplers the weights are the same.
        weights = self._make_sampler(graphdef, SamplerConfig()).prepare(state)
        return graphdef, jax.block_until_ready(weights)

    def _make_sampler(self, graphdef: nnx.GraphDef, sampling: SamplerConfig) -> Sampler:
        specials = self.tokenizer.specials
        return Sampler(graphdef, self.config, specials, sampling, self._spread)
