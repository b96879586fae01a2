"""Settings of token sampling and of log-probabilities. Imports no jax, so that checks are fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gotr1_jax.config import CheckedConfig
from gotr1_jax.limits import Guidance, Temperature, TopK, TopP

LogpMode = Literal["guided", "guided_detach", "conditional"]
CacheDtype = Literal["auto", "int8"]
"""Of a KV cache. auto: that of the activations; int8: with a scale a head and slot."""


@dataclass(frozen=True)
class LogpConfig(CheckedConfig):
    """Definition of a log-probability; stored in a rollout, for teacher forcing at equal settings.

    Attributes:
      mode: `guided` scores image tokens under the guided distribution and differentiates both
        branches; `guided_detach` gives the same values with a stop-gradient on the unconditional
        branch; `conditional` uses no guidance.
      guidance: w in uncond + w (cond - uncond); 1 needs no unconditional branch.
      text_temperature, image_temperature: divisors of the logits, greater than 0.
    """

    mode: LogpMode = "guided"
    guidance: Guidance = 5.0
    text_temperature: Temperature = 1.0
    image_temperature: Temperature = 1.0

    @property
    def needs_unconditional(self) -> bool:
        """Whether image tokens are scored with both branches."""
        return self.mode != "conditional" and self.guidance != 1.0


@dataclass(frozen=True)
class TokenSamplingConfig(CheckedConfig):
    """How a token is sampled.

    Attributes:
      greedy: take the most likely token and ignore top_k and top_p.
      top_k: sample among the k most likely tokens (and ties with the last one); 0: all.
      top_p: sample among the smallest set of tokens with total probability p or more; 1: all.
    """

    greedy: bool = False
    top_k: TopK = 0
    top_p: TopP = 1.0
