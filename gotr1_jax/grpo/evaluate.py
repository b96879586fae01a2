"""Evaluations of held-out captions: their scores, their files, and how two compare."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.grpo.alarms import JudgedCounts
from gotr1_jax.grpo.config import EvaluationConfig
from gotr1_jax.grpo.diversity import caption_diversity, diversity_means, overall_diversity
from gotr1_jax.grpo.diversity_measures import OF_ALL, OF_CAPTIONS
from gotr1_jax.grpo.measure import MEASURED_UNDER
from gotr1_jax.grpo.patience import DIVERSITY
from gotr1_jax.grpo.prompts import Prompts
from gotr1_jax.grpo.rollout import RolloutWorker, ScoredRollout
from gotr1_jax.io.files import write_json_atomic
from gotr1_jax.parallel.phases import phase
from gotr1_jax.parallel.processes import (
    is_main_process,
    raise_on_all_processes,
)
from gotr1_jax.trainer.samples import SampleRecord, write_samples

# Evaluations have random streams of their own, the same before and after training.
EVALUATION_SEED = 20_250_522
_LARGEST = 1e30  # of a score, which may have any range
WATCHED = "watched"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Scores of held-out captions, float32, one a caption; NaN where none could be scored.

    Attributes:
        counts: of the samples behind them; None where they were read from a file.
        watched: of terms that are never trained on, as `terms`.
        diversity: of the samples of each caption, by measure. overall: of all samples.
    """

    terms: Mapping[str, np.ndarray]
    total: np.ndarray
    counts: JudgedCounts | None = None
    watched: Mapping[str, np.ndarray] = field(default_factory=dict)
    diversity: Mapping[str, np.ndarray] = field(default_factory=dict)
    overall: Mapping[str, float] = field(default_factory=dict)

    @property
    def _columns(self) -> dict[str, np.ndarray]:
        return {"total": self.total, **self.terms}

    @property
    def means(self) -> dict[str, float]:
        """Mean of the total and of each term over the captions that could be scored; else NaN."""
        return _means(self._columns)

    @property
    def watched_means(self) -> dict[str, float]:
        """As `means`, of the watched terms."""
        return _means(self.watched)

    @property
    def diversity_means(self) -> dict[str, float]:
        """Each measure that has a value: the mean over captions, or of all samples."""
        return diversity_means(self.diversity, self.overall)

    @property
    def values(self) -> dict[str, float]:
        """All means by their names in `evaluation.patience.term`."""
        diversity = {f"{DIVERSITY}{name}": v for name, v in self.diversity_means.items()}
        return {**self.means, **self.watched_means, **diversity}

    @property
    def metrics(self) -> dict[str, float]:
        """`values` for metrics.jsonl."""
        values = {f"evaluation/{name}": value for name, value in self.means.items()}
        values |= {f"watched/{name}": value for name, value in self.watched_means.items()}
        return values | {
            f"evaluation/{DIVERSITY}{name}": v for name, v in self.diversity_means.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Plain lists, for a file."""
        values: dict[str, Any] = _lists(self._columns)
        if self.watched:
            values[WATCHED] = _lists(self.watched)
        if self.diversity or self.overall:
            values["diversity"] = {**_lists(self.diversity), **self.overall}
        return values

    @classmethod
    def from_json(cls, values: object, where: str = "the evaluation") -> Evaluation:
        """Inverse of `to_json`; null is NaN. InputError, with `where`, for other values."""
        values = values if isinstance(values, Mapping) else {}
        watched, diversity = (values.get(name, {}) for name in (WATCHED, "diversity"))
        if not isinstance(watched, Mapping) or not isinstance(diversity, Mapping):
            raise InputError(f"{where} has watched terms or a diversity that are no object")
        other = (MEASURED_UNDER, WATCHED, "diversity")
        columns = {name: scores for name, scores in values.items() if name not in other}
        overall = {name: diversity[name] for name in OF_ALL if name in diversity}
        by_caption = {name: diversity[name] for name in OF_CAPTIONS if name in diversity}
        columns |= {f"{WATCHED} {name}": scores for name, scores in watched.items()}
        columns |= {f"{DIVERSITY}{name}": scores for name, scores in by_caption.items()}
        lists = [v if isinstance(v, list) and v else None for v in columns.values()]
        if "total" not in columns or None in lists or len({len(v) for v in lists if v}) != 1:
            raise InputError(f"{where} is no object of lists of scores, equally long, with a total")
        for name, scores in columns.items():
            wrong = next((score for score in scores if not _is_score(score)), None)
            if wrong is not None:
                raise InputError(f"{where} has a score of {name} that is {str(wrong)[:40]!r}")
        if not all(map(_is_score, overall.values())):
            raise InputError(f"{where} has a diversity that is no number")
        arrays = {k: np.asarray(v, np.float32) for k, v in columns.items()}  # None becomes NaN
        return cls(
            total=arrays.pop("total"),
            watched={name: arrays.pop(f"{WATCHED} {name}") for name in watched},
            diversity={name: arrays.pop(f"{DIVERSITY}{name}") for name in by_caption},
            overall={k: math.nan if v is None else float(v) for k, v in overall.items()},
            terms=arrays,
        )


def _lists(columns: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    return {name: np.asarray(values).tolist() for name, values in columns.items()}


def _means(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    scored = {name: values[~np.isnan(values)] for name, values in columns.items()}
    return {k: float(v.mean()) if v.size else float("nan") for k, v in scored.items()}


def _is_score(value: object) -> bool:
    """Whether a file of scores can hold it: NaN too, as files of earlier versions did."""
    if value is None:
        return True
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return value != value or abs(value) <= _LARGEST  # an int may be too large for isnan


def evaluate(
    worker: RolloutWorker, params: Any, prompts: Prompts, config: EvaluationConfig, name: str,
    root: Path, *, rows: int, multiple: int = 1, under: Mapping[str, str] | None = None,
) -> Evaluation:  # fmt: skip
    """Score every caption: the mean over `config.samples` samples.

    At most `rows` samples are sampled at once, and a multiple of `multiple` (`captions_at_once`).
    The first samples of `config.shown` captions go to samples/`name` for the report (of several
    processes: those that process 0 scored). The scores are written to root/`name`.json, from which
    a resumed run reads those before training, with what they were measured under.
    """
    G = config.samples
    parts, shown, counts = [], [], []
    with phase("evaluating", len(prompts), "caption") as evaluating:
        for start, scored in _score_parts(worker, params, prompts, G, rows, multiple, len(prompts)):
            table = scored.table
            parts.append((table.scores_BK, table.total_B, table.keys, dict(table.watched)))
            counts.append(JudgedCounts.of(scored.table))
            shown += _first_samples(scored, start, config.shown)
            evaluating.update(start + len(table.total_B) // G)
    scores_BK, total_B, keys, watched = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    result = score_captions(dict(zip(worker.judge.terms, scores_BK.T)), total_B, G)
    result = replace(result, counts=reduce(add, counts), watched=_by_caption(watched, G))
    if keys is not None:
        overall = overall_diversity(keys)
        result = replace(result, diversity=caption_diversity(keys, G), overall=overall)
    with raise_on_all_processes():
        if is_main_process():
            write_samples(root / "samples", 0, shown, name=name)
            record = {MEASURED_UNDER: under} if under is not None else {}
            write_json_atomic(root / f"{name}.json", {**record, **result.to_json()})
    return result


def sample_shown(
    worker: RolloutWorker, params: Any, prompts: Prompts, config: EvaluationConfig, *, rows: int,
    multiple: int = 1,
) -> list[SampleRecord]:  # fmt: skip
    """The samples that `evaluate` would store, without those of the other captions.

    Sampled in the same parts, so by programs that are compiled already, and scored with all
    samples of their captions, so that terms that compare them are the same too.
    """
    captions = min(config.shown, len(prompts))
    parts = _score_parts(worker, params, prompts, config.samples, rows, multiple, captions)
    return [r for start, scored in parts for r in _first_samples(scored, start, captions)]


def _score_parts(
    worker: RolloutWorker, params: Any, prompts: Prompts, samples: int, rows: int, multiple: int,
    captions: int,
) -> Iterator[tuple[int, ScoredRollout]]:  # fmt: skip
    """The parts that hold the first `captions` captions, each with the index of its first one."""
    size = captions_at_once(len(prompts), samples, rows, multiple)
    for start in range(0, captions, size):
        part = prompts.take(range(start, min(start + size, len(prompts))))
        yield start, worker(params, part, samples, EVALUATION_SEED, 0)


def _first_samples(scored: ScoredRollout, start: int, captions: int) -> list[SampleRecord]:
    """The first sample of each caption of a part that is one of the first `captions`."""
    return [
        replace(record, caption_index=start + record.caption_index)
        for record in scored.records(captions - start)
        if record.sample_index == 0
    ]


def captions_at_once(captions: int, samples: int, rows: int, multiple: int = 1) -> int:
    """How many captions an evaluation samples at once: at most `rows` rows, where possible.

    The rows of a part are a multiple of `multiple`; those of the last part too, if all rows
    together are. Parts of equal size are preferred where they are at least half as large.
    """
    step = multiple // math.gcd(samples, multiple)
    largest = max(rows // (samples * step), 1) * step
    even = [size for size in range(largest, largest // 2, -step) if captions % size == 0]
    return min(even[0] if even else largest, captions)


def score_captions(
    scores: Mapping[str, np.ndarray], total_B: np.ndarray, samples: int
) -> Evaluation:
    """The evaluation of B = P * `samples` scored rows, caption-major.

    Samples that could not be scored leave the mean of their caption; without any it is NaN.
    """
    total = _by_caption({"total": total_B}, samples)["total"]
    return Evaluation(_by_caption(scores, samples), total)


def _by_caption(columns: Mapping[str, np.ndarray], samples: int) -> dict[str, np.ndarray]:
    """The mean of each caption's known values (P,), for columns (B,)."""

    def mean(values_B: np.ndarray) -> np.ndarray:
        values_PG = values_B.reshape(-1, samples)
        known = np.isfinite(values_PG)
        total, count = np.where(known, values_PG, 0.0).sum(axis=1), known.sum(axis=1)
        means = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return means.astype(np.float32)  # as a resumed run reads them back

    return {name: mean(values_B) for name, values_B in columns.items()}


def format_table(before: Evaluation, after: Evaluation, interval: tuple[float, float]) -> str:
    """The comparison as text, one line a score."""
    names = ["total", *before.terms]
    old, new = before.means, after.means
    width = max(7, *map(len, names)) + 1
    lines = [f"{'':{width}}{'before':>9}{'after':>9}{'gain':>9}"]
    lines += [f"{name:{width}}{_cells(old[name], new[name])}" for name in names]
    low, high = interval
    gain = new["total"] - old["total"]
    change = f"{gain / old['total']:+.0%}" if old["total"] > 0 else f"{gain:+.3f}"
    unscored = [n for n, v in (("before", old), ("after", new)) if math.isnan(v["total"])]
    if unscored:
        change = f"has no score {' and '.join(unscored)}"
    line = f"total {change} on {len(before.total)} held-out captions"
    if not math.isnan(low):
        line += f"; gain 95% interval [{low:+.3f}, {high:+.3f}] (paired bootstrap)"
    return "\n".join([*lines, line])


def _cells(old: float, new: float) -> str:
    """A value before and after, and its gain, in columns of 9 characters."""
    numbers = old, new, new - old
    # Numbers too long for a column would join their neighbours.
    spec = ".3f" if all(abs(n) < 1e3 or n != n for n in numbers) else ".1e"
    return "".join(
        f"{'no score' if math.isnan(n) else format(n, sign + spec):>9}"
        for n, sign in zip(numbers, ("", "", "+"))
    )


def compare_watched(before: Evaluation, after: Evaluation) -> dict[str, Any]:
    """Means of watched terms and of diversity before and after, for summary.json; only those
    there are."""
    pairs = {
        WATCHED: (before.watched_means, after.watched_means),
        "diversity": (before.diversity_means, after.diversity_means),
    }
    return {name: {"before": old, "after": new} for name, (old, new) in pairs.items() if old or new}


def format_watched(before: Evaluation, after: Evaluation) -> str:
    """As the lines of `format_table`, of watched terms and of diversity; empty without any."""
    compared, lines = compare_watched(before, after), []
    width = max((len(name) for parts in compared.values() for name in parts["after"]), default=0)
    for title, parts in compared.items():
        lines.append("watched, never trained on" if title == WATCHED else title)
        for name, new in parts["after"].items():
            old = parts["before"].get(name, math.nan)
            lines.append(f"  {name:{width + 1}}{_cells(old, new)}")
    return "\n".join(lines)
