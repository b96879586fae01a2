"""The evaluations of a run: before, during and after training, and what patience makes of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from gotr1_jax.errors import InputError, RunError
from gotr1_jax.grpo.evaluate import Evaluation, evaluate, sample_shown
from gotr1_jax.grpo.measure import (
    MEASURED_UNDER,
    check_measured_under,
    digest,
    measured_under,
)
from gotr1_jax.grpo.patience import Patience
from gotr1_jax.grpo.setup import GrpoJob
from gotr1_jax.grpo.watched import warn_unscored, watched_identity
from gotr1_jax.io.reading import read_json
from gotr1_jax.io.write_errors import raise_write_errors
from gotr1_jax.parallel.mesh import row_multiple
from gotr1_jax.parallel.processes import (
    broadcast_from_main,
    is_main_process,
    raise_on_all_processes,
)
from gotr1_jax.trainer.run import Run
from gotr1_jax.trainer.samples import followed_name, write_samples
from gotr1_jax.trainer.state import TrainState

_log = logging.getLogger(__name__)


class HeldOut:
    """The evaluations of a run; every process makes the same calls."""

    def __init__(self, job: GrpoJob, run: Run, settle: Callable[[], None] = lambda: None) -> None:
        """settle: returns once nobody else asks the judge."""
        self._settle = settle
        self._config, self._prompts = job.config, job.heldout
        self._worker, self._watched = job.evaluation_worker, job.watched
        self._root, self._multiple = run.dir.root, row_multiple(job.worker.mesh)
        self._samples = run.dir.samples
        self._under = measured_under(
            job.config, job.heldout.captions, job.worker.judge.identity,
            "".join(text for name, text in run.inputs.items() if name.startswith("policy.init")),
        )  # fmt: skip
        stored = run.restored_meta.get("patience")
        self.patience = Patience(job.config.evaluation.patience, stored)
        best = self.patience.state.best_step
        if self.patience.score is not None and best and not run.has_checkpoint(best):
            self.patience.forget_best()
        if self.patience.state.acted is not None:
            run.finish_at(run.first_step)
        # Of the current step: None where it is not evaluated.
        self.score: float | None = None
        self.failure: str | None = None
        self.final_step = run.step

    @property
    def _all_under(self) -> dict[str, str]:
        """With the watched terms whose judges are known by now."""
        return {**self._under, **watched_identity(self._watched)}

    @property
    def measure(self) -> str:
        """A name for what the score is measured under: those of other names do not compare.

        Terms that are only watched may come and go without a new best.
        """
        if self.patience.score is None:
            return digest(self._under)
        term = self.patience.term
        chosen = {"best": term, **watched_identity([j for j in self._watched if j.name == term])}
        return digest({**self._under, **chosen})

    def before(self, job: GrpoJob, state: TrainState, first_step: int) -> Evaluation | None:
        """The evaluation before the first update; read from the run's files where it goes on.

        None in a process that cannot read what the main process can. RunError if the judge scores
        nothing at all.
        """
        self._drop_after(first_step)
        found = self._before(job, state, first_step)
        failure = self.patience.begin(found.values if found is not None else {})
        if failure is not None:
            raise RunError(f"the evaluation before training: {failure}")
        return found

    def _drop_after(self, step: int) -> None:
        """Removes the scores of evaluations after the step that the run resumes from."""
        with raise_on_all_processes(), raise_write_errors(self._root):
            for path in self._root.glob("eval_step_*.json") if is_main_process() else ():
                number = path.stem.removeprefix("eval_step_")
                if number.isdecimal() and int(number) > step:
                    path.unlink()

    def _before(self, job: GrpoJob, state: TrainState, first_step: int) -> Evaluation | None:
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
            check_measured_under(values.get(MEASURED_UNDER), self._all_under, str(path))
            if self._is_lost(found):
                raise InputError(f"{path} has no score, as the judge gave none")
        except InputError as error:
            _log.warning("%s: %s; the model before training is evaluated again", path.name, error)
            return None
        names = {judge.name for judge in self._watched}
        return replace(found, watched={n: v for n, v in found.watched.items() if n in names})

    def after_step(self, job: GrpoJob, state: TrainState, run: Run) -> dict[str, float]:
        """Metrics of the evaluation in steps that have one; else empty, see `_follow`.

        Sets `score` and `failure`; the run ends with this step where patience says so.
        """
        every, step = self._config.evaluation.every, run.step
        self.score = self.failure = None
        if not every or step % every or step >= self._config.steps:
            self._follow(job, state, step)
            return {}
        found = self.evaluate(followed_name(step), job.sampling_params(state))
        total = found.means["total"]
        shown = "no score" if np.isnan(total) else f"{total:.3f}"
        run.note(f"held-out total at step {step}: {shown}")
        self.failure = self.patience.add(step, found.values, run.note)
        if self.patience.state.acted is not None:
            run.finish_at(step)
        if self.failure is None:
            self.score = total if self.patience.score is None else self.patience.score
        return found.metrics

    def _follow(self, job: GrpoJob, state: TrainState, step: int) -> None:
        """Samples the captions of the report at a step whose samples are stored.

        They have the random streams of an evaluation, and are those that it would store. The last
        step has an evaluation anyway.
        """
        config, last = self._config.evaluation, self._config.steps
        is_due = self._config.stores_samples(step) and step < last
        if not is_due or not config.follow or not config.shown:
            return
        self._settle()
        shown = sample_shown(
            self._worker, job.sampling_params(state), self._prompts, config,
            rows=self._config.rollout.rows_at_once, multiple=self._multiple,
        )  # fmt: skip
        warn_unscored(followed_name(step), self._watched)
        with raise_on_all_processes():
            if is_main_process():
                write_samples(self._samples, step, shown, name=followed_name(step))

    def meta(self) -> dict[str, Any]:
        """What a checkpoint must hold for a resumed run to decide the same."""
        patience = self.patience.to_json()
        return {} if patience is None else {"patience": patience}

    def final_state(self, job: GrpoJob, state: TrainState, run: Run) -> TrainState:
        """The state that the run ends with: that of the best evaluation if patience says so.

        Where its checkpoint cannot be read the last state stays, with a line.
        """
        self.final_step = run.step
        if self.patience.outcome and is_main_process():
            print(f"patience: {self.patience.outcome}")
        if not self.patience.restores:
            return state
        step = self.patience.state.best_step
        try:
            found = run.restore_step(state, step) if step else job.reload_initial()
        except (InputError, RunError) as error:
            _log.warning("the weights of the last step are kept: %s", error)
            return state
        self.final_step = step
        return found

    def outcome(self) -> dict[str, Any]:
        """How patience ended the run, for summary.json; empty where it did not."""
        state, config = self.patience.state, self.patience.config
        if config is None or state.acted is None:
            return {}
        return {
            "patience": {
                "why": self.patience.outcome, "term": config.term, "action": config.action,
                "step": state.acted, "best_step": state.best_step, "best": state.best,
                "weights_of_step": self.final_step,
            }
        }  # fmt: skip

    def evaluate(self, name: str, params: Any) -> Evaluation:
        """Scores all held-out captions under decode weights; writes `name`.json and samples."""
        self._settle()
        found = evaluate(
            self._worker, params, self._prompts, self._config.evaluation, name, self._root,
            rows=self._config.rollout.rows_at_once, multiple=self._multiple,
            under=self._all_under,
        )  # fmt: skip
        if found.counts is not None and found.counts.unscored:
            cause, samples = found.counts.cause, found.counts.samples
            _log.warning(
                "%s: the judge could not score %d of %d samples; most often: %s",
                name, found.counts.unscored, samples, cause,
            )  # fmt: skip
        warn_unscored(name, self._watched)
        return found
