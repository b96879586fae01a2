"""How plans, images and answers are sampled. The only place that checks these values; no jax."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gotr1_jax.decoding.config import LogpSettings, TokenSamplingConfig
from gotr1_jax.errors import InputError


@dataclass(frozen=True)
class SamplerConfig:
    """How plans and images are sampled.

    Attributes:
      max_plan_tokens: plan tokens at most, 1 or more; after so many BOI is forced.
      guidance: w in uncond + w (cond - uncond) for the image; 1: no unconditional branch.
      text_temperature, image_temperature: divide the logits, greater than 0.
      top_k, top_p: see `TokenSamplingConfig`; both phases.
      greedy: take the most likely token in both phases.
      plan_bucket, image_bucket: tokens of one compiled loop, and by how much the cache grows.
        Small ones read less memory, large ones compile fewer programs.
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
        """How one token is sampled."""
        return TokenSamplingConfig(self.greedy, self.top_k, self.top_p)

    @property
    def logp_settings(self) -> LogpSettings:
        """What the recorded log-probabilities mean."""
        return LogpSettings("guided", self.guidance, self.text_temperature, self.image_temperature)


@dataclass(frozen=True)
class AnswerConfig:
    """How an answer is sampled.

    Attributes:
      max_tokens: longest answer, EOS included.
      temperature: divides the logits; 0: greedy.
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
