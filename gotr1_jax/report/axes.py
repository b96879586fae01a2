"""Ticks of an axis and their labels: few, round, and each different from its neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence

_SUFFIXES = {0: "", 3: "k", 6: "M"}  # of powers of ten; others stand beside the axis
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MOST_DIGITS = 5  # of a label; longer ones count from a number beside the axis


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers, about `count`, that cover [low, high]."""
    if not high - low > 1e-9 * max(abs(low), abs(high), 1e-200):
        low, high = (low, low) if abs(low) > 1e-200 else (0.0, 0.0)
        low, high = (low - abs(low) * 0.5, high + abs(high) * 0.5) if low else (0.0, 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def step_ticks(low: int, high: int, count: int = 4) -> list[int]:
    """Round whole numbers, about `count`, within [low, high]: of steps of training."""
    if high - low <= count:
        return list(range(low, high + 1))
    ticks = nice_ticks(low, high, count)
    width = max(1, math.ceil(ticks[1] - ticks[0]))
    return list(range(-(-low // width) * width, high + 1, width))


def tick_labels(ticks: Sequence[float]) -> tuple[list[str], str]:
    """The labels of evenly spaced ticks, and what stands beside the axis once for all of them.

    That is a power of ten by which they are multiplied ("×10⁹"), or the number that they are
    counted from where they are too much alike ("2.3e9 +"); most often nothing.
    """
    step, size = _spacing(ticks), max(map(abs, ticks))
    note = ""
    if size > step * 10**_MOST_DIGITS:
        # A round number below them all, so that what is left to tell is short.
        unit = 10.0 ** (math.floor(math.log10(step)) + 3)
        base = math.floor(ticks[0] / unit) * unit
        digits = max(1, math.ceil(math.log10(abs(base) / unit)) + 1) if base else 1
        note = f"{short_exponent(f'{base:.{digits}g}')} +"
        ticks = [tick - base for tick in ticks]
        size = max(map(abs, ticks))
    power = 0
    if size >= 1e4 or size < 1e-2:
        power = 3 * math.floor(math.log10(size) / 3)
    suffix = _SUFFIXES.get(power)
    if suffix is None:
        note = f"{note} ×10{str(power).translate(_SUPERSCRIPTS)}".strip()
    # Powers of ten beyond the range of floats would be infinite.
    scaled = [tick / 10.0**power if power > -300 else tick * 10.0**-power for tick in ticks]
    width = _spacing(scaled)
    decimals = next((d for d in range(8) if abs(round(width, d) - width) < 1e-3 * width), 8)
    return [f"{value + 0.0:.{decimals}f}{suffix or ''}" for value in scaled], note


def _spacing(ticks: Sequence[float]) -> float:
    return ticks[1] - ticks[0] if len(ticks) > 1 else abs(ticks[0]) or 1.0


def short_exponent(number: str) -> str:
    """A number without a sign and zeros that its exponent does not need."""
    return number.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
