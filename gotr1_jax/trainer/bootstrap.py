"""Bootstrap confidence intervals of means: percentiles of resampled means, seed 0.

Not `scipy.stats.bootstrap`: it draws the same resamples, but its percentiles differ in the last
digit from those of earlier runs, and it refuses a single value.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
_CHUNK = 2**22  # drawn values in memory at once


def gain_interval(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of after - before by a paired bootstrap over captions.

    Captions that could not be scored in either are left out.
    """
    gain = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    return mean_interval(gain)


def mean_interval(values: np.ndarray, counts: np.ndarray | None = None) -> tuple[float, float]:
    """95 % interval of a mean by the bootstrap; (NaN, NaN) where there is no value.

    Args:
      values: float (N,), one for each unit that is resampled; NaN (could not be scored) is out.
      counts: None: each unit is one value. Else `values` are sums over so many values each, and
        the mean is over all of those: units are then clusters, like the questions on one image.
    """
    values = np.asarray(values, np.float64)
    sizes = np.ones(len(values)) if counts is None else np.asarray(counts, np.float64)
    known = np.isfinite(values)
    if not known.any():
        return float("nan"), float("nan")
    return _interval(_resampled_means(values[known], sizes[known], np.random.default_rng(0)))


def mean_of_means_interval(groups: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """(mean, low, high): the mean of the groups' means and its 95 % bootstrap interval.

    Values are drawn with replacement within each group. NaN values are left out; all three are NaN
    where a group has nothing left.
    """
    known = [g[np.isfinite(g)] for g in (np.asarray(group, np.float64) for group in groups)]
    if not known or not all(map(len, known)):
        return float("nan"), float("nan"), float("nan")
    rng = np.random.default_rng(0)
    means = [_resampled_means(g, np.ones(len(g)), rng) for g in known]
    mean = float(np.mean([group.mean() for group in known]))
    return mean, *_interval(np.mean(means, axis=0))


def crossed_interval(values_SP: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean over S runs (seeds) of the same P captions, both drawn anew.

    A resample draws P captions and, for all of them alike, S - 1 of the S runs, each with
    replacement: of so few runs S draws would understate how much training differs (Rao and Wu,
    Journal of the American Statistical Association 83, 1988). Of one run captions are drawn alone.

    Args:
      values_SP: float (S, P). Captions that a run could not score (NaN) are left out of all runs.
    """
    values_SP = np.asarray(values_SP, np.float64)
    known_SP = values_SP[:, np.isfinite(values_SP).all(axis=0)]
    runs, captions = known_SP.shape
    if runs == 1 or not captions:
        return mean_interval(known_SP[0])
    rng, means = np.random.default_rng(0), []
    rows = max(1, _CHUNK // (captions * runs))
    for start in range(0, RESAMPLES, rows):
        count = min(rows, RESAMPLES - start)
        drawn_RP = known_SP[rng.integers(0, runs, (count, runs - 1))].mean(axis=1)
        places_RP = rng.integers(0, captions, (count, captions))
        means.append(np.take_along_axis(drawn_RP, places_RP, axis=1).mean(axis=1))
    return _interval(np.concatenate(means))


def _resampled_means(values: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float64 (RESAMPLES,): the mean of each resample."""
    means = []
    rows = max(1, _CHUNK // len(values))
    for start in range(0, RESAMPLES, rows):
        drawn = rng.integers(0, len(values), (min(rows, RESAMPLES - start), len(values)))
        means.append(values[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    return np.concatenate(means)


def _interval(means: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
