"""Several judges as one, and a judge whose results are kept."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.plan import Box
from gotr1_jax.rewards.base import (
    Judge,
    JudgeRequest,
    JudgeResult,
    pop_metrics,
    result_from_json,
    result_to_json,
)
from gotr1_jax.vlm_engine.answer_cache import AnswerCache


class CompositeJudge:
    """Terms from different judges as one result.

    Attributes:
        terms: those of all judges, in their order.
        identity: the judges' identities, and which terms each gives.
    """

    def __init__(self, judges: Sequence[tuple[Judge, Sequence[str]]]) -> None:
        """judges: each with the terms that are taken from it.

        InputError for a term that a judge does not score, or that two judges give.
        """
        if not judges:
            raise InputError("no judge is given; name at least one")
        taken: list[str] = []
        for judge, terms in judges:
            for term in terms:
                if term not in judge.terms:
                    raise InputError(
                        f"the judge {judge.identity} does not score {term}; it scores "
                        f"{', '.join(judge.terms)}"
                    )
                if term in taken:
                    raise InputError(f"two judges give {term}; take it from one of them")
                taken.append(term)
        self.terms: tuple[str, ...] = tuple(taken)
        self._judges = [(judge, tuple(terms)) for judge, terms in judges]
        self.identity = " + ".join(f"{j.identity} [{', '.join(t)}]" for j, t in self._judges)

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        """One result for each request; the judges run one after the other."""
        if not requests:
            return []
        by_judge = [judge.judge(requests) for judge, _ in self._judges]
        return [self._merge(results) for results in zip(*by_judge)]

    def pop_metrics(self) -> dict[str, float]:
        """The metrics of all judges since the last call."""
        metrics: dict[str, float] = {}
        for judge, _ in self._judges:
            metrics |= pop_metrics(judge)
        return metrics

    def _merge(self, results: Sequence[JudgeResult]) -> JudgeResult:
        scores: dict[str, float] = {}
        raw_answers: dict[str, str] = {}
        detections: tuple[tuple[str, Box], ...] = ()
        for result, (_, terms) in zip(results, self._judges):
            scores |= {t: result.scores.get(t, math.nan) for t in terms}
            raw_answers |= {t: result.raw_answers[t] for t in terms if t in result.raw_answers}
            if "ri" in terms or not detections:  # the judge that scores ri looked for the objects
                detections = tuple(result.detections)
        rationale = " | ".join(r.rationale for r in results if r.rationale)
        return JudgeResult(scores, detections, rationale, raw_answers)


class CachedJudge:
    """A judge whose results are kept by caption, plan, image and the judge's identity.

    For judges that do not ask an engine (`multimodal` keeps the engine's answers instead). Results
    with a NaN are not kept, so that they are scored again.
    """

    def __init__(self, judge: Judge, cache: AnswerCache) -> None:
        self._judge, self._cache = judge, cache
        self.terms: tuple[str, ...] = judge.terms
        self.identity = judge.identity

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        """One result for each request; only those that are not kept are judged."""
        keys = [request_key(request, self._judge) for request in requests]
        known = {k: r for k in keys if (r := _read(self._cache.get(k), self.terms)) is not None}
        new = {k: r for k, r in zip(keys, requests) if k not in known}
        # A judge of one's own need not know what to do without a sample.
        judged = dict(zip(new, self._judge.judge(list(new.values())))) if new else {}
        whole = {k: r for k, r in judged.items() if not any(map(math.isnan, r.scores.values()))}
        self._cache.add({k: result_to_json(r) for k, r in whole.items()})
        return [judged[k] if k in judged else known[k] for k in keys]

    def pop_metrics(self) -> dict[str, float]:
        """The judge's own metrics."""
        return pop_metrics(self._judge)


def _read(value: Any, terms: Sequence[str]) -> JudgeResult | None:
    """A kept result with a score for each term; None for anything else that a file may hold."""
    try:
        result = result_from_json(value)
        whole = all(math.isfinite(result.scores[term]) for term in terms)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    return result if whole else None


def request_key(request: JudgeRequest, judge: Judge) -> str:
    """40 hex digits of a sample's caption, plan and image and of the judge and its terms."""
    shape = request.image.shape
    text = repr((judge.identity, judge.terms, request.caption, request.plan.text, shape))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    digest.update(np.ascontiguousarray(request.image).data)
    return digest.hexdigest()[:40]
