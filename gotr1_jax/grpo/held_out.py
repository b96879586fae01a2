"""When held-out captions are scored: before training, every so many steps, and after it."""

from __future__ import annotations

import json
from typing import Any

from gotr1_jax.grpo.evaluate import Evaluation, evaluate
from gotr1_jax.grpo.setup import GrpoJob
from gotr1_jax.parallel.mesh import row_multiple
from gotr1_jax.parallel.processes import broadcast_from_main
from gotr1_jax.trainer.run import Run
from gotr1_jax.trainer.state import TrainState


class HeldOut:
    """The evaluations of a run; every process makes the same calls."""

    def __init__(self, job: GrpoJob, run: Run) -> None:
        self._config, self._worker, self._prompts = job.config, job.worker, job.heldout
        self._root, self._multiple = run.dir.root, row_multiple(run.mesh)

    def before(self, job: GrpoJob, state: TrainState, first_step: int) -> Evaluation | None:
        """The evaluation before the first update; read from the run's files where it goes on.

        None in a process that cannot read what the main process can.
        """
        path = self._root / "eval_before.json"
        stored = None
        if first_step and path.is_file():
            stored = Evaluation.from_json(json.loads(path.read_text(encoding="utf-8")))
        if broadcast_from_main(stored is not None):
            return stored
        initial = job.initial_state() if first_step else state
        return self.evaluate("eval_before", job.sampling_params(initial))

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
        return evaluate(
            self._worker, params, self._prompts, self._config.evaluation, name, self._root,
            rows=self._config.rollout.rows_at_once, multiple=self._multiple,
        )  # fmt: skip
