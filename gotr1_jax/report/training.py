"""The page of a run that learns from examples: an image tokenizer, a policy (SFT), a judge."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.images import open_image
from gotr1_jax.io.reading import read_bytes, read_text
from gotr1_jax.report.cards import TextSpan, image_uri, plan_spans
from gotr1_jax.report.charts import Chart, ChartSpec, build_chart
from gotr1_jax.report.load import RunData, choose_evenly
from gotr1_jax.report.metrics import Metrics, is_number
from gotr1_jax.report.provenance import describe_provenance
from gotr1_jax.report.scores import ReportSample
from gotr1_jax.report.settings import read_settings
from gotr1_jax.report.shell import render_shell
from gotr1_jax.trainer.run_dir import RunDir

# Sections of a configuration that only a run of rewards has.
_OF_REWARDS = {"rollout", "reward"}
_UNIT = (0.0, 1.0)
_MOST_CAPTIONS, _MOST_STEPS = 24, 8  # of samples on the page
_MOST_ROWS = 200  # of the table of summary.json, and of changed settings
_LONGEST = 200  # characters of a value
_UNTIL = re.compile(r"config_until_step_(\d+)\.yaml")
# What the numbers of summary.json mean, where their names do not say it.
_MEANINGS = {
    "psnr": "of the held-out images after encoding and decoding, dB",
    "perplexity": "of the codes in the held-out images",
    "codes_used": "codes that occur in the held-out images",
    "judge_error": "share of decoded images of which the judge says that the caption is false",
    "judge_error_truth": "the same of the images as rendered",
    "box_iou": "mean IoU of planned and detected boxes in decoded images",
    "box_iou_truth": "the same in the images as rendered",
    "unstable_frac": "share of equal cells whose codes differ when other cells do",
    "unstable_frac_objects": "the same of cells that are not of one color",
}
_SPECS: Mapping[str, tuple[ChartSpec, ...]] = {
    "Loss": (
        ChartSpec("loss", (("", "loss"),)),
        ChartSpec(
            "nats a token",
            tuple((name, f"nats/{name}") for name in ("text", "image", "boi", "answer")),
        ),
        ChartSpec(
            "right",
            tuple((name, f"right/{name}") for name in ("answers", "tokens")),
            covers=_UNIT,
            subtitle="share of the batch",
        ),
        ChartSpec("PSNR", (("", "psnr"),), subtitle="of the batch, dB"),
        ChartSpec("pixels", (("absolute", "l1"), ("squared", "l2")), subtitle="mean errors"),
        ChartSpec("commitment", (("", "commitment"),)),
        ChartSpec("consistency", (("", "consistency"),), subtitle="of cells that look the same"),
        ChartSpec("codes of cells", (("", "nats"),), subtitle="nats"),
        ChartSpec("true codes chosen", (("", "accuracy"),), covers=_UNIT),
        ChartSpec("perplexity of the codes", (("", "perplexity"),), subtitle="of the batch"),
        ChartSpec("codes in use", (("", "used_frac"),), covers=_UNIT, subtitle="share"),
    ),
    "Optimizer and machine": (
        ChartSpec("gradient norm", (("", "grad_norm"),)),
        ChartSpec("learning rate", (("", "lr"),)),
        ChartSpec("skipped updates", (("", "updates/skipped"),), subtitle="not finite"),
        ChartSpec("goodput", (("", "time/goodput"),), covers=_UNIT),
    ),
}


@dataclass(frozen=True)
class CaptionOverSteps:
    """The first sample of a caption at each chosen step: (step, data URI, plan), ascending."""

    caption: str
    samples: tuple[tuple[int, str, tuple[TextSpan, ...]], ...]


def is_supervised(run: RunData) -> bool:
    """Whether a run learned from examples: it has no rewards, and its settings know none."""
    if run.before or run.after or any(name.startswith("reward/") for name in run.metrics.values):
        return False
    sections = {name.partition(".")[0] for name in read_settings(run.config_text)}
    return "optimizer" in sections and not _OF_REWARDS & sections


def training_charts(metrics: Metrics) -> dict[str, list[Chart]]:
    """Charts by section; what no section names comes last."""
    sections: dict[str, list[Chart]] = {}
    values = {name: v for name, v in metrics.values.items() if not _is_constant_zero(v)}
    metrics = Metrics(metrics.steps, values)
    known = {name for specs in _SPECS.values() for spec in specs for _, name in spec.series}
    rest = tuple(ChartSpec(name, (("", name),)) for name in values if name not in known)
    for title, specs in {**_SPECS, "Other metrics": rest}.items():
        charts = [chart for spec in specs if (chart := build_chart(spec, metrics)) is not None]
        if charts:
            sections[title] = charts
    return sections


def _is_constant_zero(values: np.ndarray) -> bool:
    """Whether a part of the loss is not part of this run's."""
    return bool((values[np.isfinite(values)] == 0).all())


def summary_rows(summary: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str, str]]:
    """(name, value, meaning) of everything in summary.json but the steps and their time."""
    rows: list[tuple[str, str, str]] = []
    for name, value in summary.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            rows += summary_rows(value, f"{path}/")
        elif path not in ("steps", "seconds"):
            shown = "–" if value is None else str(value)
            if is_number(value):
                shown = f"{value:.6g}"
            rows.append((path, shown[:_LONGEST], _MEANINGS.get(path, "")))
    return rows[:_MOST_ROWS]


def over_steps(steps: Mapping[int, Sequence[ReportSample]]) -> list[CaptionOverSteps]:
    """The first sample of each caption over the steps, of at most so many captions and steps."""
    order = sorted(steps)
    found: dict[str, list[tuple[int, str, tuple[TextSpan, ...]]]] = {}
    for i in choose_evenly(len(order), _MOST_STEPS) if order else ():
        first = {s.record.caption: s.record for s in reversed(steps[order[i]])}
        for caption, record in reversed(first.items()):
            if caption in found or len(found) < _MOST_CAPTIONS:
                shown = (order[i], image_uri(record.image), plan_spans(record.plan_text))
                found.setdefault(caption, []).append(shown)
    return [CaptionOverSteps(caption, tuple(samples)) for caption, samples in found.items()]


def setting_changes(root: Path, config_text: str, problems: list[str]) -> list[tuple[int, str]]:
    """(last step under the former one, setting with both values) of changes during the run."""
    former = sorted(
        (int(match[1]), path)
        for path in root.iterdir()
        if (match := _UNTIL.fullmatch(path.name)) is not None
    )
    texts = []
    for _, path in former:
        try:
            texts.append(read_settings(read_text(path)))
        except InputError as error:
            problems.append(str(error))
            return []
    changes = []
    for (step, _), old, new in zip(former, texts, [*texts[1:], read_settings(config_text)]):
        for name in dict.fromkeys((*old, *new)):
            values = [str(side.get(name, "–"))[:_LONGEST] for side in (old, new)]
            if values[0] != values[1]:
                changes.append((step, f"{name} {values[0]} → {values[1]}"))
    return changes[:_MOST_ROWS]


def render_training(root: Path, run: RunData, facts: Sequence[tuple[str, str]]) -> bytes:
    """The HTML of the page, UTF-8.

    Args:
        root: the run directory, with reconstructions.png where the run made one.
        run: what was read of it.
        facts: of the top of the page.
    """
    problems, folder = list(run.problems), RunDir(root)
    sheet = None
    if folder.reconstructions.is_file():
        try:
            open_image(folder.reconstructions)  # an error where it is no image
            data = base64.b64encode(read_bytes(folder.reconstructions)).decode("ascii")
            sheet = f"data:image/png;base64,{data}"
        except InputError as error:
            problems.append(str(error))
    differing = ""
    if folder.differing.is_file():
        try:
            differing = read_text(folder.differing)
        except InputError as error:
            problems.append(str(error))
    return render_shell(
        "training.html.j2",
        run.name,
        run=run,
        facts=facts,
        sheet=sheet,
        rows=summary_rows(run.summary),
        sections=training_charts(run.metrics),
        captions=over_steps(run.steps),
        changes=setting_changes(root, run.config_text, problems),
        differing=differing,
        problems=problems,
        provenance=describe_provenance(run.starts, run.config_text),
    )
