"""Sampling settings of plans, images and answers, and their validation. Imports no jax."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gotr1_jax.decoding.config import LogpConfig, LogpMode, TokenSamplingConfig
from gotr1_jax.errors import InputError


@dataclass(frozen=True)
class SamplerConfig:
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
    """

    max_plan_tokens: int = 600
    guidance: float = 5.0
    text_temperature: float = 1.0
    image_temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    greedy: bool = False
    logp_mode: LogpMode = "guided"
    plan_bucket: int = 128
    image_bucket: int = 96

    def __post_init__(self) -> None:
        for name in ("max_plan_tokens", "plan_bucket", "image_bucket"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("text_temperature", "image_temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(
                    f"{name} is {getattr(self, name)}; it must be above 0, and finite (for the "
                    "most likely token set greedy)"
                )
        if not math.isfinite(self.guidance):
            raise InputError(f"guidance is {self.guidance}; give a finite number, 1 for none")
        _ = self.token_sampling  # checks top_k and top_p

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


@dataclass(frozen=True)
class AnswerConfig:
    """How an answer is sampled.

    Attributes:
      max_tokens: maximum length of an answer, EOS included.
      temperature: divisor of the logits; 0: greedy.
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
