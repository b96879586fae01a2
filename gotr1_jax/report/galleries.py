"""What the galleries of a run's page show: held-out captions over the steps, and training."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from gotr1_jax.report.charts import format_value
from gotr1_jax.report.gallery import Column, Gallery, Item, ShownSample
from gotr1_jax.report.load import EVALUATIONS, RunData
from gotr1_jax.report.scores import ReportSample
from gotr1_jax.trainer.samples import followed_name, step_folder

BEFORE, AFTER = "before", "after"
MAX_CAPTIONS = 160  # held-out captions of a gallery
_Slot = tuple[str, int, int]  # caption, number of the sample, which of equal ones


def followed_stages(run: RunData) -> dict[str, tuple[str, Sequence[ReportSample]]]:
    """Samples of the held-out captions by stage, in the order of training, with their folders."""
    stages = {BEFORE: (EVALUATIONS[0], run.before)}
    stages |= {f"step {step}": (followed_name(step), s) for step, s in run.followed.items()}
    stages[AFTER] = EVALUATIONS[1], run.after
    return {stage: (folder, samples) for stage, (folder, samples) in stages.items() if samples}


def held_out_gallery(run: RunData) -> Gallery:
    """The captions of the evaluations over the steps, beside what they were before training.

    A run without evaluations has the captions that its first and last sampled steps share.
    """
    stages = followed_stages(run)
    if len(stages) > 1:
        later = [stage for stage in stages if stage != BEFORE]
        title = "Held-out captions over the steps"
        if later == [AFTER]:
            title = "Held-out captions, before and after"
        return Gallery(title, _items({run.name: stages}, later, BEFORE), tuple(later))
    if len(run.steps) < 2:
        return Gallery("", ())
    ends = {
        f"step {step}": (_folder(step), _one_each(run.steps[step]))
        for step in (min(run.steps), max(run.steps))
    }
    first, last = ends
    title = f"The same captions at {first} and {last}"
    items = _items({run.name: ends}, [last], first)
    both = tuple(i for i in items if len(i.columns) == 2 and all(c.samples[0] for c in i.columns))
    return Gallery(title, both, (last,))


def side_by_side_gallery(runs: Mapping[str, RunData]) -> Gallery:
    """The held-out captions of several runs, by their labels, at the same stage."""
    stages = {label: followed_stages(run) for label, run in runs.items()}
    known = {stage for own in stages.values() for stage in own}
    order = sorted(known, key=_place)
    items = _items(stages, order, None)
    return Gallery("The same captions side by side", items, tuple(order))


def training_gallery(run: RunData) -> Gallery:
    """The samples of each caption of the sampled steps, best first."""
    items = [
        item
        for stage, (step, samples) in enumerate(run.steps.items())
        for item in _groups(samples, stage, f"step {step}", _folder(step))
    ]
    note = "Best sample first."
    if run.num_sampled_steps > len(run.steps):
        note += f" {len(run.steps)} of {run.num_sampled_steps} sampled steps are on this page."
    return Gallery(
        "Samples while training", tuple(items), tuple(f"step {step}" for step in run.steps), note
    )


def _folder(step: int) -> str:
    return step_folder(Path(), step).name


def _place(stage: str) -> tuple[int, int]:
    if stage in (BEFORE, AFTER):
        return (0 if stage == BEFORE else 2), 0
    return 1, int(stage.removeprefix("step "))


def _items(
    runs: Mapping[str, Mapping[str, tuple[str, Sequence[ReportSample]]]],
    stages: Sequence[str],
    compared: str | None,
) -> tuple[Item, ...]:
    """Items of all captions; `compared` is the stage that a fixed column of its own shows."""
    slots: dict[_Slot, None] = {}
    found: dict[tuple[str, str], dict[_Slot, ShownSample]] = {}
    for label, own in runs.items():
        prefix = f"{label}: " if len(runs) > 1 else ""
        for stage, (folder, samples) in own.items():
            shown = _by_slot(samples, folder, prefix, stage)
            slots |= dict.fromkeys(shown)
            found[label, stage] = shown
    items = []
    for slot in list(slots)[:MAX_CAPTIONS]:
        columns = []
        for label in runs:
            at = [found.get((label, stage), {}).get(slot) for stage in stages]
            first = None if compared is None else found.get((label, compared), {}).get(slot)
            if compared is not None and first is not None:
                columns.append(Column(compared, [first] * len(stages), is_fixed=True))
            columns.append(Column(label if len(runs) > 1 else "", at))
        items.append(Item(slot[0], columns=tuple(columns)))
    return tuple(items)


def _by_slot(
    samples: Iterable[ReportSample], folder: str, prefix: str, stage: str
) -> dict[_Slot, ShownSample]:
    seen: Counter[tuple[str, int]] = Counter()
    found: dict[_Slot, ShownSample] = {}
    for sample in samples:
        name = sample.record.caption, sample.record.sample_index
        found[*name, seen[name]] = _shown(sample, folder, prefix, stage)
        seen[name] += 1
    return found


def _shown(
    sample: ReportSample, folder: str, prefix: str, stage: str, is_trained_on: bool = False
) -> ShownSample:
    stem = PurePosixPath(sample.record.image_name).stem
    return ShownSample(f"{prefix}{folder}/{stem}", f"{prefix}{stage}", sample, is_trained_on)


def _one_each(samples: Sequence[ReportSample]) -> list[ReportSample]:
    """The first sample of every caption: chosen by its number, not by its score."""
    return list({s.record.caption: s for s in reversed(samples)}.values())[::-1]


def _groups(samples: Iterable[ReportSample], stage: int, place: str, folder: str) -> list[Item]:
    """The samples of a step by caption, each group ordered from the highest total down."""
    by_caption: dict[tuple[int, str], list[ReportSample]] = defaultdict(list)
    for sample in samples:
        by_caption[sample.record.caption_index, sample.record.caption].append(sample)
    return [
        Item(
            caption,
            cards=tuple(
                _shown(s, folder, "", place, True) for s in sorted(members, key=_worst_last)
            ),
            stage=stage,
            note=f"{place} · {describe_totals(members)}",
        )
        for (_, caption), members in by_caption.items()
    ]


def describe_totals(samples: Iterable[ReportSample], name: str = "total") -> str:
    """The mean, lowest and highest total of a caption's samples."""
    totals = [t for s in samples if math.isfinite(t := s.record.total)] or [math.nan]
    mean = format_value(sum(totals) / len(totals))
    if len(totals) == 1:
        return f"{name} {mean}"
    low, high = format_value(min(totals)), format_value(max(totals))
    return f"{name} {mean} on average, {low} to {high}"


def _worst_last(sample: ReportSample) -> tuple[bool, float, int]:
    record = sample.record
    return math.isnan(record.total), -record.total, record.sample_index
