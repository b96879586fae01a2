"""Watched terms: judges of the evaluations alone, whose scores no reward ever sees."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gotr1_jax.config import to_plain
from gotr1_jax.errors import ConfigError, InputError, RunError, UnreachableError
from gotr1_jax.rewards.base import (
    Judge,
    JudgeRequest,
    commonest_cause,
    is_group_wise,
    stack_scores,
    term_meanings,
)
from gotr1_jax.rewards.factory import JudgeMaker, term_judge_makers
from gotr1_jax.rewards.terms import TermConfig, check_names

if TYPE_CHECKING:
    from jax.sharding import Mesh

_log = logging.getLogger(__name__)


class WatchedJudge:
    """A judge of one watched term. Where it fails its scores are NaN, and the run goes on.

    Attributes:
        name, term: as in the configuration.
        group_wise: whether it must see all samples of a caption at once.
    """

    def __init__(
        self, name: str, term: TermConfig, make: Callable[[], Judge], is_needed: bool = True
    ) -> None:
        """make: the judge; unless `is_needed`, a server that does not answer (UnreachableError)
        is a warning, and is asked again by each evaluation."""
        self.name, self.term, self._make = name, term, make
        self._judge: Judge | None = None
        self._causes: Counter[str] = Counter()
        try:
            self._judge = make()
        except UnreachableError as error:
            if is_needed:
                raise
            _log.warning("evaluation.judges.%s has no scores until its server answers: %s",
                         name, error)  # fmt: skip
        by_server = term.http is not None and term.http.group_wise
        self.group_wise = by_server if self._judge is None else is_group_wise(self._judge)

    @property
    def identity(self) -> str | None:
        """What its scores depend on besides the sample; None until its server has answered."""
        if self._judge is None:
            return None
        return f"{self._judge.identity} {json.dumps(to_plain(self.term), sort_keys=True)}"

    @property
    def meaning(self) -> str:
        """One line: the configuration's, else the judge's own, where it is known."""
        judge = self._judge
        own = {} if judge is None else term_meanings(judge)
        return self.term.meaning or next(iter(own.values()), "")

    def score(self, requests: Sequence[JudgeRequest]) -> np.ndarray:
        """weight * clip(scale * score) of N samples, float32 (N,); NaN where there is none."""
        if not requests:
            return np.zeros(0, np.float32)
        try:
            judge = self._reachable_judge()
            results = judge.judge(requests)
        except (InputError, RunError) as error:
            self._causes[str(error)] += len(requests)
            return np.full(len(requests), np.nan, np.float32)
        values_N = self.term.value(stack_scores(results, judge.terms[:1])[judge.terms[0]])
        lost = [r.rationale for r, value in zip(results, values_N) if not np.isfinite(value)]
        self._causes.update(" ".join(reason.split()) for reason in lost)
        return np.where(np.isfinite(values_N), values_N, np.nan).astype(np.float32)

    def _reachable_judge(self) -> Judge:
        """The judge, made now where its server did not answer until now."""
        if self._judge is None:
            if self._causes:  # once an evaluation: its tries and time-outs take a while
                raise UnreachableError(next(iter(self._causes)))
            self._judge = self._make()
        return self._judge

    def pop_failures(self) -> tuple[int, str]:
        """How many samples of this process had no score since the last call, and why most."""
        causes, self._causes = self._causes, Counter()
        return causes.total(), commonest_cause(causes) if causes else ""


def check_watched(terms: Mapping[str, TermConfig]) -> None:
    """ConfigError, beginning with `judges`, for terms that cannot be watched."""
    try:
        check_names(terms)
    except ConfigError as error:
        raise ConfigError(f"judges holds {error}") from error
    for name, term in terms.items():
        if term.source == "judge":
            raise ConfigError(
                f"judges.{name} is of the judge that the run trains on; give it a source of its "
                "own (python, ...). Evaluations hold all terms of that judge anyway"
            )
        if term.soft_tifa is not None:
            raise ConfigError(
                f"judges.{name} asks the judge that the run trains on; watch a term with a source "
                "of its own (python, http, ...)"
            )
        if term.pairwise is not None:
            raise ConfigError(
                f"judges.{name} is a win rate between samples of one caption, whose mean is always "
                "0.5; watch a term that scores each sample"
            )


def make_watched(
    terms: Mapping[str, TermConfig],
    cache_folder: Path,
    mesh: Mesh | None = None,
    needed: Collection[str] = (),
) -> tuple[WatchedJudge, ...]:
    """The judges of `evaluation.judges`, with a cache of their own.

    InputError or RunError, with the term, where a judge cannot be made. Only of the `needed` terms
    a server that does not answer is such an error.
    """
    makers, judges = term_judge_makers(terms, JudgeMaker(mesh, cache_folder)), []
    for name, term in terms.items():
        try:
            judges.append(WatchedJudge(name, term, makers[name], name in needed))
        except (InputError, RunError) as error:
            kind = InputError if isinstance(error, InputError) else RunError
            raise kind(f"evaluation.judges.{name}: {error}") from error
    return tuple(judges)


def watched_identity(judges: Sequence[WatchedJudge]) -> dict[str, str]:
    """What evaluations with these judges are measured under, besides all else; nothing of those
    whose server has not answered yet."""
    known = {judge.name: judge.identity for judge in judges}
    return {f"watched term {name}": text for name, text in known.items() if text is not None}


def warn_unscored(name: str, judges: Sequence[WatchedJudge]) -> None:
    """A line for each watched term that samples of this process lack in the evaluation `name`."""
    for judge in judges:
        lost, cause = judge.pop_failures()
        if lost:
            _log.warning(
                "%s: the watched term %s could not be scored for %d samples; most often: %s",
                name, judge.name, lost, cause,
            )  # fmt: skip
