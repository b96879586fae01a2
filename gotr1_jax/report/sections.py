"""The charts of the page, by section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from gotr1_jax.io.strict_yaml import parse_word
from gotr1_jax.report.charts import Chart, ChartSpec, build_charts_of
from gotr1_jax.report.evaluations import is_of_evaluation
from gotr1_jax.report.metrics import Metrics, is_number
from gotr1_jax.report.settings import read_settings
from gotr1_jax.report.terms import is_usual, reward_names

UNIT, A_TENTH = (0.0, 1.0), (0.0, 0.1)
_OF_BOXES = ("plan/boxes", "plan/parsed_frac")


def _modalities(
    title: str, name: str, subtitle: str = "", covers: tuple[float, float] | None = None
) -> ChartSpec:
    series = (("plan", f"{name}/text"), ("image", f"{name}/image"))
    return ChartSpec(title, series, covers, subtitle)


def _rare(title: str, name: str, subtitle: str = "") -> ChartSpec:
    """A share that is usually small: its chart reaches to a tenth at least."""
    return ChartSpec(title, (("", name),), A_TENTH, subtitle)


def _full(title: str, name: str, subtitle: str = "") -> ChartSpec:
    return ChartSpec(title, (("", name),), UNIT, subtitle)


def _entropy(targets: Mapping[str, float]) -> tuple[ChartSpec, ...]:
    """A chart for each modality, since their entropies differ widely, and the coefficients."""
    curves = tuple(
        ChartSpec(
            f"entropy of the {title}",
            (("", f"policy/entropy/{name}"),),
            subtitle="nats a token",
            level=("target", targets[name]) if name in targets else None,
        )
        for title, name in (("plan", "text"), ("image", "image"))
    )
    coefficients = _modalities(
        "entropy coefficients α", "policy/entropy_coefficient", "above 0: entropy is rewarded"
    )
    return (*curves, coefficients)


FIXED: Mapping[str, tuple[ChartSpec, ...]] = {
    "Policy and plans": (
        _modalities("KL to the reference", "policy/kl"),
        _modalities("clipped fraction", "policy/clip_frac"),
        _modalities("largest ratio", "policy/ratio_max"),
        _modalities("|Δ log-prob| of the sampler", "policy/logp_diff", "against teacher forcing"),
        _modalities("importance weight", "policy/importance_mean", "mean, as used"),
        _modalities("largest importance weight", "policy/importance_max", "before truncation"),
        _modalities("cut importance weights", "policy/importance_cut_frac", "share of the tokens"),
        _modalities("std of the advantages", "advantage/std", covers=UNIT),
        _modalities("largest advantage", "advantage/abs_max", "without its sign"),
        _modalities("advantages of 0", "advantage/zero_frac", "share of the samples", UNIT),
        ChartSpec("gradient norm", (("", "grad_norm"),)),
        ChartSpec("learning rate", (("", "lr"),)),
        ChartSpec("std of the total", (("", "reward/total/std"),)),
        _full("zero-variance groups", "reward/frac_zero_std", "all rewards of a caption equal"),
        _full("unused samples", "rollout/wasted_frac", "used by no update"),
        ChartSpec(
            "dynamic sampling",
            (("rounds", "rollout/rounds"), ("missing", "rollout/missing_groups")),
            subtitle="rounds; groups missing at the end",
        ),
        ChartSpec("plan length (tokens)", (("", "plan/length"),)),
        ChartSpec("boxes in a plan", (("", "plan/boxes"),)),
        ChartSpec(
            "plans",
            (("parsed", "plan/parsed_frac"), ("truncated", "plan/truncated_frac")),
            covers=UNIT,
        ),
        _rare("score-like text", "plan/score_like_text", "share of the plans that hold some"),
        ChartSpec(
            "distinct in a caption",
            (
                ("plans", "diversity/distinct_plans"),
                ("layouts", "diversity/distinct_layouts"),
                ("image tokens", "diversity/images"),
            ),
            covers=UNIT,
            subtitle="shares",
        ),
        ChartSpec(
            "commonest",
            (
                ("layout of a caption", "diversity/commonest_layout"),
                ("boxes of all", "diversity/commonest_boxes"),
            ),
            covers=UNIT,
            subtitle="share of the plans",
        ),
        ChartSpec(
            "seconds a step",
            tuple((part, f"time/{part}") for part in ("step", "rollout", "update", "reward")),
        ),
        ChartSpec("samples per second", (("", "samples_per_second"),)),
    ),
    "Judge": (
        _rare("could not be scored", "judge/failed_frac", "samples that lack a term"),
        _rare("unreadable answers", "judge/unread_frac", "of the questions, after a second try"),
        ChartSpec(
            "unreadable answers, by kind",
            tuple((kind, f"judge/unread_frac/{kind}") for kind in ("score", "boxes", "verdict")),
            covers=A_TENTH,
        ),
        _rare("asked twice", "judge/asked_twice_frac", "of the questions"),
        _rare("no answer", "judge/no_answer_frac", "of the questions"),
        ChartSpec("questions a step", (("", "judge/questions"),)),
        _full("cached answers", "judge/cached_frac", "of the questions"),
        ChartSpec("seconds of the judge", (("", "judge/seconds"),), subtitle="a step"),
    ),
}


def entropy_targets(config_text: str) -> dict[str, float]:
    """The target entropies in a run's configuration, by modality, in nats a token."""
    settings = read_settings(config_text)
    words = {name: settings.get(f"entropy.{name}_target") for name in ("text", "image")}
    try:
        found = {name: parse_word(word) for name, word in words.items() if isinstance(word, str)}
    except ValueError:
        return {}
    return {name: float(value) for name, value in found.items() if is_number(value)}


def _rewards(
    values: Mapping[str, np.ndarray], meanings: Mapping[str, str]
) -> tuple[ChartSpec, ...]:
    """A chart for the total and each term; of usual scores all have the same axis."""
    specs = []
    for name in reward_names(values, meanings):
        metric = f"reward/{name}/mean"
        covers = UNIT if is_usual(values[metric]) else None
        specs.append(ChartSpec(name, (("", metric),), covers, meanings.get(name, "")))
    return tuple(specs)


def build_charts(
    metrics: Metrics, targets: Mapping[str, float], meanings: Mapping[str, str] | None = None
) -> dict[str, list[Chart]]:
    """Charts by section; a metric that no section names gets its own chart at the end.

    `targets`: of `entropy_targets`; `meanings` of `RunData`.
    """
    return draw_sections(section_specs(metrics.values, targets, meanings or {}), metrics)


def section_specs(
    values: Mapping[str, np.ndarray], targets: Mapping[str, float], meanings: Mapping[str, str]
) -> dict[str, list[ChartSpec]]:
    """What the charts of these metrics show; those of boxes are left out where no plan has any."""
    if not np.any(values.get("plan/boxes", 1.0)):
        values = {n: v for n, v in values.items() if n not in _OF_BOXES}
    specs = {"Rewards": _rewards(values, meanings), "Entropy": _entropy(targets), **FIXED}
    known = {name for members in specs.values() for spec in members for _, name in spec.series}
    rest = [n for n in values if n not in known and not _is_spread(n) and not is_of_evaluation(n)]
    specs["Other metrics"] = tuple(ChartSpec(name, (("", name),)) for name in rest)

    def of_values(spec: ChartSpec) -> ChartSpec:
        return replace(spec, series=tuple(line for line in spec.series if line[1] in values))

    return {section: [of_values(spec) for spec in members] for section, members in specs.items()}


def draw_sections(
    specs: Mapping[str, Sequence[ChartSpec]], metrics: Metrics | Mapping[str, Metrics]
) -> dict[str, list[Chart]]:
    """The charts that have a value by section, see `build_charts_of`."""
    drawn = {section: build_charts_of(members, metrics) for section, members in specs.items()}
    return {section: charts for section, charts in drawn.items() if charts}


def _is_spread(name: str) -> bool:
    return name.startswith("reward/") and name.endswith("/std")
