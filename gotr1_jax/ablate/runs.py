"""The runs of an ablation: what each trains, which are finished, how long they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from gotr1_jax.ablate.config import AblationConfig
from gotr1_jax.config import load_config
from gotr1_jax.convert.find import EMBEDDED_CHECKPOINTS, find_checkpoint
from gotr1_jax.convert.open_checkpoint import read_sizes
from gotr1_jax.convert.qwen_vl import read_qwen_config
from gotr1_jax.errors import InputError
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.io.files import write_json_atomic
from gotr1_jax.io.hub import is_hub_id
from gotr1_jax.io.object_store import is_url
from gotr1_jax.io.reading import read_json_object
from gotr1_jax.rewards.factory import check_functions
from gotr1_jax.trainer.run_dir import RunDir

_TIME_NAME = "minutes.json"


@dataclass(frozen=True)
class PlannedRun:
    """One training run: a variant with a seed, under a condition if there are any.

    Attributes:
      variant, title: the variant's name, and its name in the table.
      root: the run's directory.
      arguments: of `gotr1` on its command line.
      config: the resolved configuration.
      condition, condition_title: as of the variant; empty without conditions.
      stated_minutes: those that the ablation states for such a run.
    """

    variant: str
    title: str
    seed: int
    root: Path
    arguments: tuple[str, ...]
    config: GrpoConfig
    condition: str = ""
    condition_title: str = ""
    stated_minutes: float | None = None

    @property
    def group(self) -> tuple[str, str]:
        """What the runs of all seeds have in common: condition and variant."""
        return self.condition, self.variant

    @property
    def name(self) -> str:
        """For lines of progress."""
        parts = [self.condition, self.variant, f"seed {self.seed}"]
        return ", ".join(part for part in parts if part)

    @property
    def is_finished(self) -> bool:
        """Whether the run is complete."""
        return RunDir(self.root).summary.is_file()


def plan_runs(config: AblationConfig, root: Path) -> list[PlannedRun]:
    """Every seed of every variant under its conditions; InputError if one is invalid."""
    cells = [(v, c) for v in config.variants for c in config.conditions_of(v)]
    cells.sort(key=lambda cell: config.conditions.index(cell[1]) if cell[1] else 0)
    runs = []
    # All variants before the next seed, so that an early table compares all of them.
    for seed, (variant, condition) in product(config.seeds, cells):
        base = config.base if variant.base is None else variant.base
        folder = root / condition.name if condition else root
        folder = folder / variant.name / f"seed_{seed}"
        own = (f"seed={seed}", f"run_dir={folder}")
        shared = (*config.overrides, *(condition.overrides if condition else ()))
        overrides = [f"--{text}" for text in (*shared, *variant.overrides, *own)]
        try:
            resolved = GrpoConfig.from_file(Path(base), overrides)
        except InputError as error:
            where = f" under {condition.name!r}" if condition else ""
            raise InputError(f"variant {variant.name!r}{where}: {error}") from error
        planned = PlannedRun(
            variant=variant.name, title=variant.title or variant.name, seed=seed, root=folder,
            arguments=("train", "grpo", "--config", base, *overrides), config=resolved,
            stated_minutes=variant.minutes,
        )  # fmt: skip
        if condition is not None:
            planned = replace(
                planned,
                condition=condition.name,
                condition_title=condition.title or condition.name,
                stated_minutes=variant.minutes or condition.minutes,
            )
        runs.append(planned)
    return runs


def choose_runs(runs: Sequence[PlannedRun], only: Sequence[str] | None) -> list[PlannedRun]:
    """The runs of these conditions and variants ("a", "b" or "a/b"), all of them for None;
    InputError for a name of none."""
    if only is None:
        return list(runs)
    names = [{r.condition, r.variant, f"{r.condition}/{r.variant}"} - {""} for r in runs]
    for name in only:
        if not any(name in own for own in names):
            variant = name.partition("/")[2]
            cells = {f"{r.condition}/{r.variant}": 0 for r in runs if r.variant == variant}
            known = cells or dict.fromkeys(n for r in runs for n in (r.condition, r.variant) if n)
            raise InputError(f"--only {name!r} names no run; known: {', '.join(known)}")
    return [r for r, own in zip(runs, names, strict=True) if own & set(only)]


def check_same(planned: PlannedRun) -> None:
    """InputError when the run's directory holds a run of another configuration."""
    stored = RunDir(planned.root).config
    if not stored.is_file():
        if planned.is_finished:
            raise InputError(f"{planned.root} has a finished run without its {stored.name}")
        return
    try:
        found = load_config(GrpoConfig, stored)
    except InputError as error:
        raise InputError(f"{stored}: {error}") from error
    found = replace(found, run_dir=planned.config.run_dir)
    wanted = planned.config
    # What is left to the checkpoint is as it was.
    if found != wanted.sampled_as(wanted.sampled.or_else(found.sampled)):
        raise InputError(
            f"{planned.root} holds a run of another configuration; give another --out, or remove it"
        )


def check_inputs(planned: PlannedRun) -> None:
    """InputError for a function or a local checkpoint that is not there, and for a checkpoint of
    another kind: the run might be the last. Ids of the hub and buckets are left to the run."""
    config = planned.config
    try:
        check_functions(config.judge, config.reward.terms, config.evaluation.judges)
        _check_checkpoint("policy.init", config.policy.init, read_sizes)
        for part in (config.judge, *config.judge.also):
            if (checkpoint := part.checkpoint) is not None:
                read = read_qwen_config if part.kind == "qwen_vl" else None
                _check_checkpoint(f"judge.{part.kind}.checkpoint", checkpoint, read)
    except InputError as error:
        raise InputError(f"variant {planned.variant!r}: {error}") from error


def _check_checkpoint(key: str, name: str, read: Callable[[Path], object] | None) -> None:
    """read: raises InputError where the folder is not such a checkpoint."""
    if is_url(name):
        return
    if name not in EMBEDDED_CHECKPOINTS and not Path(name).exists():
        if is_hub_id(name):
            return
        raise InputError(f"{key} is {name}, which is not there; make it first, or name another")
    try:
        if read is not None:
            read(find_checkpoint(name))
    except InputError as error:
        raise InputError(f"{key}: {error}") from error


def count_start(planned: PlannedRun) -> None:
    """Note that a run is started, once more perhaps: if this process is killed, its time is lost,
    and that shows."""
    starts, ended = _read_times(planned) or (1, [])  # the first start, or one after a loss
    _write_times(planned, starts + 1, ended)


def add_minutes(planned: PlannedRun, minutes: float) -> None:
    """Add the minutes of the start that was counted last, evaluations and compilation included."""
    starts, ended = _read_times(planned) or (0, [])
    _write_times(planned, starts, [*ended, minutes])


def took(planned: PlannedRun) -> float | None:
    """The minutes that a run took over all its starts; None where that is not known."""
    starts, ended = _read_times(planned) or (1, [])
    return sum(ended) if ended and starts == len(ended) else None


def _write_times(planned: PlannedRun, starts: int, ended: Sequence[float]) -> None:
    path = planned.root / _TIME_NAME
    write_json_atomic(path, {"starts": starts, "minutes": list(ended)}, parents=True)


def _read_times(planned: PlannedRun) -> tuple[int, list[float]] | None:
    """Number of starts, and the minutes of those that ended; (0, []) before the first; None for a
    damaged file, which is no reason to train the run again."""
    path = planned.root / _TIME_NAME
    if not path.is_file():
        return 0, []
    try:
        value = read_json_object(path)
    except InputError:
        return None
    starts, ended = value.get("starts"), value.get("minutes")
    if not isinstance(ended, list):  # as earlier versions wrote: the sum
        starts, ended = 1, [ended]
    good = all(isinstance(m, int | float) and not isinstance(m, bool) and m >= 0 for m in ended)
    return (starts, ended) if isinstance(starts, int) and good else None


def expected_minutes(
    planned: PlannedRun, known: Sequence[tuple[PlannedRun, float]]
) -> float | None:
    """The minutes of a run: the mean of finished ones of its variant, else what the ablation
    states, else by the steps of finished ones of its condition; None where nothing is known.

    known: finished runs with their minutes.
    """
    same = [minutes for run, minutes in known if run.group == planned.group]
    if same:
        return sum(same) / len(same)
    if planned.stated_minutes is not None:
        return planned.stated_minutes
    alike = [(run, minutes) for run, minutes in known if run.condition == planned.condition]
    if not alike:
        return None
    a_step = sum(minutes / run.config.steps for run, minutes in alike) / len(alike)
    return a_step * planned.config.steps


def list_runs(runs: Sequence[PlannedRun], at_once: int, others: Sequence[PlannedRun] = ()) -> str:
    """A line a run with its state and minutes, then what is left in hours. `others`: runs whose
    minutes count too, if they are finished."""
    everything = {run.root: run for run in (*runs, *others)}
    times = {root: took(run) for root, run in everything.items() if run.is_finished}
    known = [(everything[root], minutes) for root, minutes in times.items() if minutes]
    finished = {run.root: times[run.root] for run in runs if run.root in times}
    lines, left, unknown = [], 0.0, 0
    for planned in runs:
        if planned.root in finished:
            minutes = finished[planned.root]
            state = "finished" if minutes is None else f"finished in {minutes:.1f} min"
        else:
            minutes = expected_minutes(planned, known)
            state = "begun" if RunDir(planned.root).config.is_file() else "to train"
            state += ", minutes not known" if minutes is None else f", {minutes:.1f} min"
            left += minutes or 0.0
            unknown += minutes is None
        lines.append(f"{planned.name}: {planned.config.steps} steps, {state}")
    total = f"{len(runs)} runs, {len(finished)} finished"
    if 0 < unknown == len(runs) - len(finished):
        total += "; how long the others take is known once one is finished"
    elif len(finished) < len(runs):
        hours = f"about {left / at_once / 60:.1f} hours left with {at_once} at once"
        total += f"; {unknown} of unknown length, the others {hours}" if unknown else f"; {hours}"
    return "\n".join([*lines, total])
