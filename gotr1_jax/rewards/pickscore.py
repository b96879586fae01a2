"""PickScore as a judge: human preference for an image, given its caption (arXiv 2305.01569).

yuvalkirstain/PickScore_v1 is a CLIP ViT-H/14 that was fine-tuned on choices between two images
(github.com/yuvalkirstain/PickScore). The score is the cosine times e to the logit scale, about
100: of real images about 16 to 26. A difference of 1 says that of two images people choose the
better one e times as often. `scale: 0.04` of a term brings it near [0, 1].
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

from gotr1_jax.convert.clip import ClipCheckpoint
from gotr1_jax.errors import InputError
from gotr1_jax.rewards.clip import ClipJudge


class PickScoreJudge(ClipJudge):
    """The cosine in the units of the model's own logits."""

    kind: ClassVar[str] = "pickscore"
    meaning: ClassVar[str] = "people would choose the image for its caption"

    def __init__(self, checkpoint: ClipCheckpoint, *args: Any, **kwargs: Any) -> None:
        """Arguments of `ClipJudge`; InputError for a checkpoint without a logit scale."""
        self._factor = _factor(checkpoint.logit_scale, checkpoint.source)
        super().__init__(checkpoint, *args, **kwargs)

    def score(self, cosine: float) -> float:
        """The logit."""
        return self._factor * cosine


def _factor(logit_scale: float | None, source: Path) -> float:
    if logit_scale is None:
        raise InputError(f"{source} holds no logit_scale; give PickScore_v1 or its like")
    if not 0 <= logit_scale <= math.log(1e4):
        raise InputError(f"{source}: logit_scale is {logit_scale:g}; PickScore's is about 4.6")
    return math.exp(logit_scale)
