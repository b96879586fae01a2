"""Sampling settings of plans, images and answers, and their validation. Imports no jax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from gotr1_jax.config import CheckedConfig
from gotr1_jax.convert.generation_config import GenerationConfig
from gotr1_jax.decoding.config import CacheDtype, LogpConfig, LogpMode, TokenSamplingConfig
from gotr1_jax.errors import InputError
from gotr1_jax.limits import (
    DraftWindow,
    Guidance,
    Temperature,
    TemperatureOrGreedy,
    TokenCount,
    TopK,
    TopP,
)
from gotr1_jax.tokenizers.janus import GOTR1_TEMPLATE


@dataclass(frozen=True)
class SamplerConfig(CheckedConfig):
    """How plans and images are sampled.

    Attributes:
      max_plan_tokens: maximum length of a plan, 1 or more; then BOI is forced.
      guidance: w in uncond + w (cond - uncond) for the image; 1: no unconditional branch.
      text_temperature, image_temperature: divisors of the logits, greater than 0.
      greedy, top_k, top_p: see `TokenSamplingConfig`; for plan and image.
      logp_mode: as `LogpConfig.mode`. With `conditional` and guidance the image's conditional
        log-probabilities are recorded too.
      plan_bucket, image_bucket: tokens per compiled loop, by which the cache grows. Small buckets
        read less memory, large ones compile fewer programs.
      speculative: positions of the image that one forward pass computes, W, at most the image's
        tokens (`speculative_loop`): the same samples in fewer passes, each of W tokens a row; for
        a few rows on an accelerator. 0: one. The image's cache then has its full size at once.
      cache_dtype: of the KV cache. auto: the activations'; int8: integers with a scale for each
        head and slot, about half the bytes of bfloat16; keys and values are then rounded.
    """

    max_plan_tokens: TokenCount = 600
    guidance: Guidance = 5.0
    text_temperature: Temperature = 1.0
    image_temperature: Temperature = 1.0
    top_k: TopK = 0
    top_p: TopP = 1.0
    greedy: bool = False
    logp_mode: LogpMode = "guided"
    plan_bucket: TokenCount = 128
    image_bucket: TokenCount = 96
    speculative: DraftWindow = 0
    cache_dtype: CacheDtype = "auto"

    @classmethod
    def of(cls, settings: GenerationConfig) -> Self:
        """The stated `settings`, defaults for the others; a template is no part of it."""
        return cls(**{name: v for name, v in settings.stated.items() if name != "template"})

    def check_window(self, image_tokens: int) -> None:
        """InputError for a window longer than an image."""
        if self.speculative > image_tokens:
            raise InputError(
                f"speculative is {self.speculative}, and an image has {image_tokens} tokens; use a "
                "shorter window"
            )

    @property
    def branches(self) -> int:
        """2 with guidance, else 1."""
        return 1 if self.guidance == 1.0 else 2

    @property
    def token_sampling(self) -> TokenSamplingConfig:
        """The settings of `sample_token`."""
        return TokenSamplingConfig(self.greedy, self.top_k, self.top_p)

    @property
    def logp_settings(self) -> LogpConfig:
        """The definition of the recorded log-probabilities."""
        return LogpConfig(
            self.logp_mode, self.guidance, self.text_temperature, self.image_temperature
        )

    @property
    def records_conditional(self) -> bool:
        """Whether image tokens are sampled with guidance and scored without."""
        return self.logp_mode == "conditional" and self.guidance != 1.0


def sampling_defaults(*names: str, **others: Any) -> GenerationConfig:
    """The built-in values of the named fields of `GenerationConfig`, and `others`."""
    known = {**vars(SamplerConfig()), "template": GOTR1_TEMPLATE}
    return GenerationConfig(**{name: known[name] for name in names} | others)


@dataclass(frozen=True)
class AnswerConfig(CheckedConfig):
    """How an answer is sampled.

    Attributes:
      max_tokens: maximum length of an answer, EOS included.
      temperature: divisor of the logits; 0: greedy.
    """

    max_tokens: TokenCount = 512
    temperature: TemperatureOrGreedy = 0.0
