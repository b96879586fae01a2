"""CLIPScore as a judge: how well an image and its caption fit (arXiv 2104.08718, section 3).

2.5 · max(cosine, 0) of a CLIP, with "A photo depicts" before every caption, as there. The paper
uses OpenAI's ViT-B/32; openai/clip-vit-large-patch14 is the other usual one, and values of two
CLIPs do not compare. Cosines hardly exceed .4, so that values lie between 0 and about 1.
"""

from __future__ import annotations

from typing import ClassVar

from gotr1_jax.rewards.clip import ClipJudge

_WEIGHT = 2.5


class ClipScoreJudge(ClipJudge):
    """The cosine, stretched; a negative one scores 0."""

    kind: ClassVar[str] = "clipscore"
    meaning: ClassVar[str] = "the image fits the caption, by CLIP"
    prefix: ClassVar[str] = "A photo depicts "

    def score(self, cosine: float) -> float:
        """2.5 times the cosine, at least 0."""
        return _WEIGHT * max(cosine, 0.0)
