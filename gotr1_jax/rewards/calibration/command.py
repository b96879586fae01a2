"""`gotr1 judge --calibrate LABELS.jsonl --out FOLDER`: how well a judge agrees with labels.

Writes calibration.json, calibration.md, calibration.svg and samples.jsonl (a line for each sample
with its labels and the scores of every round) and prints the table.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from gotr1_jax.errors import InputError, RunError
from gotr1_jax.io.files import atomic_write, plain_json, write_json_atomic
from gotr1_jax.io.write_errors import raise_write_errors
from gotr1_jax.rewards.base import Judge
from gotr1_jax.rewards.calibration.labels import Labels
from gotr1_jax.rewards.calibration.measure import (
    Judged,
    TermCalibration,
    ask_judge,
    calibrate_term,
    check_terms,
)
from gotr1_jax.rewards.calibration.output import plot, table

MOST_REPEATS = 100
_THRESHOLD = re.compile(r"([A-Za-z_]\w*)=(.+)", re.ASCII)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a calibration, among those of `gotr1 judge`."""
    parser.add_argument(
        "--calibrate", type=Path, metavar="LABELS",
        help="compare the judge with labels: a file of JSON lines, or what gotr1 judge wrote by "
        "another judge; --out is then a folder",
    )  # fmt: skip
    parser.add_argument(
        "--repeats", type=int, metavar="N",
        help="with --calibrate: ask everything N times, without a cache, to see whether answers "
        "are the same (1)",
    )  # fmt: skip
    parser.add_argument(
        "--threshold", nargs="+", metavar="TERM=LABEL",
        help="with --calibrate: the label from which on a sample counts as a positive one",
    )  # fmt: skip


def check_options(options: argparse.Namespace) -> None:
    """InputError for options of a calibration without one, and for values that cannot be."""
    if options.calibrate is None:
        for name in ("repeats", "threshold"):
            if getattr(options, name) is not None:
                raise InputError(f"--{name} belongs to --calibrate; give that too")
        return
    if options.repeats is not None and not 1 <= options.repeats <= MOST_REPEATS:
        raise InputError(f"--repeats is {options.repeats}; use 1 to {MOST_REPEATS}")
    if options.check is not None:
        raise InputError("--check tries a function and --calibrate a judge; give one of the two")
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out {options.out} is a file; with --calibrate it is a folder")


def read_thresholds(given: Sequence[str] | None) -> dict[str, float]:
    """The thresholds of the command line, by term."""
    found = {}
    for text in given or ():
        match = _THRESHOLD.fullmatch(text)
        try:
            value = float(match[2]) if match else math.nan
        except ValueError:
            value = math.nan
        if match is None or not math.isfinite(value):
            raise InputError(f"--threshold holds {text!r}; write it as TERM=LABEL, as pi=0.5")
        found[match[1]] = value
    return found


def calibrate(
    judge: Judge, labels: Labels, thresholds: dict[str, float], out: Path, repeats: int, batch: int
) -> list[TermCalibration]:
    """Asks the judge, compares, and writes and prints the results.

    InputError as of `check_terms`; RunError where files cannot be written, and, after they are,
    where no sample could be scored.
    """
    labels = replace(labels, thresholds={**labels.thresholds, **thresholds})
    names = check_terms(judge, labels)
    samples = [labelled.sample for labelled in labels.samples]
    samples += [side for pair in labels.pairs for side in (pair.first, pair.second)]
    with raise_write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    judged = ask_judge(judge, samples, repeats, batch)
    terms = [
        calibrate_term(
            name, labels.samples, labels.pairs, judged.scores[name], labels.thresholds.get(name)
        )
        for name in names
    ]
    _write(out, judge, labels, judged, terms)
    if all(np.isnan(judged.scores[name]).all() for name in names):
        raise RunError(f"the judge could not score any of {len(samples)} samples; see {out}")
    return terms


def _write(
    out: Path, judge: Judge, labels: Labels, judged: Judged, terms: Sequence[TermCalibration]
) -> None:
    samples = [labelled.sample for labelled in labels.samples]
    points = [
        [
            (score, label)
            for labelled, score in zip(labels.samples, judged.scores[term.term][0].tolist())
            if not math.isnan(score)
            and not math.isnan(label := labelled.labels.get(term.term, math.nan))
        ]
        for term in terms
    ]
    lines = [
        {
            "id": sample.name,
            "caption": sample.caption,
            "image": str(sample.image),
            "labels": labels.samples[i].labels,
            "scores": {t.term: judged.scores[t.term][:, i] for t in terms},
        }
        for i, sample in enumerate(samples)
    ]
    count = len(samples) + 2 * len(labels.pairs)
    text = table(terms, judged, count, "Judge against labels")
    values: dict[str, Any] = {
        "judge": judge.identity,
        "samples": len(samples),
        "pairs": len(labels.pairs),
        "rounds": judged.rounds,
        "seconds": judged.seconds,
        "counts": judged.counts,
        "position_bias": judged.position_bias,
        "terms": {term.term: _to_json(term) for term in terms},
    }
    atomic_write(
        out / "samples.jsonl",
        "".join(json.dumps(plain_json(line), ensure_ascii=False) + "\n" for line in lines),
    )
    atomic_write(out / "calibration.svg", plot(terms, points))
    atomic_write(out / "calibration.md", text)
    write_json_atomic(out / "calibration.json", values)
    print(text)
    print(out)


def _to_json(term: TermCalibration) -> dict[str, Any]:
    """Its fields by name, intervals and bins as objects."""
    values = {**asdict(term), "bins": [b._asdict() for b in term.bins]}
    for name in ("pearson", "within", "spearman", "auc", "pair_agreement"):
        values[name] = getattr(term, name)._asdict()
    return values
