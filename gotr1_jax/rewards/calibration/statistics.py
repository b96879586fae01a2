"""How well scores agree with labels: pure functions on float64 vectors without NaN.

A correlation of fewer than three pairs, or with a vector that is constant, is not defined: NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

RESAMPLES = 2000
LEAST = 3  # pairs of which a correlation is made
_FEW = 5  # captions; with fewer, single samples are drawn
Statistic = Callable[[np.ndarray, np.ndarray], float]


class Interval(NamedTuple):
    """A value and its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


class Bin(NamedTuple):
    """Samples whose scores are in [low, high), in the last bin [low, high]: number and means."""

    low: float
    high: float
    samples: int
    score: float
    label: float


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """The linear correlation of two vectors."""
    if len(x) < LEAST or is_constant(x) or is_constant(y):
        return math.nan
    # Scaled first: squares of very large or small values would leave the range of a float.
    a, b = ((v - v.mean()) / np.abs(v - v.mean()).max() for v in (_unit(x), _unit(y)))
    return float(np.clip(a @ b / math.sqrt((a @ a) * (b @ b)), -1, 1))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """The correlation of ranks; equal values share the mean of their ranks."""
    if len(x) < LEAST:
        return math.nan
    return pearson(rankdata(x), rankdata(y))


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """How often a positive sample has the higher score than a negative one; ties count half.

    NaN where all are positive or none is.
    """
    positive = np.asarray(positive, bool)
    count = int(positive.sum())
    others = len(scores) - count
    if not count or not others:
        return math.nan
    above = rankdata(scores)[positive].sum() - count * (count + 1) / 2
    return float(above / (count * others))


def partial_correlation(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """The linear correlation of x and y with what a line in `given` explains taken from both.

    NaN also for fewer than four samples, and where the line leaves nothing of one of the two.
    """
    if len(x) < LEAST + 1:
        return math.nan
    return pearson(_residuals(x, given), _residuals(y, given))


def reliability(scores: np.ndarray, labels: np.ndarray, bins: int = 10) -> list[Bin]:
    """The bins with samples, of equal width over [0, 1], or over the scores where these leave it.

    The labels of a calibrated judge have in each bin the mean of its scores.
    """
    if not len(scores):
        return []
    low, high = min(0.0, float(scores.min())), max(1.0, float(scores.max()))
    edges = np.linspace(low, high, bins + 1)
    place = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, bins - 1)
    found = []
    for i in range(bins):
        here = place == i
        if here.any():
            means = float(scores[here].mean()), float(labels[here].mean())
            found.append(Bin(float(edges[i]), float(edges[i + 1]), int(here.sum()), *means))
    return found


def calibration_error(bins: Sequence[Bin]) -> float:
    """The mean over all samples of |mean score - mean label| of their bin; NaN without bins."""
    total = sum(b.samples for b in bins)
    return sum(b.samples * abs(b.score - b.label) for b in bins) / total if total else math.nan


def less_group_means(x: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Each value less the mean of its group, 0 where that is what rounding leaves."""
    _, place = np.unique(np.asarray(groups, str), return_inverse=True)
    left = x - (np.bincount(place, x) / np.bincount(place))[place]
    return np.where(np.abs(left) <= 1e-12 * np.abs(x).max(initial=0.0), 0.0, left)


def with_interval(
    statistic: Statistic, x: np.ndarray, y: np.ndarray, groups: Sequence[object]
) -> Interval:
    """A statistic of two vectors and its 95 % bootstrap interval, seed 0.

    Whole groups are drawn, as samples of one caption are alike; single samples where there are
    fewer than five groups. Resamples of which the statistic is not defined are left out; the
    interval is NaN where these are more than half.
    """
    value = statistic(x, y)
    if math.isnan(value):
        return Interval(math.nan, math.nan, math.nan)
    members: dict[object, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    units = [np.asarray(m) for m in members.values()]
    if len(units) < _FEW:
        units = [np.asarray([i]) for i in range(len(x))]
    rng = np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([units[i] for i in rng.integers(0, len(units), len(units))])
        found.append(statistic(x[drawn], y[drawn]))
    defined = [v for v in found if not math.isnan(v)]
    if len(defined) < RESAMPLES / 2:
        return Interval(value, math.nan, math.nan)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def agreement(repeats: np.ndarray) -> tuple[float, float]:
    """Of R >= 2 answers to each of N samples, (R, N), NaN where none: the share of all pairs of
    answers to the same sample that are equal, and the mean standard deviation (population) of
    the answers to one sample, over those with two or more.

    Two NaN are equal. NaN for fewer than two answers or no sample; the deviation also where no
    sample has two scores.
    """
    rounds, samples = repeats.shape
    if rounds < 2 or not samples:
        return math.nan, math.nan
    same = [
        (repeats[i] == repeats[j]) | (np.isnan(repeats[i]) & np.isnan(repeats[j]))
        for i in range(rounds)
        for j in range(i + 1, rounds)
    ]
    several = (~np.isnan(repeats)).sum(axis=0) >= 2
    spread = np.nanstd(repeats[:, several], axis=0).mean() if several.any() else math.nan
    return float(np.mean(same)), float(spread)


def is_constant(x: np.ndarray) -> bool:
    """Whether all values are equal, up to what rounding leaves of a difference."""
    return not len(x) or float(np.ptp(x)) <= 1e-12 * float(np.abs(x).max())


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.abs(x).max()


def _residuals(x: np.ndarray, given: np.ndarray) -> np.ndarray:
    """What a line in `given` leaves of x: exact zeros where that is the rounding of float32."""
    left = x - x.mean()
    if not is_constant(given):
        known = given - given.mean()
        left = left - known * (known @ left) / (known @ known)
    return np.zeros_like(left) if np.abs(left).max() <= 1e-6 * max(np.ptp(x), 1e-300) else left
