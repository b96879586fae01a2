"""Text behind a prompt that holds images: the understanding side of the policy.

A prompt's images go through the vision tower once; their vectors stand in the place of the
placeholder tokens. Then the loop of the plan phase runs, with EOS for its end: one compiled
program reads the prompt, one writes the whole answer. Letters as in `sampling.state`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from gotr1_jax.decoding.forward import prefill_embedded, text_logits
from gotr1_jax.decoding.kv_cache import empty_cache
from gotr1_jax.decoding.sample_token import TokenSamplingConfig
from gotr1_jax.errors import InputError
from gotr1_jax.models.config import JanusConfig
from gotr1_jax.models.siglip import Understanding
from gotr1_jax.sampler.plan_loop import PlanRules, PromptCache, run_plan_bucket, start_plans
from gotr1_jax.sampler.policy_weights import SamplingParams, prepare_params
from gotr1_jax.sampler.token_batch import PromptBatch
from gotr1_jax.tokenizers.janus import SpecialIds


@dataclass(frozen=True)
class AnswerConfig:
    """How an answer is drawn.

    Attributes:
      max_tokens: longest answer, EOS included.
      temperature: divides the logits; 0 takes the most likely token always.
    """

    max_tokens: int = 512
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InputError(f"max_tokens is {self.max_tokens}; give 1 or more")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(
                f"temperature is {self.temperature}; give 0 (the most likely token) or more"
            )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Answers:
    """Answers to P prompts.

    Attributes:
      ids_PT: int32 tokens, T = max_tokens; EOS last where it came, pads behind.
      len_P: int32 tokens of each answer, EOS included.
      ended_P: False where the answer was cut at `max_tokens`.
    """

    ids_PT: jax.Array
    len_P: jax.Array
    ended_P: jax.Array


class AnswerSampler:
    """Compiled answering with one policy and its vision tower; build it once and keep it.

    Args:
      policy, understanding: graphdefs of the split modules.
      model_config: their sizes.
      special_ids: of the tokenizer.
      config: how to draw.
      dtype: of weights, activations and cache; None takes the policy's. Logits are float32.
    """

    def __init__(
        self, policy: nnx.GraphDef, understanding: nnx.GraphDef, model_config: JanusConfig,
        special_ids: SpecialIds, config: AnswerConfig, dtype: jnp.dtype | None = None,
    ) -> None:  # fmt: skip
        self.config, self.model_config, self.specials = config, model_config, special_ids
        self._understanding = understanding
        self._prepare = jax.jit(partial(prepare_params, policy, dtype=dtype))
        self._read = jax.jit(self._read_prompts)
        self._logits = jax.jit(self._prompt_logits)
        self._write = jax.jit(self._write_answers)

    def prepare(self, state: nnx.State) -> SamplingParams:
        """The policy's state, adapters folded in, as the loops read it."""
        return self._prepare(state)

    def __call__(
        self, params: SamplingParams, tower: nnx.State, prompts: PromptBatch,
        pixels_NHWC: jax.Array, keys_P: jax.Array,
    ) -> Answers:  # fmt: skip
        """Answer P prompts.

        Args:
          params: what `prepare` made.
          tower: state of the understanding side.
          prompts: ids with `tokens_per_image` placeholders for each image.
          pixels_NHWC: float32, the N images of all prompts in the order of their placeholders,
            as `images.preprocess` makes them.
          keys_P: a key for each prompt.

        Raises InputError if placeholders and images do not agree.
        """
        self._check(prompts, pixels_NHWC)
        captions, last_PD = self._read(params, tower, prompts, pixels_NHWC)[:2]
        return self._write(params, captions, last_PD, keys_P)

    def prompt_logits(
        self, params: SamplingParams, tower: nnx.State, prompts: PromptBatch,
        pixels_NHWC: jax.Array,
    ) -> jax.Array:  # fmt: skip
        """Text logits, float32 (P,C,V), at every position of the prompts."""
        self._check(prompts, pixels_NHWC)
        return self._logits(params, tower, prompts, pixels_NHWC)

    def _check(self, prompts: PromptBatch, pixels_NHWC: jax.Array) -> None:
        given = pixels_NHWC.shape[0] * tokens_per_image(self.model_config)
        held = int((prompts.ids_PC == self.specials.image).sum())
        if held != given:
            raise InputError(f"prompts hold {held} image tokens, their images give {given}")

    def _read_prompts(
        self, params: SamplingParams, tower: nnx.State, prompts: PromptBatch,
        pixels_NHWC: jax.Array,
    ) -> tuple[PromptCache, jax.Array, jax.Array]:  # fmt: skip
        """Prompts as cached captions, hidden (P,D) of their last tokens and (P,C,D) of all."""
        see = nnx.merge(self._understanding, tower)
        assert isinstance(see, Understanding)
        x = params.text_embed_VD[prompts.ids_PC]
        if pixels_NHWC.shape[0]:
            seen_ND = see(pixels_NHWC.astype(x.dtype)).reshape(-1, x.shape[-1])
            is_image = (prompts.ids_PC == self.specials.image).reshape(-1)
            nth = jnp.clip(jnp.cumsum(is_image) - 1, 0).reshape(prompts.ids_PC.shape)
            x = jnp.where(is_image.reshape(nth.shape)[..., None], seen_ND[nth], x)
        hidden, segment = prefill_embedded(params, self.model_config.decoder, x)
        last = jnp.take_along_axis(hidden, (prompts.len_P - 1)[:, None, None], axis=1)[:, 0]
        return PromptCache(segment, prompts.len_P), last, hidden

    def _prompt_logits(
        self, params: SamplingParams, tower: nnx.State, prompts: PromptBatch,
        pixels_NHWC: jax.Array,
    ) -> jax.Array:  # fmt: skip
        return text_logits(params, self._read_prompts(params, tower, prompts, pixels_NHWC)[2])

    def _write_answers(
        self, params: SamplingParams, captions: PromptCache, last_PD: jax.Array, keys_P: jax.Array
    ) -> Answers:
        greedy = self.config.temperature == 0
        decoder, rows = self.model_config.decoder, keys_P.shape[0]
        rules = PlanRules(
            decoder, TokenSamplingConfig(greedy), 1.0 if greedy else self.config.temperature,
            boi=self.specials.eos,  # the token that ends a row
        )  # fmt: skip
        T = self.config.max_tokens
        segment = empty_cache(decoder, rows, T, params.norm_D.dtype)
        state = start_plans(last_PD, rows, T, segment, self.specials.pad)
        state = run_plan_bucket(params, captions, keys_P, state, rules)
        ended = state.len_B > 0
        return Answers(state.ids_BT[:, :T], jnp.where(ended, state.len_B, state.step), ended)


def tokens_per_image(config: JanusConfig) -> int:
    """Vectors that the vision tower makes of one image, 576 in the released models."""
    return (config.siglip.image_size // config.siglip.patch_size) ** 2
