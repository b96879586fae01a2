"""Win rates within the samples of a caption (Pref-GRPO, arXiv 2508.20751, section 3).

A pointwise judge gives samples that are almost equal almost equal scores, whose small differences
the normalisation of GRPO makes large. A win rate compares each sample with others of its caption:
only which one is better counts, not by how much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from gotr1_jax.config import CheckedConfig
from gotr1_jax.errors import ConfigError, InputError
from gotr1_jax.limits import Range
from gotr1_jax.rewards.base import (
    Judge,
    JudgeRequest,
    JudgeResult,
    group_places,
    introduce,
    needs_main_thread,
    pop_metrics,
    stack_scores,
)
from gotr1_jax.rewards.composite import request_key
from gotr1_jax.rewards.expression import parse_expression
from gotr1_jax.rewards.preferences import (
    Pair,
    PairComparison,
    compare_scores,
    draw_pairs,
    win_rates,
)


@dataclass(frozen=True)
class PairwiseConfig(CheckedConfig):
    """The win rate of a sample against other samples of its caption."""

    # questions: the configured judge, http or qwen_vl, is shown two images at once, every
    # pair in both orders; scores: the sample with the higher value of `of` wins, a tie is 0.5.
    by: Literal["questions", "scores"] = "questions"
    # For scores: an expression of other terms' scores as their judges give them, as "pi * ri".
    of: str = ""
    # Samples that each is compared with; 0: all others of its caption, G * (G - 1) / 2 pairs.
    opponents: Annotated[int, Range("[0, 10000]")] = 0
    # For questions: show the plans too.
    plans: bool = False

    @property
    def stage(self) -> str:
        """What the win rate judges, see `rewards.stages`."""
        return "image" if self.by == "questions" else "both"

    def check(self) -> None:
        """An expression where, and only where, scores are compared."""
        if (self.by == "scores") != bool(self.of.strip()):
            needed = "give" if self.by == "scores" else "leave out"
            raise ConfigError(
                f"of is {self.of!r} and by is {self.by}; {needed} the expression whose higher "
                "value wins"
            )
        if self.of:
            try:
                names = parse_expression(self.of).names
            except ConfigError as error:
                raise ConfigError(f"of {error}") from error
            if not names:
                raise ConfigError(f"of is {self.of!r}, equal for all samples; name a term")
        if self.plans and self.by == "scores":
            raise ConfigError("plans are shown in questions only; leave it out, or set by to it")


class Comparer(Protocol):
    """Says which samples of pairs are better."""

    @property
    def identity(self) -> str: ...

    def compare(
        self, requests: Sequence[JudgeRequest], pairs: Sequence[Pair]
    ) -> list[PairComparison]:
        """One comparison for each pair of places in `requests`."""
        ...


class ScoreComparer:
    """Compares samples by an expression of another judge's scores."""

    def __init__(self, judge: Judge, of: str) -> None:
        """ConfigError where `of` is no expression, InputError where it names other terms."""
        self._judge, self._expression = judge, parse_expression(of)
        unknown = [name for name in self._expression.names if name not in judge.terms]
        if unknown:
            raise InputError(
                f"of is {of!r}, and the judge does not score {', '.join(unknown)}; it scores "
                f"{', '.join(judge.terms)}"
            )
        self.identity = f"scores {of!r} of {judge.identity}"
        self.needs_main_thread = needs_main_thread(judge)

    def introduce(self) -> None:
        """See `base.introduce`."""
        introduce(self._judge)

    def compare(
        self, requests: Sequence[JudgeRequest], pairs: Sequence[Pair]
    ) -> list[PairComparison]:
        """One comparison for each pair; NaN where one of the two has no score."""
        scores = stack_scores(self._judge.judge(requests), self._judge.terms)
        values = self._expression.evaluate(scores).tolist()
        found = [compare_scores(values[i], values[j]) for i, j in pairs]
        return [PairComparison(value, value) for value in found]


class PairwiseJudge:
    """Scores one term: the win rate of each sample in its group.

    Samples of a group with another caption are never compared. A sample without any comparison,
    as the only one of its caption, is NaN.

    Attributes:
        terms: the name of the term.
        identity: of the comparer, and the number of opponents.
        group_wise: True.
        meanings: one line about the term.
    """

    group_wise = True

    def __init__(self, term: str, comparer: Comparer, opponents: int = 0) -> None:
        self.terms: tuple[str, ...] = (term,)
        self._comparer, self._opponents = comparer, opponents
        self.needs_main_thread = needs_main_thread(comparer)
        self._pairs = self._ties = self._missing = 0
        self.identity = f"pairwise opponents={opponents or 'all'} by {comparer.identity}"
        self.meanings = {term: "share of the other samples of its caption that it beats"}

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        """One result for each request; all comparisons are made in one call."""
        groups = group_places((r.group, r.caption) for r in requests)
        drawn = [self._draw([requests[i] for i in places]) for places in groups]
        pairs = [(p[i], p[j]) for p, inside in zip(groups, drawn) for i, j in inside]
        found = self._comparer.compare(requests, pairs) if pairs else []
        self._count(found)
        rates = win_rates(len(requests), pairs, [c.value for c in found])
        met: list[list[tuple[int, float, str]]] = [[] for _ in requests]
        for (i, j), comparison in zip(pairs, found):
            value = comparison.value
            met[i].append((j, value, comparison.texts[0]))
            met[j].append((i, 1 - value, comparison.texts[1]))
        number = {place: n for places in groups for n, place in enumerate(places)}
        return [self._result(float(rates[i]), met[i], number) for i in range(len(requests))]

    def introduce(self) -> None:
        """See `base.introduce`."""
        introduce(self._comparer)

    def pop_metrics(self) -> dict[str, float]:
        """Metrics since the last call, `judge/pairwise/TERM/NAME`.

        `pairs`; of these `tie_frac` and `no_answer_frac`; and those of the comparer.
        """
        metrics = {"pairs": float(self._pairs)} | pop_metrics(self._comparer)
        if self._pairs:
            metrics["tie_frac"] = self._ties / self._pairs
            metrics["no_answer_frac"] = self._missing / self._pairs
        self._pairs = self._ties = self._missing = 0
        return {f"judge/pairwise/{self.terms[0]}/{name}": v for name, v in metrics.items()}

    def _draw(self, group: Sequence[JudgeRequest]) -> list[Pair]:
        """The pairs of a group, the same for the same samples, wherever the judge is served."""
        if not self._opponents or self._opponents >= len(group) - 1:
            return draw_pairs(len(group), 0, "")
        return draw_pairs(len(group), self._opponents, " ".join(map(request_key, group)))

    def _count(self, found: Sequence[PairComparison]) -> None:
        values = [comparison.value for comparison in found]
        self._pairs += len(values)
        self._ties += sum(value == 0.5 for value in values)
        self._missing += sum(map(math.isnan, values))

    def _result(
        self, rate: float, met: Sequence[tuple[int, float, str]], number: Mapping[int, int]
    ) -> JudgeResult:
        (term,) = self.terms
        parts = [
            f"{'unread' if math.isnan(value) else f'{value:.2g}'} against {number[other]}"
            for other, value, _ in met
        ]
        line = ", ".join(parts) or "no other sample of the caption"
        texts = [f"shown before {number[j]}: {text}" for j, _, text in met if text]
        return JudgeResult(
            {term: rate},
            rationale=f"{term} {'failed' if math.isnan(rate) else f'{rate:.2f}'}: {line}",
            raw_answers={term: "\n".join(texts)} if texts else {},
        )
