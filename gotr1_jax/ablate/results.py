"""What the comparison of an ablation's runs says; ablation.json holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """A mean difference and its 95 % interval by a paired bootstrap, see
    `trainer.bootstrap.crossed_interval`."""

    mean: float
    low: float
    high: float


def full_title(condition: str, title: str) -> str:
    """A variant's title after that of its condition, where there is one."""
    return f"{condition}: {title}" if condition else title


@dataclass(frozen=True)
class TermResult:
    """Held-out means of a term before and after training.

    Attributes:
      gain: after against before.
      over_first: after against the first variant's after; None for the first itself, and where
        the evaluations differ.
    """

    before: float
    after: float
    gain: Change
    over_first: Change | None = None


@dataclass(frozen=True)
class VariantResult:
    """One variant, averaged over seeds; `minutes` of training a run, without evaluations.

    `condition` is the title of what it was trained under, empty without conditions.
    """

    name: str
    title: str
    seeds: tuple[int, ...]
    steps: int
    captions: int
    samples: int
    minutes: float
    terms: Mapping[str, TermResult]
    condition: str = ""


@dataclass(frozen=True)
class OrderingResult:
    """A claim under one condition.

    Attributes:
      difference: of `better` to `worse` by `term`; None where one of them is not trained there.
      seeds: those that both have.
    """

    name: str
    term: str
    better: str
    worse: str
    condition: str
    seeds: tuple[int, ...] = ()
    difference: Change | None = None

    @property
    def finding(self) -> str:
        """Whether the claim holds: by an interval that excludes 0."""
        if self.difference is None:
            return "–"
        if self.difference.low > 0:
            return "holds"
        return "does not hold" if self.difference.high < 0 else "not separated"


@dataclass(frozen=True)
class CheckResult:
    """Gains by a term of the judge that a variant is trained on, and by the term that checks it.

    Attributes:
      trained: whether the reward's total has the term.
      seeds: those that are finished.
      excess: by how much the judge's gain exceeds the check's.
    """

    condition: str
    title: str
    term: str
    check: str
    trained: bool
    seeds: tuple[int, ...]
    before: float
    after: float
    gain: Change
    check_before: float
    check_after: float
    check_gain: Change
    excess: Change

    @property
    def finding(self) -> str:
        """What the gain of the judge's score is worth."""
        if not self.gain.low > 0:
            return "the judge sees no gain"
        if self.check_gain.low > 0:
            return "both rise; the judge overstates" if self.excess.low > 0 else "both rise"
        if self.check_gain.high < 0:
            return "fooled: the check falls"
        # Of a check that is noisy alone nothing follows.
        return "fooled: the check does not rise" if self.excess.low > 0 else "not separated"


@dataclass(frozen=True)
class MetricResult:
    """A metric of training in the first and in the last tenth of the steps, a number a seed."""

    condition: str
    title: str
    name: str
    first: tuple[float, ...]
    last: tuple[float, ...]


@dataclass(frozen=True)
class AblationResult:
    """All that the finished runs say.

    Attributes:
      columns: terms that tables and plot show; empty: all.
      runs, finished: how many there are, and how many of them are compared.
      hours: that the finished runs took, evaluations and compilation included, each for itself;
        None where that is not known of all.
    """

    variants: Sequence[VariantResult]
    columns: Sequence[str] = ()
    orderings: Sequence[OrderingResult] = ()
    checks: Sequence[CheckResult] = ()
    metrics: Sequence[MetricResult] = ()
    runs: int = 0
    finished: int = 0
    hours: float | None = None
    at_once: int = 1
