"""The scalars of a run over its steps, from metrics.jsonl."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.trainer.metrics import metric_lines


@dataclass(frozen=True)
class Metrics:
    """Scalars of a run: `values[name]` is float64 (N,), one for each of `steps` int64 (N,).

    Steps ascend and are unique; NaN where a step has no value.
    """

    steps: np.ndarray
    values: Mapping[str, np.ndarray]


def read_metrics(path: Path, problems: list[str]) -> Metrics:
    """Reads metrics.jsonl; of a step that was run twice the later line counts.

    Unreadable lines (of a killed run, the last one) are left out and counted in `problems`.
    """
    rows: dict[int, dict[str, float]] = {}
    broken = 0
    try:
        for _, record in metric_lines(path) if os.path.lexists(path) else ():
            if record is None:
                broken += 1
                continue
            numbers = {k: float(v) for k, v in record.items() if is_number(v) and k != "step"}
            rows[record["step"]] = numbers
    except InputError as error:
        problems.append(str(error))
    if broken:
        problems.append(f"{path.name}: {broken} line{'s' * (broken > 1)} could not be read")
    steps = sorted(rows)
    names = dict.fromkeys(name for step in steps for name in rows[step])
    columns = {
        name: np.array([rows[step].get(name, math.nan) for step in steps], np.float64)
        for name in names
    }
    return Metrics(np.array(steps, np.int64), columns)


def all_values(runs: Iterable[Metrics]) -> dict[str, np.ndarray]:
    """Of each metric the values in all of these runs, one run after the other."""
    found: dict[str, list[np.ndarray]] = {}
    for own in runs:
        for name, values in own.values.items():
            found.setdefault(name, []).append(values)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def is_number(value: object) -> bool:
    """Whether a value of JSON is a number that charts can show."""
    # Beyond, ranges and squares of a chart would be infinite.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e150
