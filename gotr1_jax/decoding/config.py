"""How tokens are sampled and scored. Imports no jax: a wrong setting is refused at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gotr1_jax.errors import InputError

LogpMode = Literal["guided", "guided_detach", "conditional"]


@dataclass(frozen=True)
class LogpSettings:
    """What a log-probability means; part of a rollout, whose tokens are scored at the same values.

    Attributes:
      mode: `guided` scores image tokens under the guided distribution and differentiates both
        branches; `guided_detach` has the same values, the unconditional branch being a constant;
        `conditional` leaves guidance out.
      guidance: w in uncond + w (cond - uncond); 1 needs no unconditional branch.
      text_temperature, image_temperature: logits are divided by them, greater than 0.
    """

    mode: LogpMode = "guided"
    guidance: float = 5.0
    text_temperature: float = 1.0
    image_temperature: float = 1.0

    @property
    def needs_unconditional(self) -> bool:
        """Whether image tokens are scored with both branches."""
        return self.mode != "conditional" and self.guidance != 1.0


@dataclass(frozen=True)
class TokenSamplingConfig:
    """How a token is sampled.

    Attributes:
      greedy: take the most likely token; top_k and top_p then have no effect.
      top_k: sample among the k most likely tokens (and those tied with the last); 0 means all.
      top_p: sample among the smallest set of tokens whose probability reaches p; 1 means all.
    """

    greedy: bool = False
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}; give 0 (all tokens) or a positive number")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p is {self.top_p}; give a number in (0, 1], 1 for all tokens")
