"""Pairs of samples, which of the two is better, and win rates: pure functions on numbers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

Pair = tuple[int, int]


class PairComparison(NamedTuple):
    """How likely the first sample of a pair is the better one: 1, 0, 0.5 for a tie, or between.

    `forward` with the first sample shown first, `backward` with it shown second; NaN where an
    answer could not be read. `texts` are the answers in these orders.
    """

    forward: float
    backward: float
    texts: tuple[str, str] = ("", "")

    @property
    def value(self) -> float:
        """The mean of both orders, in which a preference for a place cancels.

        A tie or an unreadable answer in one order leaves the other one alone; NaN without any.
        """
        known = [p for p in (self.forward, self.backward) if not math.isnan(p)]
        decided = [p for p in known if p != 0.5]
        counted = decided or known
        return sum(counted) / len(counted) if counted else math.nan


def draw_pairs(size: int, opponents: int, key: str) -> list[Pair]:
    """Pairs of places 0..size-1, each pair once and in ascending order.

    With `opponents` 0, or where it is no less than the number of others, these are all pairs.
    Else each place is in exactly `opponents` pairs, in one more where both numbers are odd: the
    places are put on a ring in an order that depends on `key` alone, and each meets the nearest
    on either side and, for an odd number, the one opposite.
    """
    if not opponents or opponents >= size - 1:
        return [(i, j) for i in range(size) for j in range(i + 1, size)]
    seed = int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    ring = np.random.default_rng(seed).permutation(size).tolist()
    distances = [*range(1, opponents // 2 + 1)]
    if opponents % 2:
        distances.append(size // 2 if size % 2 == 0 else opponents // 2 + 1)
    met = {tuple(sorted((ring[i], ring[(i + d) % size]))) for i in range(size) for d in distances}
    return sorted((i, j) for i, j in met)


def win_rates(size: int, pairs: Sequence[Pair], values: Iterable[float]) -> np.ndarray:
    """The mean over each sample's comparisons of how likely it is the better one.

    Args:
        size: number of samples.
        pairs: the compared places.
        values: for each pair how likely its first sample is the better one; NaN: not compared.

    Returns:
        float64 (size,) in [0, 1]; NaN for a sample without any comparison.
    """
    won, met = np.zeros(size), np.zeros(size)
    for (i, j), value in zip(pairs, values, strict=True):
        if not math.isnan(value):
            won[i], won[j] = won[i] + value, won[j] + 1 - value
            met[[i, j]] += 1
    return np.where(met > 0, won / np.maximum(met, 1), np.nan)


def compare_scores(first: float, second: float) -> float:
    """1 where the first score is higher, 0 where lower, 0.5 for equal ones, NaN without both."""
    if math.isnan(first) or math.isnan(second):
        return math.nan
    return 0.5 + 0.5 * ((first > second) - (first < second))
