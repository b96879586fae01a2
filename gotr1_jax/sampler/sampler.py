"""Captions in, plans and images out: the loops of both phases, bucket by bucket.

Python runs between buckets only. A bucket is one compiled loop over at most `plan_bucket` or
`image_bucket` tokens that reads the filled part of the cache; then the cache grows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.decoding.forward import prefill, prefill_behind
from gotr1_jax.decoding.guidance import LogpSettings
from gotr1_jax.decoding.kv_cache import KVCache, cache_sharding, empty_cache, grow_cache
from gotr1_jax.decoding.sample_token import TokenSamplingConfig
from gotr1_jax.errors import InputError
from gotr1_jax.models.config import JanusConfig
from gotr1_jax.parallel.mesh import put, replicated, row_multiple
from gotr1_jax.parallel.mesh import rows as row_sharding
from gotr1_jax.parallel.sharding import placed_shapes
from gotr1_jax.sampler.image_loop import (
    ImageContext,
    ImageRules,
    ImageState,
    run_image_bucket,
    start_images,
)
from gotr1_jax.sampler.plan_loop import (
    PlanRules,
    PlanState,
    PromptCache,
    finish_plans,
    run_plan_bucket,
    start_plans,
)
from gotr1_jax.sampler.policy_weights import SamplingParams, params_shardings, prepare_params
from gotr1_jax.sampler.token_batch import PromptBatch, TokenBatch, unconditional_prefix
from gotr1_jax.tokenizers.janus import SpecialIds


@dataclass(frozen=True)
class SamplerConfig:
    """How plans and images are drawn.

    Attributes:
      max_plan_tokens: plan tokens at most, 1 or more; a BOI that has not come by then is forced.
      guidance: w in uncond + w (cond - uncond) for the image; 1 skips the second branch.
      text_temperature, image_temperature: divide the logits, greater than 0.
      top_k, top_p: see `TokenSamplingConfig`; both phases.
      greedy: take the most likely token in both phases.
      plan_bucket, image_bucket: tokens of one compiled loop, and by how much the cache grows.
        Small ones read less, large ones compile fewer programs.
    """

    max_plan_tokens: int = 600
    guidance: float = 5.0
    text_temperature: float = 1.0
    image_temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    greedy: bool = False
    plan_bucket: int = 128
    image_bucket: int = 96

    def __post_init__(self) -> None:
        for name in ("max_plan_tokens", "plan_bucket", "image_bucket"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("text_temperature", "image_temperature"):
            if not getattr(self, name) > 0:
                raise InputError(
                    f"{name} is {getattr(self, name)}; it must be greater than 0 (for the most "
                    "likely token set greedy)"
                )
        try:
            _ = self.choice
        except ValueError as error:
            raise InputError(str(error)) from error

    @property
    def choice(self) -> TokenSamplingConfig:
        """How one token is drawn."""
        return TokenSamplingConfig(self.greedy, self.top_k, self.top_p)

    @property
    def logp_settings(self) -> LogpSettings:
        """What the recorded log-probabilities mean."""
        return LogpSettings("guided", self.guidance, self.text_temperature, self.image_temperature)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("rows", "plan_logp_BT", "image_logp_BU"),
    meta_fields=("settings",),
)
@dataclass(frozen=True)
class Rollout:
    """Sampled rows, caption-major: row p * G + s is sample s of caption p.

    Attributes:
      rows: the rows; T = max_plan_tokens + 1.
      plan_logp_BT: float32 log-probability of each sampled plan token, 0 elsewhere.
      image_logp_BU: float32 guided log-probability of each image token.
      settings: temperatures and guidance that these were taken at (before top-k and top-p).
    """

    rows: TokenBatch
    plan_logp_BT: jax.Array
    image_logp_BU: jax.Array
    settings: LogpSettings


def row_keys(
    seed: int, step: int, caption_index_P: jax.Array, samples: int, first: int = 0
) -> jax.Array:
    """A key for each row (P * samples,), caption-major; see `fold_keys`.

    first: index of each caption's first sample.
    """
    captions_P = jnp.asarray(caption_index_P)
    caption_B = jnp.repeat(captions_P, samples)
    sample_B = jnp.tile(jnp.arange(first, first + samples), len(captions_P))
    return fold_keys(seed, step, caption_B, sample_B)


def fold_keys(seed: int, step: int, caption_B: jax.Array, sample_B: jax.Array) -> jax.Array:
    """Keys (B,), each folded from (seed, step, caption index, sample index) alone."""
    base = jax.random.fold_in(jax.random.key(seed), step)

    def one(caption: jax.Array, sample: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(base, caption), sample)

    return jax.vmap(one)(caption_B, sample_B)


@dataclass(frozen=True)
class SamplerPrograms:
    """The jitted functions of a `Sampler`, in the order of their use.

    Attributes:
      read: prompts -> captions' cache and the hidden state of their last tokens.
      start_plans, plan_bucket, finish_plans: the loop over plan tokens.
      given_plans: plans that were not drawn, read at once.
      ramp: the cache that all null contexts share.
      start_images, image_bucket: the loop over image tokens.
    """

    read: Any
    start_plans: Any
    plan_bucket: Any
    finish_plans: Any
    given_plans: Any
    ramp: Any
    start_images: Any
    image_bucket: Any


class Sampler:
    """Compiled sampling of one policy; build it once and keep it.

    Args:
      graphdef: of the split policy, with or without adapters.
      model_config: its sizes.
      special_ids: of its tokenizer.
      config: how to draw.
      mesh: rows are split over its `data` and `fsdp` axes, heads over `tensor`; None: one device.
      dtype: of weights, activations and cache; None takes the policy's. Logits, softmax and
        log-probabilities are float32 always.
    """

    def __init__(
        self, graphdef: nnx.GraphDef, model_config: JanusConfig, special_ids: SpecialIds,
        config: SamplerConfig, mesh: Mesh | None = None, dtype: jnp.dtype | None = None,
    ) -> None:  # fmt: skip
        self.config, self.model_config, self.specials = config, model_config, special_ids
        self._mesh = mesh
        decoder = model_config.decoder
        plan_rules = PlanRules(decoder, config.choice, config.text_temperature, special_ids.boi)
        image_rules = ImageRules(decoder, config.choice, config.image_temperature, config.guidance)
        self._lay_out = partial(prepare_params, graphdef, dtype=dtype)
        self._prepare: Any = None
        self.programs = SamplerPrograms(
            read=jax.jit(self._read_prompts),
            start_plans=jax.jit(self._begin_plans, static_argnames=("rows", "size")),
            plan_bucket=jax.jit(partial(run_plan_bucket, rules=plan_rules), donate_argnums=3),
            finish_plans=jax.jit(partial(finish_plans, boi=special_ids.boi)),
            given_plans=jax.jit(partial(prefill_behind, cfg=decoder)),
            ramp=jax.jit(self._read_unconditional_prefix, static_argnames="size"),
            start_images=jax.jit(self._begin_images, static_argnames=("rows", "size")),
            image_bucket=jax.jit(partial(run_image_bucket, rules=image_rules), donate_argnums=3),
        )

    @property
    def branches(self) -> int:
        """2 under guidance, else 1."""
        return 1 if self.config.guidance == 1.0 else 2

    def prepare(self, state: nnx.State) -> SamplingParams:
        """The policy's state (adapters and all) as the loops read it; call after each update."""
        if self._prepare is None:
            self._prepare = self.layout(state)[0]
        return self._prepare(state)

    def layout(self, state: nnx.State) -> tuple[Any, SamplingParams]:
        """The jitted function behind `prepare`, and the shapes of what it makes.

        state: arrays, or their shapes.
        """
        shapes = jax.eval_shape(self._lay_out, state)
        if self._mesh is None:
            return jax.jit(self._lay_out), shapes
        shardings = params_shardings(shapes, self._mesh)
        program = jax.jit(self._lay_out, out_shardings=shardings)
        return program, placed_shapes(shapes, shardings)

    def __call__(
        self, params: SamplingParams, prompts: PromptBatch, keys_B: jax.Array,
        samples_per_caption: int,
    ) -> Rollout:  # fmt: skip
        """Draw a plan and an image for every row.

        Args:
          params: what `prepare` made.
          prompts: P captions.
          keys_B: B = P * samples_per_caption keys, caption-major (`row_keys`).
          samples_per_caption: G.

        Raises InputError when B does not divide over the mesh.
        """
        prompts, keys_B = self._place(prompts, keys_B, samples_per_caption)
        captions, last_PD = self.programs.read(params, prompts)
        plans = self._plan(params, captions, last_PD, keys_B)
        plans, mask_BT = self.programs.finish_plans(plans)
        context = self._context(params, captions, plans.segment, plans.len_B)
        rows = self._rows(prompts, plans.ids_BT, plans.len_B, mask_BT)
        return self._paint(params, context, keys_B, rows, plans.logp_BT)

    def plan(
        self, params: SamplingParams, prompts: PromptBatch, keys_B: jax.Array,
        samples_per_caption: int,
    ) -> Rollout:  # fmt: skip
        """Draw a plan for every row as `__call__` does, and no image: U = 0."""
        prompts, keys_B = self._place(prompts, keys_B, samples_per_caption)
        captions, last_PD = self.programs.read(params, prompts)
        plans, mask_BT = self.programs.finish_plans(self._plan(params, captions, last_PD, keys_B))
        rows = self._rows(prompts, plans.ids_BT, plans.len_B, mask_BT)
        no_image = jnp.zeros((keys_B.shape[0], 0))
        return Rollout(rows, plans.logp_BT, no_image, self.config.logp_settings)

    def paint(
        self, params: SamplingParams, prompts: PromptBatch, plan_ids_BT: jax.Array,
        plan_len_B: jax.Array, keys_B: jax.Array,
    ) -> Rollout:  # fmt: skip
        """Draw images behind given plans (BOI last, B = P * G rows, caption-major).

        The plan mask is False and the plan's log-probabilities 0: nothing of it was drawn.
        """
        samples = plan_ids_BT.shape[0] // prompts.ids_PC.shape[0]
        prompts, keys_B = self._place(prompts, keys_B, samples)
        captions, _ = self.programs.read(params, prompts)
        B = keys_B.shape[0]
        segment = self.programs.given_plans(
            params, ids_BS=plan_ids_BT[:, :-1], captions=captions.segment,
            caption_len_B=captions.per_row(B),
        )  # fmt: skip
        context = self._context(params, captions, segment, plan_len_B)
        rows = self._rows(prompts, plan_ids_BT, plan_len_B, jnp.zeros(plan_ids_BT.shape, bool))
        return self._paint(params, context, keys_B, rows, jnp.zeros(plan_ids_BT.shape))

    def _place(
        self, prompts: PromptBatch, keys_B: jax.Array, samples: int
    ) -> tuple[PromptBatch, jax.Array]:
        """Check the sizes and put the inputs on the mesh."""
        P, B = prompts.ids_PC.shape[0], keys_B.shape[0]
        if P * samples != B:
            raise InputError(f"{B} keys for {P} captions of {samples} samples: give {P * samples}")
        if self._mesh is None:
            return prompts, keys_B
        parts = row_multiple(self._mesh)
        if B % parts:
            raise InputError(
                f"{B} rows ({P} captions of {samples} samples) do not divide over the {parts} row "
                f"shards of the mesh; make captions times samples a multiple of {parts}"
            )
        over_rows = row_sharding(self._mesh)
        # Fewer captions than shards: every device reads them all, the rows are still split.
        by_caption = replicated(self._mesh) if P % parts else over_rows
        prompts = jax.tree.map(lambda x: put(np.asarray(x), by_caption), prompts)
        words = put(np.asarray(jax.random.key_data(keys_B)), over_rows)
        return prompts, jax.random.wrap_key_data(words, impl=jax.random.key_impl(keys_B))

    def _on_rows(self, rollout: Rollout) -> Rollout:
        """A rollout whose arrays all lie over the rows of the mesh."""
        if self._mesh is None:
            return rollout
        return jax.device_put(rollout, row_sharding(self._mesh))

    def _pinned(self, segment: KVCache) -> KVCache:
        """A segment of rows, laid over the mesh."""
        if self._mesh is None:
            return segment
        return jax.lax.with_sharding_constraint(segment, cache_sharding(self._mesh))

    def _read_prompts(
        self, params: SamplingParams, prompts: PromptBatch
    ) -> tuple[PromptCache, jax.Array]:
        """Run the prompts through: captions, and the hidden state (P,D) of their last tokens."""
        hidden, segment = prefill(params, self.model_config.decoder, prompts.ids_PC)
        last = jnp.take_along_axis(hidden, (prompts.len_P - 1)[:, None, None], axis=1)[:, 0]
        return PromptCache(segment, prompts.len_P), last

    def _read_unconditional_prefix(self, params: SamplingParams, size: int) -> KVCache:
        return prefill(
            params, self.model_config.decoder, unconditional_prefix(size, self.specials)
        )[1]

    def _begin_plans(
        self, params: SamplingParams, last_PD: jax.Array, rows: int, size: int
    ) -> PlanState:
        decoder = self.model_config.decoder
        segment = self._pinned(empty_cache(decoder, rows, size, params.norm_D.dtype))
        return start_plans(last_PD, rows, self.config.max_plan_tokens, segment, self.specials.pad)

    def _begin_images(self, params: SamplingParams, rows: int, size: int) -> ImageState:
        decoder, n = self.model_config.decoder, self.branches
        segment = self._pinned(empty_cache(decoder, n * rows, size, params.norm_D.dtype))
        tokens = self.model_config.num_image_tokens
        return start_images(params, rows, n, tokens, segment, self.specials.boi)

    def _plan(
        self, params: SamplingParams, captions: PromptCache, last_PD: jax.Array, keys_B: jax.Array
    ) -> PlanState:
        limit, bucket = self.config.max_plan_tokens, self.config.plan_bucket
        size = min(bucket, limit)
        state = self.programs.start_plans(params, last_PD, rows=keys_B.shape[0], size=size)
        while True:
            state = self.programs.plan_bucket(params, captions, keys_B, state)
            if size == limit or not bool(jnp.any(state.len_B == 0)):
                return state
            size = min(size + bucket, limit)
            state = replace(state, segment=grow_cache(state.segment, size))

    def _context(
        self, params: SamplingParams, captions: PromptCache, plans: KVCache, plan_len_B: jax.Array
    ) -> ImageContext:
        guided = self.branches == 2
        ramp = (
            self.programs.ramp(params, size=captions.segment.size + plans.size) if guided else None
        )
        return ImageContext(captions, plans, plan_len_B, ramp)

    def _rows(
        self, prompts: PromptBatch, ids_BT: jax.Array, len_B: jax.Array, mask_BT: jax.Array
    ) -> TokenBatch:
        """Rows that have no image yet."""
        samples = ids_BT.shape[0] // prompts.ids_PC.shape[0]
        return TokenBatch(
            prompt_ids_BC=jnp.repeat(prompts.ids_PC, samples, axis=0),
            prompt_len_B=jnp.repeat(prompts.len_P, samples),
            plan_ids_BT=ids_BT,
            plan_len_B=len_B,
            plan_mask_BT=mask_BT,
            image_ids_BU=jnp.zeros((ids_BT.shape[0], 0), jnp.int32),
        )

    def _paint(
        self, params: SamplingParams, context: ImageContext, keys_B: jax.Array, rows: TokenBatch,
        plan_logp_BT: jax.Array,
    ) -> Rollout:  # fmt: skip
        tokens, bucket = self.model_config.num_image_tokens, self.config.image_bucket
        size = min(bucket, tokens)
        state = self.programs.start_images(params, rows=keys_B.shape[0], size=size)
        while True:
            state = self.programs.image_bucket(params, context, keys_B, state)
            if size == tokens:
                break
            size = min(size + bucket, tokens)
            state = replace(state, segment=grow_cache(state.segment, size))
        rows = replace(rows, image_ids_BU=state.ids_BU)
        drawn = Rollout(rows, plan_logp_BT, state.logp_BU, self.config.logp_settings)
        return self._on_rows(drawn)
