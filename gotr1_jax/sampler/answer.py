"""Answers to prompts with images: the understanding side of the policy.

The vision tower's output vectors replace the placeholder tokens of the images. Then the plan loop
runs with EOS as its end token. One compiled program for the prefill, one for the decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from gotr1_jax.decoding.config import TokenSamplingConfig
from gotr1_jax.decoding.forward import prefill, text_logits
from gotr1_jax.decoding.kv_cache import empty_cache
from gotr1_jax.errors import InputError
from gotr1_jax.models.config import JanusConfig
from gotr1_jax.models.siglip import JanusUnderstanding
from gotr1_jax.sampler.config import AnswerConfig
from gotr1_jax.sampler.plan_loop import PlanLoopConfig, PromptCache, run_plan_bucket, start_plans
from gotr1_jax.sampler.policy_weights import PolicyWeights, prepare_policy_weights
from gotr1_jax.sampler.token_batch import PromptBatch
from gotr1_jax.tokenizers.janus import SpecialIds


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Answers:
    """Answers to P prompts.

    Attributes:
      ids_PT: int32 tokens, T = max_tokens; EOS last unless truncated, then pads.
      len_P: int32 tokens of each answer, EOS included.
      ended_P: False where the answer was truncated at `max_tokens`.
    """

    ids_PT: jax.Array
    len_P: jax.Array
    ended_P: jax.Array


class AnswerSampler:
    """Compiled answering with one policy and its vision tower; build it once.

    Args:
      policy, understanding: graphdefs of the split modules.
      model_config: their sizes.
      special_ids: of the tokenizer.
      config: sampling settings.
    """

    def __init__(
        self, policy: nnx.GraphDef, understanding: nnx.GraphDef, model_config: JanusConfig,
        special_ids: SpecialIds, config: AnswerConfig,
    ) -> None:  # fmt: skip
        self.config, self.model_config, self.specials = config, model_config, special_ids
        self._understanding = understanding
        self._prepare = jax.jit(partial(prepare_policy_weights, policy, dtype=None))
        self._prefill = jax.jit(self._prefill_prompts)
        self._logits = jax.jit(self._prompt_logits)
        self._decode = jax.jit(self._decode_answers)

    def prepare(self, state: nnx.State) -> PolicyWeights:
        """Decode weights of the policy's state."""
        return self._prepare(state)

    def __call__(
        self, params: PolicyWeights, tower: nnx.State, prompts: PromptBatch,
        pixels_NHWC: jax.Array, keys_P: jax.Array,
    ) -> Answers:  # fmt: skip
        """Answer P prompts.

        Args:
          params: from `prepare`.
          tower: state of the understanding side.
          prompts: ids with `SiglipConfig.num_tokens` placeholders for each image.
          pixels_NHWC: float32, preprocessed, the N images of all prompts in the order of their
            placeholders.
          keys_P: a key per prompt.

        Raises InputError if the numbers of placeholders and images do not agree.
        """
        self._check(prompts, pixels_NHWC)
        cached, last_PD = self._prefill(params, tower, prompts, pixels_NHWC)[:2]
        return self._decode(params, cached, last_PD, keys_P)

    def prompt_logits(
        self, params: PolicyWeights, tower: nnx.State, prompts: PromptBatch,
        pixels_NHWC: jax.Array,
    ) -> jax.Array:  # fmt: skip
        """Text logits, float32 (P,C,V), at every position of the prompts."""
        self._check(prompts, pixels_NHWC)
        return self._logits(params, tower, prompts, pixels_NHWC)

    def _check(self, prompts: PromptBatch, pixels_NHWC: jax.Array) -> None:
        given = pixels_NHWC.shape[0] * self.model_config.siglip.num_tokens
        expected = int((prompts.ids_PC == self.specials.image).sum())
        if expected != given:
            raise InputError(f"prompts hold {expected} image tokens, their images give {given}")

    def _prefill_prompts(
        self, params: PolicyWeights, tower: nnx.State, prompts: PromptBatch,
        pixels_NHWC: jax.Array,
    ) -> tuple[PromptCache, jax.Array, jax.Array]:  # fmt: skip
        """The prompts' cache, hidden states (P,D) of their last tokens and (P,C,D) of all."""
        understanding = nnx.merge(self._understanding, tower)
        assert isinstance(understanding, JanusUnderstanding)
        x = params.text_embed_VD[prompts.ids_PC]
        if pixels_NHWC.shape[0]:
            vectors_ND = understanding(pixels_NHWC.astype(x.dtype)).reshape(-1, x.shape[-1])
            is_image = (prompts.ids_PC == self.specials.image).reshape(-1)
            nth = jnp.clip(jnp.cumsum(is_image) - 1, 0).reshape(prompts.ids_PC.shape)
            x = jnp.where(is_image.reshape(nth.shape)[..., None], vectors_ND[nth], x)
        hidden, cache = prefill(params, self.model_config.decoder, x)
        last = jnp.take_along_axis(hidden, (prompts.len_P - 1)[:, None, None], axis=1)[:, 0]
        return PromptCache(cache, prompts.len_P), last, hidden

    def _prompt_logits(
        self, params: PolicyWeights, tower: nnx.State, prompts: PromptBatch,
        pixels_NHWC: jax.Array,
    ) -> jax.Array:  # fmt: skip
        return text_logits(params, self._prefill_prompts(params, tower, prompts, pixels_NHWC)[2])

    def _decode_answers(
        self, params: PolicyWeights, prompts: PromptCache, last_PD: jax.Array, keys_P: jax.Array
    ) -> Answers:
        greedy = self.config.temperature == 0
        temperature = 1.0 if greedy else self.config.temperature
        decoder, rows, T = self.model_config.decoder, keys_P.shape[0], self.config.max_tokens
        loop = PlanLoopConfig(
            decoder, TokenSamplingConfig(greedy), temperature, end=self.specials.eos
        )
        cache = empty_cache(decoder, rows, T, params.norm_D.dtype)
        state = start_plans(last_PD, rows, T, cache, self.specials.pad)
        state = run_plan_bucket(params, prompts, keys_P, state, loop)
        ended = state.len_B > 0
        return Answers(state.ids_BT[:, :T], jnp.where(ended, state.len_B, state.step), ended)
