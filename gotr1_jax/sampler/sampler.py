"""Captions in, plans and images out.

Python runs only between buckets. A bucket is one compiled loop over at most `plan_bucket` or
`image_bucket` tokens; then the cache grows, so attention reads little more than its filled part.
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

from gotr1_jax.decoding.bucket_loop import BucketLoop
from gotr1_jax.decoding.config import LogpConfig
from gotr1_jax.decoding.forward import prefill, prefill_after, rope_table
from gotr1_jax.decoding.kv_cache import (
    KVCache,
    cache_sharding,
    cast_cache,
    empty_cache,
    grow_cache,
    resolve_cache_dtype,
)
from gotr1_jax.errors import InputError
from gotr1_jax.models.config import JanusConfig
from gotr1_jax.parallel.mesh import put_global, replicated, row_multiple, row_sharding
from gotr1_jax.parallel.sharding import placed_shapes
from gotr1_jax.sampler.config import SamplerConfig
from gotr1_jax.sampler.image_loop import (
    ImageContext,
    ImageLoopConfig,
    ImageState,
    run_image_bucket,
    start_images,
)
from gotr1_jax.sampler.plan_loop import (
    PlanLoopConfig,
    PlanState,
    PromptCache,
    finish_plans,
    run_plan_bucket,
    start_plans,
)
from gotr1_jax.sampler.policy_weights import (
    PolicyWeights,
    policy_weights_in_panels,
    policy_weights_shardings,
    prepare_policy_weights,
)
from gotr1_jax.sampler.programs import SamplerPrograms, repeat_rows
from gotr1_jax.sampler.speculative_loop import SpeculativeImages, speculative_images
from gotr1_jax.sampler.token_batch import (
    PromptBatch,
    TokenBatch,
    rows_without_image,
    unconditional_prefix,
)
from gotr1_jax.tokenizers.janus import SpecialIds


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("rows", "plan_logp_BT", "image_logp_BU", "image_cond_logp_BU", "passes_B"),
    meta_fields=("settings",),
)
@dataclass(frozen=True)
class Rollout:
    """Sampled rows, caption-major: row p * G + s is sample s of caption p.

    With M images a plan they are plan-major within a caption: row (p * G/M + k) * M + m holds
    image m of plan k of caption p, and the M rows of a plan repeat its tokens.

    Attributes:
      rows: tokens; T = max_plan_tokens + 1.
      plan_logp_BT: float32 log-probability of each sampled plan token, 0 elsewhere.
      image_logp_BU: float32 guided log-probability of each image token.
      settings: mode, temperatures and guidance of `logp_BN` (before top-k and top-p).
      image_cond_logp_BU: those of the image without guidance; None unless the mode is
        `conditional` and there was guidance.
      passes_B: int32 forward passes that each image took; None: one a token.
    """

    rows: TokenBatch
    plan_logp_BT: jax.Array
    image_logp_BU: jax.Array
    settings: LogpConfig
    image_cond_logp_BU: jax.Array | None = None
    passes_B: jax.Array | None = None

    @property
    def logp_BN(self) -> jax.Array:
        """Log-probabilities, as `settings` defines them, of plan tokens, then image tokens: the
        axis of `rows.is_image_BN`."""
        cond_BU = self.image_cond_logp_BU
        image_BU = self.image_logp_BU if cond_BU is None else cond_BU
        return jnp.concatenate([self.plan_logp_BT, image_BU], axis=1)


def row_keys(
    seed: int, step: int, caption_index_P: jax.Array, samples: int, first: int = 0
) -> jax.Array:
    """A key per row (P * samples,), caption-major; see `sample_keys`.

    first: index of each caption's first sample.
    """
    captions_P = jnp.asarray(caption_index_P)
    caption_B = jnp.repeat(captions_P, samples)
    sample_B = jnp.tile(jnp.arange(first, first + samples), len(captions_P))
    return sample_keys(seed, step, caption_B, sample_B)


def sample_keys(seed: int, step: int, caption_B: jax.Array, sample_B: jax.Array) -> jax.Array:
    """Keys (B,), each a function of (seed, step, caption index, sample index) only."""
    fold_in = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    base = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in)(fold_in(base, caption_B), sample_B)


def draw_keys(
    key: jax.Array, draw_B: jax.Array, caption_B: jax.Array, sample_B: jax.Array
) -> jax.Array:
    """Keys (B,) of `sample_keys` whose step, here the number of a draw, may differ by row.

    key: `jax.random.key(seed)`.
    """
    fold_in = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    base_B = fold_in(key, draw_B)
    return jax.vmap(jax.random.fold_in)(jax.vmap(jax.random.fold_in)(base_B, caption_B), sample_B)


class Sampler:
    """Compiled sampling of one policy; build it once.

    Args:
      graphdef: of the split policy, with or without adapters.
      model_config: its sizes.
      special_ids: of its tokenizer.
      config: sampling settings.
      mesh: rows are sharded over its `data` and `fsdp` axes, heads over `tensor`; None: one device.
      dtype: of weights and activations, and of the cache unless `config.cache_dtype` names its
        own; None: the policy's. Logits, softmax and log-probabilities are always float32.
    """

    def __init__(
        self, graphdef: nnx.GraphDef, model_config: JanusConfig, special_ids: SpecialIds,
        config: SamplerConfig, mesh: Mesh | None = None, dtype: jnp.dtype | None = None,
    ) -> None:  # fmt: skip
        self.config, self.model_config, self.specials = config, model_config, special_ids
        self._mesh = mesh
        config.check_window(model_config.num_image_tokens)
        decoder, sampling = model_config.decoder, config.token_sampling
        plan = PlanLoopConfig(decoder, sampling, config.text_temperature, special_ids.boi)
        image = ImageLoopConfig(
            decoder, sampling, config.image_temperature, config.guidance,
            config.records_conditional,
        )  # fmt: skip
        self._weights = partial(prepare_policy_weights, graphdef, dtype=dtype)
        self._prepare: Any = None
        self.programs = SamplerPrograms(
            weights_in_panels=jax.jit(policy_weights_in_panels, static_argnames="rows"),
            prefill_prompts=jax.jit(self._prefill_prompts),
            start_plans=jax.jit(self._start_plans, static_argnames=("rows", "size")),
            plan_bucket=BucketLoop(partial(run_plan_bucket, config=plan)),
            finish_plans=jax.jit(partial(finish_plans, boi=special_ids.boi)),
            repeat_plans=jax.jit(repeat_rows, static_argnames="times"),
            prefill_plans=jax.jit(self._prefill_plans),
            prefill_uncond=jax.jit(self._prefill_uncond, static_argnames="size"),
            start_images=jax.jit(self._start_images, static_argnames=("rows", "size")),
            image_bucket=BucketLoop(partial(run_image_bucket, config=image)),
            speculative_images=jax.jit(partial(self._speculative_images, config=image)),
        )

    def prepare(self, state: nnx.State) -> PolicyWeights:
        """Decode weights of the policy's state; call after each update."""
        if self._prepare is None:
            self._prepare = self.prepare_program(state)[0]
        return self._prepare(state)

    def prepare_program(self, state: nnx.State) -> tuple[Any, PolicyWeights]:
        """The jitted function of `prepare`, and the shapes of its result.

        state: arrays or shapes.
        """
        shapes = jax.eval_shape(self._weights, state)
        if self._mesh is None:
            return jax.jit(self._weights), shapes
        shardings = policy_weights_shardings(shapes, self._mesh)
        program = jax.jit(self._weights, out_shardings=shardings)
        return program, placed_shapes(shapes, shardings)

    def __call__(
        self, params: PolicyWeights, prompts: PromptBatch, keys_B: jax.Array,
        samples_per_caption: int, images_per_plan: int = 1,
    ) -> Rollout:  # fmt: skip
        """Sample an image for every row, and a plan for every `images_per_plan` rows.

        Args:
          params: from `prepare`.
          prompts: P captions.
          keys_B: B = P * samples_per_caption keys, caption-major (`row_keys`).
          samples_per_caption: G.
          images_per_plan: M, a divisor of G. A plan is sampled with the key of its first row:
            its text and that row's image are at different positions.

        Raises InputError when M does not divide G, or the B / M plans do not divide over the mesh.
        """
        M = images_per_plan
        prompts, keys_B, plan_keys = self._place(prompts, keys_B, samples_per_caption, M)
        cached, plans, rows = self._run_plans(params, prompts, plan_keys)
        logp_BT = plans.logp_BT
        if M > 1:
            rows, logp_BT = self.programs.repeat_plans((rows, logp_BT), times=M)
        context = self._context(params, cached, plans.cache, rows.plan_len_B)
        return self._run_images(params, context, keys_B, rows, logp_BT)

    def sample_plans(
        self, params: PolicyWeights, prompts: PromptBatch, keys_B: jax.Array,
        samples_per_caption: int,
    ) -> Rollout:  # fmt: skip
        """As `__call__` with a plan a row, without images: U = 0."""
        prompts, keys_B, _ = self._place(prompts, keys_B, samples_per_caption)
        _, plans, rows = self._run_plans(params, prompts, keys_B)
        no_image = jnp.zeros((keys_B.shape[0], 0))
        return Rollout(rows, plans.logp_BT, no_image, self.config.logp_settings)

    def sample_images(
        self, params: PolicyWeights, prompts: PromptBatch, plan_ids_BT: jax.Array,
        plan_len_B: jax.Array, keys_B: jax.Array,
    ) -> Rollout:  # fmt: skip
        """Sample images after given plans (BOI last, B = P * G rows, caption-major).

        The plan mask is False and the plan's log-probabilities 0: no plan token was sampled.
        """
        samples = plan_ids_BT.shape[0] // prompts.ids_PC.shape[0]
        prompts, keys_B, _ = self._place(prompts, keys_B, samples)
        cached, _ = self.programs.prefill_prompts(params, prompts)
        plans = self.programs.prefill_plans(params, cached, plan_ids_BT[:, :-1])
        context = self._context(params, cached, plans, plan_len_B)
        unsampled = jnp.zeros(plan_ids_BT.shape, bool)
        rows = rows_without_image(prompts, plan_ids_BT, plan_len_B, unsampled)
        return self._run_images(params, context, keys_B, rows, jnp.zeros(plan_ids_BT.shape))

    def _place(
        self, prompts: PromptBatch, keys_B: jax.Array, samples: int, images: int = 1
    ) -> tuple[PromptBatch, jax.Array, jax.Array]:
        """Check the sizes and put prompts, keys of rows and keys of plans on the mesh."""
        P, B = prompts.ids_PC.shape[0], keys_B.shape[0]
        if P * samples != B:
            raise InputError(f"{B} keys for {P} captions of {samples} samples: give {P * samples}")
        if images < 1 or samples % images:
            raise InputError(f"{images} images a plan do not divide {samples} samples")
        if self._mesh is None:
            return prompts, keys_B, keys_B if images == 1 else keys_B[::images]
        parts = row_multiple(self._mesh)
        if B // images % parts:
            of_plans = f", {images} a plan" if images > 1 else ""
            raise InputError(
                f"{B // images} {'plans' if of_plans else 'rows'} ({P} captions of {samples} "
                f"samples{of_plans}) do not divide over the {parts} row shards of the mesh; make "
                f"them a multiple of {parts} by more captions at once or a smaller mesh"
            )
        over_rows = row_sharding(self._mesh)
        # If the captions do not divide over the mesh, they are replicated; rows are still sharded.
        by_caption = replicated(self._mesh) if P % parts else over_rows
        prompts = jax.tree.map(lambda x: put_global(np.asarray(x), by_caption), prompts)
        data = np.asarray(jax.random.key_data(keys_B))

        def placed(data: np.ndarray) -> jax.Array:
            key_data = put_global(data, over_rows)
            return jax.random.wrap_key_data(key_data, impl=jax.random.key_impl(keys_B))

        placed_B = placed(data)
        return prompts, placed_B, placed_B if images == 1 else placed(data[::images])

    def _cache_dtype(self, params: PolicyWeights) -> jnp.dtype:
        return resolve_cache_dtype(self.config.cache_dtype, params.norm_D.dtype)

    def _empty_cache(self, params: PolicyWeights, rows: int, size: int) -> KVCache:
        dtype = self._cache_dtype(params)
        cache = empty_cache(self.model_config.decoder, rows, size, dtype)
        if self._mesh is None:
            return cache
        return jax.lax.with_sharding_constraint(cache, cache_sharding(self._mesh))

    def _prefill_prompts(
        self, params: PolicyWeights, prompts: PromptBatch
    ) -> tuple[PromptCache, jax.Array]:
        """The prompts' cache, and the hidden states (P,D) of their last tokens."""
        x_PCD = params.text_embed_VD[prompts.ids_PC]
        hidden, cache = prefill(params, self.model_config.decoder, x_PCD)
        last = jnp.take_along_axis(hidden, (prompts.len_P - 1)[:, None, None], axis=1)[:, 0]
        return PromptCache(cast_cache(cache, self._cache_dtype(params)), prompts.len_P), last

    def _prefill_plans(
        self, params: PolicyWeights, prompts: PromptCache, ids_BS: jax.Array
    ) -> KVCache:
        """Cache of plans (B,S) that follow their prompts."""
        S, prompt_len_B = ids_BS.shape[1], prompts.per_row(ids_BS.shape[0])
        cos, sin = rope_table(self.model_config.decoder, prompts.cache.size + S)
        positions_BS = prompt_len_B[:, None] + jnp.arange(S, dtype=jnp.int32)
        x_BSD, rope = params.text_embed_VD[ids_BS], (cos[positions_BS], sin[positions_BS])
        before = [(prompts.cache, prompt_len_B)]
        cache = prefill_after(params, self.model_config.decoder, x_BSD, rope, before)[1]
        return cast_cache(cache, self._cache_dtype(params))

    def _prefill_uncond(self, params: PolicyWeights, size: int) -> KVCache:
        x_1SD = params.text_embed_VD[unconditional_prefix(size, self.specials)]
        cache = prefill(params, self.model_config.decoder, x_1SD)[1]
        return cast_cache(cache, self._cache_dtype(params))

    def _start_plans(
        self, params: PolicyWeights, last_PD: jax.Array, rows: int, size: int
    ) -> PlanState:
        cache = self._empty_cache(params, rows, size)
        return start_plans(last_PD, rows, self.config.max_plan_tokens, cache, self.specials.pad)

    def _start_images(self, params: PolicyWeights, rows: int, size: int) -> ImageState:
        n, tokens = self.config.branches, self.model_config.num_image_tokens
        cache = self._empty_cache(params, n * rows, size)
        record = self.config.records_conditional
        return start_images(params, rows, tokens, cache, self.specials.boi, record)

    def _speculative_images(
        self, params: PolicyWeights, context: ImageContext, keys_B: jax.Array,
        config: ImageLoopConfig,
    ) -> SpeculativeImages:  # fmt: skip
        rows, window = self.config.branches * keys_B.shape[0], self.config.speculative
        size = self.model_config.num_image_tokens + window
        cache = self._empty_cache(params, rows, size)
        return speculative_images(params, context, keys_B, cache, self.specials.boi, config, window)

    def _run_plans(
        self, params: PolicyWeights, prompts: PromptBatch, keys_B: jax.Array
    ) -> tuple[PromptCache, PlanState, TokenBatch]:
        """Run all buckets of the plan loop."""
        cached, last_PD = self.programs.prefill_prompts(params, prompts)
        limit, bucket = self.config.max_plan_tokens, self.config.plan_bucket
        size = min(bucket, limit)
        state = self.programs.start_plans(params, last_PD, rows=keys_B.shape[0], size=size)
        params = self.programs.loop_weights(params, keys_B.shape[0])
        while True:
            state = self.programs.plan_bucket(params, cached, keys_B, state)
            if size == limit or not bool(jnp.any(state.len_B == 0)):
                break
            size = min(size + bucket, limit)
            state = replace(state, cache=grow_cache(state.cache, size))
        state, mask_BT = self.programs.finish_plans(state)
        return cached, state, rows_without_image(prompts, state.ids_BT, state.len_B, mask_BT)

    def _context(
        self, params: PolicyWeights, prompts: PromptCache, plans: KVCache, plan_len_B: jax.Array
    ) -> ImageContext:
        uncond = None
        if self.config.branches == 2:
            size = prompts.cache.size + plans.size
            uncond = self.programs.prefill_uncond(params, size=size)
        return ImageContext(prompts, plans, plan_len_B, uncond)

    def _run_images(
        self, params: PolicyWeights, context: ImageContext, keys_B: jax.Array, rows: TokenBatch,
        plan_logp_BT: jax.Array,
    ) -> Rollout:  # fmt: skip
        """Run all buckets of the image loop, or the speculative one; the result is sharded by
        rows."""
        images = self._sample_images(params, context, keys_B)
        rollout = Rollout(
            replace(rows, image_ids_BU=images.ids_BU), plan_logp_BT, images.logp_BU,
            self.config.logp_settings, images.cond_logp_BU,
            images.passes_B if isinstance(images, SpeculativeImages) else None,
        )  # fmt: skip
        if self._mesh is None:
            return rollout
        return jax.device_put(rollout, row_sharding(self._mesh))

    def _sample_images(
        self, params: PolicyWeights, context: ImageContext, keys_B: jax.Array
    ) -> ImageState | SpeculativeImages:
        if self.config.speculative:
            return self.programs.speculative_images(params, context, keys_B)
        tokens, bucket = self.model_config.num_image_tokens, self.config.image_bucket
        size = min(bucket, tokens)
        state = self.programs.start_images(params, rows=keys_B.shape[0], size=size)
        params = self.programs.loop_weights(params, self.config.branches * keys_B.shape[0])
        while True:
            state = self.programs.image_bucket(params, context, keys_B, state)
            if size == tokens:
                return state
            size = min(size + bucket, tokens)
            state = replace(state, cache=grow_cache(state.cache, size))
