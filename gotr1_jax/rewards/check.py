"""`gotr1 judge --check file.py:function`: a function of one's own, tried on a few samples."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from gotr1_jax.errors import GotR1Error
from gotr1_jax.plan import parse_plan
from gotr1_jax.rewards.base import JudgeRequest, JudgeResult
from gotr1_jax.rewards.python import PythonJudge

# Two samples of the embedded model for each of four captions of the shapes world, as drawn by
# gotr1 train grpo --config configs/shapes_grpo.yaml --seed 1 --steps 1 --samples_every 1 \
#   --rollout.captions_per_step 4 --rollout.samples_per_caption 2 --update.micro_batch 4 \
#   --evaluation.captions 1 --evaluation.judges '{}' \
#   --judge.terms '[sem, spa, ri, pi, verdict]' --reward.terms '[sem, spa, ri, pi]'
# into samples/step_000001 of its run.
SAMPLES = Path(__file__).resolve().parents[1] / "assets" / "samples"
_ROUNDING = 1e-5  # relative: sums in another order


@dataclass
class CheckReport:
    """What was found: lines to read, and mistakes, each once."""

    lines: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)

    def add_mistake(self, text: str) -> None:
        """Add one, unless it is known."""
        if text not in self.mistakes:
            self.mistakes.append(text)


def try_function(
    function: str, terms: Sequence[str], requests: Sequence[JudgeRequest]
) -> CheckReport:
    """Runs a function as a run would, and in the ways in which runs differ from each other."""
    report = CheckReport()
    try:
        judge = PythonJudge(function, terms)
    except GotR1Error as error:
        report.add_mistake(str(error))
        return report
    start = time.perf_counter()
    first = _run(judge, requests, report)
    seconds = (time.perf_counter() - start) / len(requests)
    if first is None:
        _find_blamed(judge, requests, report)
        return report
    for term in judge.terms:
        report.lines += _describe(term, [result.scores[term] for result in first])
        if any(judge.meanings.values()):
            report.lines.append(f"  meaning: {judge.meanings[term]}")
    report.lines.append(f"{seconds:.2g} seconds a sample ({len(requests)} at once)")
    if _check_repeated(judge, requests, first, report):
        _check_order(judge, requests, first, report)  # else its values are random in any order
    odd = replace(requests[0], plan=parse_plan(""), image=np.zeros_like(requests[0].image))
    if _run(judge, [odd] if not judge.group_wise else [odd, odd], report) is None:
        report.mistakes[-1] += " (of a sample with an empty plan and a black image)"
    return report


def _find_blamed(judge: PythonJudge, requests: Sequence[JudgeRequest], report: CheckReport) -> None:
    """Says of which samples alone the function fails too, if not of all."""
    trial = CheckReport()
    failed = [i for i, r in enumerate(requests) if _run(judge, [r], trial) is None]
    if 0 < len(failed) < len(requests):
        report.mistakes[-1] += f" (alone it fails for sample {', '.join(map(str, failed))})"


def _run(
    judge: PythonJudge, requests: Sequence[JudgeRequest], report: CheckReport
) -> list[JudgeResult] | None:
    try:
        return judge.judge(requests)
    except GotR1Error as error:
        report.add_mistake(str(error))
        return None


def _describe(term: str, values: Sequence[float]) -> list[str]:
    known = [value for value in values if not math.isnan(value)]
    lines = [f"{term}: {', '.join(f'{value:.4g}' for value in values)}"]
    if not known:
        return [*lines, "  no sample could be scored: all values are NaN"]
    failed = 1 - len(known) / len(values)
    lines.append(f"  from {min(known):.4g} to {max(known):.4g}; NaN: {failed:.0%}")
    if min(known) == max(known):
        lines.append("  all values are equal: nothing can be learned from them")
    if min(known) < 0 or max(known) > 1:
        lines.append("  not between 0 and 1: set scale and clip where other terms are")
    return lines


def _check_repeated(
    judge: PythonJudge,
    requests: Sequence[JudgeRequest],
    first: Sequence[JudgeResult],
    report: CheckReport,
) -> bool:
    """Whether the same samples have the same values when they come once more."""
    again = _run(judge, requests, report)
    if again is None:
        return False
    same = _same(judge, first, again)
    report.lines.append(
        "the same samples again: the same values"
        if same
        else "the same samples again: OTHER values, so evaluations and resumed runs do not repeat"
    )
    return same


def _check_order(
    judge: PythonJudge,
    requests: Sequence[JudgeRequest],
    first: Sequence[JudgeResult],
    report: CheckReport,
) -> None:
    """In another order, and (unless whole groups must be given) each sample alone."""
    turned = _run(judge, requests[::-1], report)
    ways = {"in another order": None if turned is None else turned[::-1]}
    if not judge.group_wise:
        alone = [_run(judge, [request], report) for request in requests]
        ways["each alone"] = [r[0] for r in alone if r is not None]
    advice = "score each by itself, or set group_wise = True on the function"
    if judge.group_wise:
        advice = "let nothing depend on the place of a sample in its group, ties included"
    for way, results in ways.items():
        if results is None or len(results) != len(first):
            continue
        if _same(judge, first, results):
            report.lines.append(f"{way}: the same values")
        else:
            report.add_mistake(
                f"judge {judge.function} gives other values when the samples come {way}; {advice}"
            )


def _same(judge: PythonJudge, first: Sequence[JudgeResult], other: Sequence[JudgeResult]) -> bool:
    pairs = [(a.scores[t], b.scores[t]) for a, b in zip(first, other) for t in judge.terms]
    ones, others = np.array(pairs).reshape(-1, 2).T
    return len(first) == len(other) and np.allclose(
        ones, others, rtol=_ROUNDING, atol=1e-9, equal_nan=True
    )
