"""Held-out captions before and after training, and what the difference is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gotr1_jax.grpo.config import EvaluationConfig
from gotr1_jax.grpo.rollout import Prompts, RolloutWorker, records
from gotr1_jax.io.files import write_json_atomic
from gotr1_jax.parallel.processes import is_main_process, raise_on_all_processes
from gotr1_jax.trainer.samples import SampleRecord, write_samples

# Evaluations draw from streams of their own, the same before and after.
EVALUATION_SEED = 20_250_522


@dataclass(frozen=True)
class Evaluation:
    """Scores of one evaluation, one value a caption; NaN where it could not be scored."""

    terms: Mapping[str, np.ndarray]
    total: np.ndarray

    @property
    def means(self) -> dict[str, float]:
        """Mean of the total and of each term over the captions that could be told; else NaN."""
        told = {k: v[~np.isnan(v)] for k, v in {"total": self.total, **self.terms}.items()}
        return {k: float(v.mean()) if v.size else float("nan") for k, v in told.items()}

    def to_json(self) -> dict[str, list[float]]:
        """Plain lists, for a file."""
        return {k: np.asarray(v).tolist() for k, v in {"total": self.total, **self.terms}.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, list[float | None]]) -> Evaluation:
        """Inverse of `to_json`; null is NaN."""
        arrays = {
            k: np.asarray([np.nan if x is None else x for x in v], np.float32)
            for k, v in values.items()
        }
        return cls({k: v for k, v in arrays.items() if k != "total"}, arrays["total"])


def evaluate(
    worker: RolloutWorker, params: Any, prompts: Prompts, config: EvaluationConfig, name: str,
    root: Path, *, rows: int, multiple: int = 1,
) -> Evaluation:  # fmt: skip
    """`config.samples` samples for each caption; a caption's score is their mean.

    At most `rows` samples are drawn at once, and a multiple of `multiple` (`captions_at_once`). The
    first samples of `config.shown` captions go to samples/`name` for the report (of several
    processes: those of them that process 0 judged). The scores are written to root/`name`.json, so
    that a resumed run has those from before.
    """
    G, P = config.samples, len(prompts.captions)
    size = captions_at_once(P, G, rows, multiple)
    parts: list[tuple[Mapping[str, np.ndarray], np.ndarray]] = []
    firsts: list[SampleRecord] = []
    for start in range(0, P, size):
        drawn = range(start, min(start + size, P))
        scored = worker(params, prompts, drawn, G, EVALUATION_SEED, 0)
        parts.append((scored.scores, scored.total_B))
        found = records(scored, G, np.zeros(len(scored)), config.shown - start)
        firsts += [
            replace(record, caption_index=start + record.caption_index)
            for record in found
            if record.sample_index == 0
        ]
    scores = {name: np.concatenate([part[name] for part, _ in parts]) for name in parts[0][0]}
    result = score_captions(scores, np.concatenate([total for _, total in parts]), G)
    with raise_on_all_processes():
        if is_main_process():
            write_samples(root / "samples", 0, firsts, name=name)
            write_json_atomic(root / f"{name}.json", result.to_json())
    return result


def captions_at_once(captions: int, samples: int, rows: int, multiple: int = 1) -> int:
    """How many captions an evaluation draws at once: at most `rows` rows, where that can be.

    The rows of a part are a multiple of `multiple`, those of the last one too if all together
    are. Parts of one size are preferred, unless they had to be less than half as large.
    """
    step = multiple // math.gcd(samples, multiple)
    largest = max(rows // (samples * step), 1) * step
    even = [size for size in range(largest, largest // 2, -step) if captions % size == 0]
    return min(even[0] if even else largest, captions)


def score_captions(
    scores: Mapping[str, np.ndarray], total_B: np.ndarray, samples: int
) -> Evaluation:
    """The evaluation of B = P * `samples` scored rows, caption-major.

    A sample that could not be told leaves its caption's mean; all of them make it NaN.
    """

    def by_caption(values_B: np.ndarray) -> np.ndarray:
        values_PG = values_B.reshape(-1, samples)
        told = np.isfinite(values_PG)
        total, count = np.where(told, values_PG, 0.0).sum(axis=1), told.sum(axis=1)
        means = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return means.astype(np.float32)  # as a resumed run reads them back

    return Evaluation({term: by_caption(v) for term, v in scores.items()}, by_caption(total_B))


def format_table(before: Evaluation, after: Evaluation, interval: tuple[float, float]) -> str:
    """The comparison as text, one line a score."""
    names = ["total", *before.terms]
    old, new = before.means, after.means
    lines = [f"{'':8}{'before':>9}{'after':>9}{'gain':>9}"]
    for name in names:
        gain = new[name] - old[name]
        lines.append(f"{name:8}{old[name]:9.3f}{new[name]:9.3f}{gain:+9.3f}")
    low, high = interval
    ratio = new["total"] / old["total"] - 1 if old["total"] > 0 else float("nan")
    lines.append(
        f"total {ratio:+.0%} on {len(before.total)} held-out captions; "
        f"gain 95% interval [{low:+.3f}, {high:+.3f}] (paired bootstrap)"
    )
    return "\n".join(lines)
