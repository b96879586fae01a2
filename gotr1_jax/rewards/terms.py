"""The terms of a reward: a name of the user's own, where its score comes from, and its weight."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from gotr1_jax.config import CheckedConfig, to_plain
from gotr1_jax.errors import ConfigError
from gotr1_jax.limits import FilledText, Range
from gotr1_jax.rewards.expression import FUNCTIONS
from gotr1_jax.rewards.own_function import HOW_TO_NAME, is_function_name
from gotr1_jax.rewards.pairwise import PairwiseConfig
from gotr1_jax.rewards.published import RULES
from gotr1_jax.rewards.scorer_configs import (
    ClipScorerConfig,
    ExactScorerConfig,
    RewardServerConfig,
)
from gotr1_jax.rewards.soft_tifa import SoftTifaConfig

# Names with a meaning of their own, in totals or in files of scores.
RESERVED = (*RULES, *FUNCTIONS, "total", "measured_under", "watched", "diversity")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
Factor = Annotated[float, Range("[-1e6, 1e6]")]
Bound = Annotated[float, Range("(-inf, inf)")]
# The one judge that the sections `judge` and `judge.also` describe.
MAIN = "main"
# What a term judges.
Stage = Literal["plan", "image", "both"]
BOTH: Stage = "both"


@dataclass(frozen=True)
class TermConfig(CheckedConfig):
    """One term. Exactly one source gives its score; without any it is `judge: main`."""

    # Every field but these is a source.
    SETTINGS: ClassVar[tuple[str, ...]] = ("weight", "scale", "clip", "meaning", "stage")

    # Sources that earlier versions did not know.
    _LATER: ClassVar[tuple[str, ...]] = ("soft_tifa",)

    # main: the judge of the sections judge and judge.also.
    judge: Literal["main"] | None = None
    # A function of one's own, file.py:function or module:function; see docs/rewards.md.
    python: FilledText | None = None
    # A reward server; see docs/reward_server.md.
    http: RewardServerConfig | None = None
    # HPS v2.1 in this process: which image people prefer.
    hps: ClipScorerConfig | None = None
    # PickScore in this process: which image people prefer.
    pickscore: ClipScorerConfig | None = None
    # CLIPScore in this process: how well caption and image fit.
    clipscore: ClipScorerConfig | None = None
    shapes: ExactScorerConfig | None = None
    # How often the sample is better than the others of its caption.
    pairwise: PairwiseConfig | None = None
    # How sure the main judge is of the right answers to questions about the caption.
    soft_tifa: SoftTifaConfig | None = None
    # A name in `reward.total` stands for weight * clip(scale * score): the factor of the whole.
    weight: Factor = 1.0
    # The factor of the score, before it is clipped.
    scale: Factor = 1.0
    # [low, high] that scale * score is held within; null: any finite value.
    clip: tuple[Bound, ...] | None = None
    # One line for reports and tables; empty: what the judge says of the term.
    meaning: str = ""
    # Whose tokens learn from it with advantage.scope segment: the plan's, the image's or both.
    # null: as the source says; both for a function of one's own.
    stage: Stage | None = None

    def __post_init__(self) -> None:
        if not self._given:
            object.__setattr__(self, "judge", MAIN)
        super().__post_init__()

    @property
    def _given(self) -> list[str]:
        names = [f.name for f in fields(self) if f.name not in self.SETTINGS]
        return [name for name in names if getattr(self, name) is not None]

    @property
    def source(self) -> str:
        """The name of the field that gives the score: judge, python, ..."""
        return self._given[0]

    def check(self) -> None:
        """One source, a function's name, and a clip that is an interval."""
        if len(self._given) > 1:
            raise ConfigError(
                f"{self._given[1]} is a second source beside {self._given[0]}; give one of them"
            )
        if self.python is not None and not is_function_name(self.python):
            raise ConfigError(f"python is {self.python!r}, which names no function; {HOW_TO_NAME}")
        if self.clip is not None and (len(self.clip) != 2 or self.clip[0] > self.clip[1]):
            raise ConfigError(f"clip is {list(self.clip)}; expected [low, high]")

    def described(self) -> dict[str, Any]:
        """All settings as plain values, as earlier versions say them of what they knew: a source
        that came later stands there only where it is given."""
        plain: dict[str, Any] = to_plain(self)
        return {k: v for k, v in plain.items() if v is not None or k not in self._LATER}

    def value(self, scores: np.ndarray) -> np.ndarray:
        """weight * clip(scale * scores), float64; NaN stays NaN."""
        values = np.asarray(scores, np.float64) * self.scale
        if self.clip is not None:
            values = np.clip(values, self.clip[0], self.clip[1])
        return values * self.weight


def check_names(names: Collection[Any]) -> None:
    """ConfigError, beginning with the name in quotes, for one that cannot be a term's."""
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"{str(name)[:80]!r}, which is no name of a term; use letters, digits and _ (64 at "
                "most, a letter first)"
            )
        if name in RESERVED:
            raise ConfigError(f"{name!r}, which cannot name a term: it has a meaning of its own")


def check_sources(terms: Mapping[str, TermConfig], scored: Collection[str], samples: int) -> None:
    """ConfigError for a term without a source that gives it, or that cannot be evaluated.

    Args:
        terms: of a reward. scored: what the configured judges score.
        samples: `evaluation.samples` of a caption; a term that compares them needs two.
    """
    for term, settings in terms.items():
        if settings.source == "judge" and term not in scored:
            raise ConfigError(
                f"reward.terms holds {term!r}, but the judge gives {', '.join(scored)}; add a "
                "judge for it (judge.also), give it a source (python, ...) or leave it out"
            )
        if settings.pairwise is not None and samples < 2:
            raise ConfigError(
                f"evaluation.samples is {samples}, and reward.terms.{term}.pairwise compares the "
                "samples of a caption; use 2 or more"
            )


def as_terms(terms: Mapping[str, TermConfig] | Collection[str]) -> dict[str, TermConfig]:
    """Terms with their settings; names alone are terms of the main judge."""
    if isinstance(terms, Mapping):
        return dict(terms)
    return {name: TermConfig() for name in terms}
