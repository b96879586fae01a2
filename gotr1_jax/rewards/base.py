"""What a judge is asked and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from gotr1_jax.plan import Box, Plan

# sem: caption against plan text; spa: caption against planned boxes; ri: plan against image;
# pi: caption against image; hps: human preference (GoT-R1, arXiv 2505.17022, section 3).
# verdict: caption against image, 0 or 1 (ReasonGen-R1, arXiv 2505.24875).
TERMS = ("sem", "spa", "ri", "pi", "hps", "verdict")


@dataclass(frozen=True)
class JudgeRequest:
    """One sample to be judged: its caption, its plan, and its image, uint8 (H, W, 3) RGB."""

    caption: str
    plan: Plan
    image: np.ndarray


@dataclass(frozen=True)
class JudgeResult:
    """A judge's answer to one request.

    Attributes:
        scores: a value in [0, 1] for each of the judge's terms; NaN where it cannot tell.
        located: (name, box) of the objects it found in the image.
        words: its reasons, one line.
        said: where the judge is a model, its own words for each term, as it wrote them.
    """

    scores: Mapping[str, float]
    located: tuple[tuple[str, Box], ...] = ()
    words: str = ""
    said: Mapping[str, str] = field(default_factory=dict)


class Judge(Protocol):
    """Anything that scores samples.

    `terms` are the names it scores, out of `TERMS`. `identity` is all that its scores depend on
    besides the sample, as text: equal identities judge equally.
    """

    @property
    def terms(self) -> tuple[str, ...]: ...

    @property
    def identity(self) -> str: ...

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        """One result for each request, in their order."""
        ...


def stack_scores(results: Sequence[JudgeResult], terms: Sequence[str]) -> dict[str, np.ndarray]:
    """The scores of B results as one float32 (B,) for each term; NaN where one is missing."""
    nan = float("nan")
    return {t: np.array([r.scores.get(t, nan) for r in results], np.float32) for t in terms}
