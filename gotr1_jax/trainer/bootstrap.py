"""Bootstrap confidence intervals of means."""

from __future__ import annotations

import numpy as np

RESAMPLES = 10_000
_DRAWN_AT_ONCE = 2**22  # of a bootstrap's values, to bound its memory


def gain_interval(
    before: np.ndarray, after: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % interval of the mean of after - before by a paired bootstrap over captions.

    Captions that could not be told in either are left out.
    """
    gain = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    return mean_interval(gain, seed=seed, resamples=resamples)


def mean_interval(
    values: np.ndarray,
    counts: np.ndarray | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """95 % interval of a mean by the bootstrap; (NaN, NaN) where there is no value.

    Args:
      values: float (N,), one a unit that is drawn whole; NaN (could not be told) is left out.
      counts: None: each unit is one value. Else `values` are sums over so many values each, and
        the mean is over all of those: units are then clusters, like the questions on one image.
    """
    values = np.asarray(values, np.float64)
    told = np.isfinite(values)
    values = values[told]
    if not len(values):
        return float("nan"), float("nan")
    sizes = np.ones(len(values)) if counts is None else np.asarray(counts, np.float64)[told]
    rng = np.random.default_rng(seed)
    means = []
    rows = max(1, _DRAWN_AT_ONCE // len(values))
    for start in range(0, resamples, rows):
        drawn = rng.integers(0, len(values), (min(rows, resamples - start), len(values)))
        means.append(values[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)
