"""HPS v2.1 as a judge: human preference for an image, given its caption.

The score is the cosine of the image's and the caption's vectors (arXiv 2306.09341,
github.com/tgxs002/HPSv2), without the model's scale; of real images it lies about .20 to .31.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from gotr1_jax.images.clip import clip_pixels
from gotr1_jax.rewards.clip import ClipJudge


class HpsJudge(ClipJudge):
    """The cosine itself, of the whole image on a black square; a negative one scores 0."""

    kind: ClassVar[str] = "hps"
    meaning: ClassVar[str] = "people would prefer the image"
    activation: ClassVar[str] = "gelu"

    def pixels(self, image: np.ndarray, size: int) -> np.ndarray:
        """The whole image: a preference must not miss what stands at an edge."""
        return clip_pixels(image, size)

    def score(self, cosine: float) -> float:
        """The cosine, at least 0."""
        return max(cosine, 0.0)
