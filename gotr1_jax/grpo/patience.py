"""Patience: what a run does when a value of its evaluations falls and does not recover."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from gotr1_jax.config import CheckedConfig
from gotr1_jax.grpo.diversity_measures import OPPOSITE
from gotr1_jax.limits import FilledText, Range, Steps

DIVERSITY = "diversity/"  # before the name of a measure
_TOLERANCE = 1e-6  # of a fall that is exactly the allowed one, in float32


@dataclass(frozen=True)
class PatienceConfig(CheckedConfig):
    """The run ends early when a value falls by `fall` in `evaluations` evaluations in a row."""

    may_change: ClassVar[Collection[str]] = (
        "term", "fall", "relative", "below", "evaluations", "action",
    )  # fmt: skip

    # A name of evaluation.judges, a term of the judge, total, or a measure of diversity such as
    # diversity/images. Of diversity/commonest_layout and commonest_boxes a rise counts.
    term: FilledText
    # How far below, in the unit of the value, or as `relative` says.
    fall: Annotated[float, Range("(0, 1e9]")]
    # Whether fall is a share of the value that is compared with, as of `below`.
    relative: bool = False
    # Compared with the best evaluation so far (that before training too), or with that before
    # training alone.
    below: Literal["best", "start"] = "best"
    # Evaluations in a row (every evaluation.every steps) that lie so far below.
    evaluations: Steps = 2
    # Both end the run as its last step would: export, evaluation, report. stop: with the weights
    # there are; restore_best: with those of the best evaluation of this value.
    action: Literal["stop", "restore_best"] = "stop"

    @property
    def sign(self) -> int:
        """-1 for a value whose rise is the fall."""
        return -1 if self.term.removeprefix(DIVERSITY) in OPPOSITE and self.is_diversity else 1

    @property
    def is_diversity(self) -> bool:
        return self.term.startswith(DIVERSITY)


@dataclass(frozen=True)
class PatienceState:
    """What patience has seen: JSON values for a checkpoint.

    Attributes:
      start: the value before training. best: the best of all evaluations, at `best_step` (0: before
        training); of equal ones the last, as checkpoints keep it. NaN: none yet.
      falling: evaluations in a row that lie too far below.
      acted: the step after which the run ended; None: it has not.
      value: the last value that counted.
    """

    start: float = math.nan
    best: float = math.nan
    best_step: int = 0
    falling: int = 0
    acted: int | None = None
    value: float = math.nan

    def begin(self, value: float) -> PatienceState:
        """With the evaluation before training."""
        return replace(self, start=value).with_best(0, value)

    def with_best(self, step: int, value: float, sign: int = 1) -> PatienceState:
        """With an evaluation that may be the best."""
        is_best = math.isnan(self.best) or sign * value >= sign * self.best
        return replace(self, best=value, best_step=step) if is_best else self


def fallen_by(config: PatienceConfig, state: PatienceState, value: float) -> float:
    """How far `value` lies below what it is compared with; NaN where there is nothing."""
    reference = state.best if config.below == "best" else state.start
    return config.sign * (reference - value)


def is_fallen(config: PatienceConfig, state: PatienceState, value: float) -> bool:
    """Whether the value lies `fall` or more below. Nothing falls where there is no reference."""
    reference = state.best if config.below == "best" else state.start
    limit = config.fall * (abs(reference) if config.relative else 1.0)
    fallen = fallen_by(config, state, value)
    return fallen > 0 and fallen >= limit - _TOLERANCE * abs(reference)


def after_evaluation(
    config: PatienceConfig, state: PatienceState, step: int, value: float
) -> PatienceState:
    """The state after an evaluation; NaN (nothing could be scored) leaves it as it is."""
    if math.isnan(value) or state.acted is not None:
        return state
    falling = state.falling + 1 if is_fallen(config, state, value) else 0
    acted = step if falling >= config.evaluations else None
    state = replace(state, falling=falling, acted=acted, value=value)
    return state.with_best(step, value, config.sign)


class Patience:
    """Patience of a run; without a configuration it does nothing. All processes call alike."""

    def __init__(
        self, config: PatienceConfig | None, stored: Mapping[str, Any] | None = None
    ) -> None:
        """stored: `to_json` of a checkpoint; None where it has none.

        The state of another value is forgotten; under other limits the count begins again.
        """
        self.config, self.state, self.is_new = config, PatienceState(), True
        if config is None or stored is None or stored["config"]["term"] != config.term:
            return
        self.state, self.is_new = PatienceState(**_from_null(stored["state"])), False
        if stored["config"] != asdict(config):
            self.state = replace(self.state, falling=0, acted=None)
        if stored["config"]["action"] != config.action:
            self.forget_best()  # the checkpoints were kept by another value

    def to_json(self) -> dict[str, Any] | None:
        """JSON values for a checkpoint."""
        if self.config is None:
            return None
        state = {k: None if v != v else v for k, v in asdict(self.state).items()}
        return {"config": asdict(self.config), "state": state}

    def begin(self, values: Mapping[str, float]) -> str | None:
        """With the values before training; returns why the run cannot begin, or None."""
        if self.config is None or not self.is_new:
            return None
        value = _of_main(values.get(self.config.term, math.nan))
        self.state = self.state.begin(value)
        return self._unmeasured() if math.isnan(value) else None

    def forget_best(self) -> None:
        """The best is counted anew, where its checkpoint is not kept in this run's directory."""
        self.state = replace(self.state, best=math.nan, best_step=0, falling=0)

    def add(
        self, step: int, values: Mapping[str, float], note: Callable[[str], None]
    ) -> str | None:
        """Counts an evaluation; `note` gets a line where the value begins to fall, recovers, or
        ends the run. Returns why the run cannot go on, or None."""
        config, before = self.config, self.state
        if config is None:
            return None
        value = _of_main(values.get(config.term, math.nan))
        if math.isnan(value):
            return self._unmeasured()
        self.state = after_evaluation(config, before, step, value)
        if self.state.falling == 1 or self.state.acted is not None:
            note(f"patience: {self._describe(before, value)} at step {step}")
        if self.state.acted is not None:
            note(f"patience: {self.outcome}")
        elif before.falling and not self.state.falling:
            note(f"patience: {config.term} has recovered to {value:.3f} at step {step}")
        return None

    @property
    def term(self) -> str:
        return "" if self.config is None else self.config.term

    @property
    def score(self) -> float | None:
        """Higher is better: what the best checkpoint is chosen by; None: by the total."""
        if self.config is None or self.config.action != "restore_best":
            return None
        return self.config.sign * self.state.value

    @property
    def outcome(self) -> str:
        """One line: how the run ended; empty while it has not."""
        if self.config is None or self.state.acted is None:
            return ""
        end = f"the run ended after step {self.state.acted}, as {self.config.term} had fallen in "
        end += f"{self.config.evaluations} evaluations in a row"
        if self.config.action == "stop":
            return end
        return f"{end}; it goes back to the weights of step {self.state.best_step}, its best"

    @property
    def restores(self) -> bool:
        """Whether the run must end with the weights of the best evaluation."""
        restores = self.config is not None and self.config.action == "restore_best"
        return restores and self.state.acted is not None

    def _describe(self, before: PatienceState, value: float) -> str:
        assert self.config is not None
        best = self.config.below == "best"
        reference, at = (before.best, before.best_step) if best else (before.start, 0)
        way = "below" if self.config.sign > 0 else "above"
        what = f"its best, {reference:.3f} at step {at}" if best else f"its start, {reference:.3f}"
        fallen = fallen_by(self.config, before, value)
        count = f"{self.state.falling} of {self.config.evaluations} evaluations"
        return f"{self.config.term} {value:.3f} is {fallen:.3f} {way} {what} ({count})"

    def _unmeasured(self) -> str:
        assert self.config is not None
        why = (
            "evaluation.samples of 2 or more and plans with boxes are needed for it"
            if self.config.is_diversity
            else "correct its judge"
        )
        return (
            f"evaluation.patience watches {self.config.term}, which the evaluation could not "
            f"measure in any caption; {why}, or set evaluation.patience null"
        )


def _of_main(value: float) -> float:
    """Process 0's value, in float32, in every process: all must decide the same."""
    from gotr1_jax.parallel.processes import gather  # which imports jax

    return float(gather(np.asarray([value], np.float32))[0, 0])


def _from_null(state: Mapping[str, Any]) -> dict[str, Any]:
    floats = ("start", "best", "value")
    return {k: math.nan if k in floats and v is None else v for k, v in state.items()}
