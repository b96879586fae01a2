"""Held-out captions: scored before, during and after training, and compared."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gotr1_jax.errors import InputError, RunError
from gotr1_jax.grpo.alarms import JudgedCounts
from gotr1_jax.grpo.config import EvaluationConfig
from gotr1_jax.grpo.measure import (
    MEASURED_UNDER,
    check_measured_under,
    digest,
    measured_under,
)
from gotr1_jax.grpo.rollout import Prompts, RolloutWorker
from gotr1_jax.grpo.setup import GrpoJob
from gotr1_jax.io.files import write_json_atomic
from gotr1_jax.io.reading import read_json
from gotr1_jax.parallel.mesh import row_multiple
from gotr1_jax.parallel.processes import (
    broadcast_from_main,
    is_main_process,
    raise_on_all_processes,
)
from gotr1_jax.trainer.run import Run
from gotr1_jax.trainer.samples import write_samples
from gotr1_jax.trainer.state import TrainState

# Evaluations have random streams of their own, the same before and after training.
EVALUATION_SEED = 20_250_522
_HIGHEST = 2.0  # of a total: v1 adds two terms
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Scores of held-out captions, float32, one a caption; NaN where none could be scored.

    Attributes:
        counts: of the samples behind them; None where they were read from a file.
    """

    terms: Mapping[str, np.ndarray]
    total: np.ndarray
    counts: JudgedCounts | None = None

    @property
    def _columns(self) -> dict[str, np.ndarray]:
        return {"total": self.total, **self.terms}

    @property
    def means(self) -> dict[str, float]:
        """Mean of the total and of each term over the captions that could be scored; else NaN."""
        scored = {name: values[~np.isnan(values)] for name, values in self._columns.items()}
        return {k: float(v.mean()) if v.size else float("nan") for k, v in scored.items()}

    def to_json(self) -> dict[str, list[float]]:
        """Plain lists, for a file."""
        return {name: np.asarray(values).tolist() for name, values in self._columns.items()}

    @classmethod
    def from_json(cls, values: object, where: str = "the evaluation") -> Evaluation:
        """Inverse of `to_json`; null is NaN. InputError, with `where`, for other values."""
        values = values if isinstance(values, Mapping) else {}
        columns = {name: scores for name, scores in values.items() if name != MEASURED_UNDER}
        lists = [v if isinstance(v, list) and v else None for v in columns.values()]
        if "total" not in columns or None in lists or len({len(v) for v in lists if v}) != 1:
            raise InputError(f"{where} is no object of lists of scores, equally long, with a total")
        for name, scores in columns.items():
            wrong = next((score for score in scores if not _is_score(score)), None)
            if wrong is not None:
                raise InputError(f"{where} has a score of {name} that is {str(wrong)[:40]!r}")
        arrays = {k: np.asarray(v, np.float32) for k, v in columns.items()}  # None becomes NaN
        return cls({k: v for k, v in arrays.items() if k != "total"}, arrays["total"])


def _is_score(value: object) -> bool:
    """Whether a file of scores can hold it: NaN too, as files of earlier versions did."""
    if value is None:
        return True
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return value != value or 0 <= value <= _HIGHEST  # an int may be too large for isnan


class HeldOut:
    """The evaluations of a run; every process makes the same calls."""

    def __init__(self, job: GrpoJob, run: Run) -> None:
        self._config, self._worker, self._prompts = job.config, job.worker, job.heldout
        self._root, self._multiple = run.dir.root, row_multiple(run.mesh)
        self._under = measured_under(
            job.config, job.heldout.captions, job.worker.judge.identity,
            run.inputs.get("policy.init", ""),
        )  # fmt: skip

    @property
    def measure(self) -> str:
        """A name for what the scores are measured under: those of other names do not compare."""
        return digest(self._under)

    def before(self, job: GrpoJob, state: TrainState, first_step: int) -> Evaluation | None:
        """The evaluation before the first update; read from the run's files where it goes on.

        None in a process that cannot read what the main process can. RunError if the judge scores
        nothing at all.
        """
        stored = self._stored() if first_step else None
        if broadcast_from_main(stored is not None):
            return stored
        initial = job.initial_state() if first_step else state
        found = self.evaluate("eval_before", job.sampling_params(initial))
        if found.counts is not None and self._is_lost(found):
            raise RunError(
                f"the judge could not score any of the {found.counts.samples} samples of the first "
                f"evaluation, so nothing can be learned: {found.counts.cause}; correct the judge "
                "(reward.failure_limit of 1 goes on without rewards)"
            )
        return found

    def _is_lost(self, found: Evaluation) -> bool:
        return np.isnan(found.total).all() and self._config.reward.failure_limit < 1

    def _stored(self) -> Evaluation | None:
        """The evaluation before training in the run's file; None, with a line, if it is no use."""
        path = self._root / "eval_before.json"
        try:
            values = read_json(path, allow_nan=True)
            found = Evaluation.from_json(values, str(path))
            captions, terms = len(found.total), set(found.terms)
            if captions != len(self._prompts) or terms != set(self._worker.judge.terms):
                raise InputError(
                    f"{path} has {', '.join(sorted(terms))} of {captions} captions, and not "
                    f"{', '.join(self._worker.judge.terms)} of {len(self._prompts)}"
                )
            check_measured_under(values.get(MEASURED_UNDER), self._under, str(path))
            if self._is_lost(found):
                raise InputError(f"{path} has no score, as the judge gave none")
        except InputError as error:
            _log.warning("%s: %s; the model before training is evaluated again", path.name, error)
            return None
        return found

    def after_step(self, job: GrpoJob, state: TrainState, run: Run) -> float | None:
        """The held-out total, in steps that are evaluated."""
        every, step = self._config.evaluation.every, run.step
        if not every or step % every or step >= self._config.steps:
            return None
        total = self.evaluate(f"eval_step_{step:06d}", job.sampling_params(state)).means["total"]
        run.note(f"held-out total at step {step}: {total:.3f}")
        return total

    def evaluate(self, name: str, params: Any) -> Evaluation:
        """Scores all held-out captions under decode weights; writes `name`.json and samples."""
        found = evaluate(
            self._worker, params, self._prompts, self._config.evaluation, name, self._root,
            rows=self._config.rollout.rows_at_once, multiple=self._multiple, under=self._under,
        )  # fmt: skip
        if found.counts is not None and found.counts.unscored:
            cause, samples = found.counts.cause, found.counts.samples
            _log.warning(
                "%s: the judge could not score %d of %d samples; most often: %s",
                name, found.counts.unscored, samples, cause,
            )  # fmt: skip
        return found


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
    G, P = config.samples, len(prompts)
    size = captions_at_once(P, G, rows, multiple)
    parts, shown, counts = [], [], []
    for start in range(0, P, size):
        part = prompts.take(range(start, min(start + size, P)))
        scored = worker(params, part, G, EVALUATION_SEED, 0)
        parts.append((scored.table.scores_BK, scored.table.total_B))
        counts.append(JudgedCounts.of(scored.table))
        shown += [
            replace(record, caption_index=start + record.caption_index)
            for record in scored.records(config.shown - start)
            if record.sample_index == 0
        ]
    scores_BK, total_B = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    result = score_captions(dict(zip(worker.judge.terms, scores_BK.T)), total_B, G)
    result = replace(result, counts=reduce(add, counts))
    with raise_on_all_processes():
        if is_main_process():
            write_samples(root / "samples", 0, shown, name=name)
            record = {MEASURED_UNDER: under} if under is not None else {}
            write_json_atomic(root / f"{name}.json", {**record, **result.to_json()})
    return result


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

    def by_caption(values_B: np.ndarray) -> np.ndarray:
        values_PG = values_B.reshape(-1, samples)
        known = np.isfinite(values_PG)
        total, count = np.where(known, values_PG, 0.0).sum(axis=1), known.sum(axis=1)
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
    gain = new["total"] - old["total"]
    change = f"{gain / old['total']:+.0%}" if old["total"] > 0 else f"{gain:+.3f}"
    lines.append(
        f"total {change} on {len(before.total)} held-out captions; "
        f"gain 95% interval [{low:+.3f}, {high:+.3f}] (paired bootstrap)"
    )
    return "\n".join(lines)
