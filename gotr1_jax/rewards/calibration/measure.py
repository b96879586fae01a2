"""A judge's scores beside labels: asked here, compared here."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.parallel.progress import Progress
from gotr1_jax.rewards.base import Judge, pop_metrics, stack_scores
from gotr1_jax.rewards.calibration import statistics
from gotr1_jax.rewards.calibration.labels import LabelledPair, LabelledSample, Labels
from gotr1_jax.rewards.calibration.statistics import Bin, Interval
from gotr1_jax.rewards.judging import read_requests, sample_batches
from gotr1_jax.rewards.preferences import compare_scores
from gotr1_jax.rewards.stored_samples import StoredSample

_NONE = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Judged:
    """R rounds of scores (R, N) by term, of the same N samples, and what they cost.

    Attributes:
        seconds: of all rounds. rounds: their number.
        counts: the judge's own metrics that are numbers of something, summed over all rounds:
            questions, tokens_in, tokens_out.
        position_bias: of a judge that compares: the share of the pairs decided in both orders
            whose answers follow the order; None for others.
    """

    scores: Mapping[str, np.ndarray]
    seconds: float
    rounds: int
    counts: Mapping[str, float]
    position_bias: float | None = None


@dataclass(frozen=True)
class TermCalibration:
    """One term of a judge against its labels; NaN where something is not defined.

    Attributes:
        labelled: samples with a label. unscored: the share of these without a score.
        pearson, within, spearman, auc: with 95 % intervals. `within`: the linear correlation
            that is left without the means of groups (samples of one caption of one step), which
            is all that GRPO sees. threshold: the label from which on a sample is positive for
            `auc`; None without one.
        mean_error, mean_absolute_error: of score - label.
        calibration_error: mean distance of mean score and mean label in `bins`.
        verbosity: by "caption" and "plan", the correlation of the error with its number of words,
            with the label taken from both.
        same_answer, repeat_std: of repeated questions (`statistics.agreement`).
        pairs: labelled pairs that were decided and scored; pair_agreement: the share in which
            the judge prefers the same sample, its ties counted half.
        notes: why a value is not defined.
    """

    term: str
    labelled: int = 0
    unscored: float = math.nan
    pearson: Interval = _NONE
    within: Interval = _NONE
    spearman: Interval = _NONE
    auc: Interval = _NONE
    threshold: float | None = None
    mean_error: float = math.nan
    mean_absolute_error: float = math.nan
    calibration_error: float = math.nan
    bins: tuple[Bin, ...] = ()
    verbosity: Mapping[str, float] = field(default_factory=dict)
    same_answer: float = math.nan
    repeat_std: float = math.nan
    pairs: int = 0
    pair_agreement: Interval = _NONE
    notes: tuple[str, ...] = ()


def ask_judge(judge: Judge, samples: Sequence[StoredSample], repeats: int, batch: int) -> Judged:
    """The judge's scores of samples, asked `repeats` times.

    InputError, before the first question, where an image cannot be read.
    """
    for sample in samples:
        sample.read_request()
    scores = {term: np.full((repeats, len(samples)), math.nan) for term in judge.terms}
    counts, seconds = Counter[str](), 0.0
    biases: list[tuple[float, float]] = []
    batches = sample_batches(judge, samples, batch)
    pop_metrics(judge)
    with Progress("calibrate", repeats * len(samples), unit="sample") as progress:
        done = 0
        for number in range(repeats):
            for places in batches:
                requests = read_requests([samples[i] for i in places])
                start = time.perf_counter()
                found = stack_scores(judge.judge(requests), judge.terms)
                seconds += time.perf_counter() - start
                for term in judge.terms:
                    scores[term][number, places] = found[term]
                metrics = pop_metrics(judge)
                counts.update(_amounts(metrics))
                biases += _biases(metrics)
                done += len(places)
                progress.update(done)
    weight = sum(pairs for _, pairs in biases)
    bias = sum(value * pairs for value, pairs in biases) / weight if weight else None
    return Judged(scores, seconds, repeats, dict(counts), bias)


def _amounts(metrics: Mapping[str, float]) -> Counter[str]:
    found = Counter[str]()
    for name, value in metrics.items():
        last = name.rpartition("/")[2]
        if last in ("questions", "tokens_in", "tokens_out"):
            found[last] += value  # type: ignore[assignment]
    return found


def _biases(metrics: Mapping[str, float]) -> list[tuple[float, float]]:
    """(position bias, pairs) of each judge that compares."""
    return [
        (value, metrics.get(name.removesuffix("position_bias") + "decided_pairs", 1.0))
        for name, value in metrics.items()
        if name.endswith("/position_bias")
    ]


def check_terms(judge: Judge, labels: Labels) -> tuple[str, ...]:
    """The terms that are compared: labelled, and given by the judge; of pairs all of the judge's.

    InputError for a required term that it does not give, and where there is none to compare.
    """
    missing = [t for t in labels.terms if t in labels.required and t not in judge.terms]
    given = ", ".join(judge.terms)
    if missing:
        raise InputError(
            f"the labels hold {', '.join(missing)}, which the judge does not give; it gives "
            f"{given}: take them out of the labels, or choose another judge"
        )
    found = [t for t in judge.terms if labels.pairs or t in labels.terms]
    if not found:
        raise InputError(
            f"the labels are of {', '.join(labels.terms)} and the judge gives {given}; there is "
            "nothing to compare"
        )
    unknown = [t for t in labels.thresholds if t not in found]
    if unknown:
        raise InputError(
            f"a threshold is given for {', '.join(unknown)}, which is not compared; compared are "
            f"{', '.join(found)}"
        )
    return tuple(found)


def calibrate_term(
    term: str, samples: Sequence[LabelledSample], pairs: Sequence[LabelledPair],
    scores_RN: np.ndarray, threshold: float | None,
) -> TermCalibration:  # fmt: skip
    """One term's figures from its scores (R, N), of the samples and then of each pair's two.

    All but the agreement of repeated questions are of the first round, as a judge is used.
    """
    values: dict[str, Any] = {"term": term, "threshold": threshold}
    first, notes = scores_RN[0], list[str]()
    if len(scores_RN) > 1:
        values |= zip(("same_answer", "repeat_std"), statistics.agreement(scores_RN))
    labels = np.array([s.labels.get(term, math.nan) for s in samples], np.float64)
    labelled = ~np.isnan(labels)
    if labelled.any():
        of_samples = first[: len(samples)]
        known = labelled & ~np.isnan(of_samples)
        values["labelled"] = int(labelled.sum())
        values["unscored"] = float(np.isnan(of_samples[labelled]).mean())
        chosen = [s for s, is_known in zip(samples, known) if is_known]
        values |= _compare(of_samples[known], labels[known], chosen, threshold, notes)
    elif samples:
        notes.append("no sample has a label")
    if pairs:
        values |= _compare_pairs(first[len(samples) :], pairs, notes)
    return TermCalibration(**values, notes=tuple(notes))


def _compare(
    scores: np.ndarray, labels: np.ndarray, samples: Sequence[LabelledSample],
    threshold: float | None, notes: list[str],
) -> dict[str, Any]:  # fmt: skip
    if len(scores) < statistics.LEAST:
        notes.append(f"{len(scores)} samples have label and score: too few for correlations")
    elif statistics.is_constant(labels):
        notes.append(f"all labels are {labels[0]:g}: correlations are not defined")
    elif statistics.is_constant(scores):
        notes.append(f"all scores are {scores[0]:g}: correlations are not defined")
    if not len(scores):
        return {}
    captions = [s.sample.caption for s in samples]
    groups = [s.sample.group for s in samples]
    own, wanted = (statistics.less_group_means(values, groups) for values in (scores, labels))
    bins = statistics.reliability(scores, labels)
    errors = scores - labels
    words = {
        "caption": [len(caption.split()) for caption in captions],
        "plan": [len(s.sample.plan_text.split()) for s in samples],
    }
    return {
        "pearson": statistics.with_interval(statistics.pearson, scores, labels, captions),
        "within": statistics.with_interval(statistics.pearson, own, wanted, captions),
        "spearman": statistics.with_interval(statistics.spearman, scores, labels, captions),
        "auc": _auc(scores, labels, captions, threshold, notes),
        "mean_error": float(errors.mean()),
        "mean_absolute_error": float(np.abs(errors).mean()),
        "calibration_error": statistics.calibration_error(bins),
        "bins": tuple(bins),
        "verbosity": {
            name: statistics.partial_correlation(errors, np.asarray(n, np.float64), labels)
            for name, n in words.items()
        },
    }


def _auc(
    scores: np.ndarray, labels: np.ndarray, captions: Sequence[str], threshold: float | None,
    notes: list[str],
) -> Interval:  # fmt: skip
    if threshold is None and not set(labels.tolist()) <= {0.0, 1.0}:
        notes.append("AUC needs a threshold of the label (--threshold): labels are not 0 and 1")
        return _NONE
    positive = labels >= (1.0 if threshold is None else threshold)
    if positive.all() or not positive.any():
        notes.append(f"AUC is not defined: {'all' if positive.any() else 'no'} labels are positive")
        return _NONE
    return statistics.with_interval(statistics.auc, scores, positive.astype(np.float64), captions)


def _compare_pairs(
    scores: np.ndarray, pairs: Sequence[LabelledPair], notes: list[str]
) -> dict[str, Any]:
    """`scores` holds two values a pair. Pairs that people call a tie are left out."""
    agrees, captions = [], []
    for pair, (first, second) in zip(pairs, scores.reshape(-1, 2).tolist(), strict=True):
        value = compare_scores(first, second)
        if pair.first_wins != 0.5 and not math.isnan(value):
            agrees.append(value if pair.first_wins else 1 - value)
            captions.append(pair.first.caption)
    if not agrees:
        notes.append("no labelled pair is both decided and scored")
        return {}
    values = np.asarray(agrees)
    mean = statistics.with_interval(lambda x, _: float(x.mean()), values, values, captions)
    return {"pairs": len(agrees), "pair_agreement": mean}
