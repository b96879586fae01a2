"""Several judges as one, and a judge whose results are kept."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.plan import Box
from gotr1_jax.rewards.base import (
    Judge,
    JudgeRequest,
    JudgeResult,
    group_places,
    introduce,
    is_group_wise,
    needs_main_thread,
    pop_metrics,
    result_from_json,
    result_to_json,
    term_meanings,
)
from gotr1_jax.vlm_engine.answer_cache import AnswerCache


class CompositeJudge:
    """Terms from different judges as one result.

    Attributes:
        terms: those of all judges, in their order.
        identity: the judges' identities, and which terms each gives.
        group_wise, needs_main_thread: whether any of them is, or does.
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
        self.group_wise = any(is_group_wise(judge) for judge, _ in judges)
        self.needs_main_thread = any(needs_main_thread(judge) for judge, _ in judges)
        self.meanings = {
            t: text for j, terms in judges for t, text in term_meanings(j).items() if t in terms
        }
        self.identity = " + ".join(f"{j.identity} [{', '.join(t)}]" for j, t in self._judges)

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        """One result for each request; the judges run one after the other."""
        if not requests:
            return []
        return self.merge([judge.judge(requests) for judge in self.parts])

    @property
    def parts(self) -> tuple[Judge, ...]:
        """The judges, each of which may be asked alone."""
        return tuple(judge for judge, _ in self._judges)

    def merge(self, by_judge: Sequence[Sequence[JudgeResult]]) -> list[JudgeResult]:
        """One result for each request, of those of each of `parts`."""
        return [self._merge(results) for results in zip(*by_judge)]

    def introduce(self) -> None:
        """See `base.introduce`."""
        for judge, _ in self._judges:
            introduce(judge)

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
        for result, (judge, terms) in zip(results, self._judges):
            scores |= {t: result.scores.get(t, math.nan) for t in terms}
            raw_answers |= {t: result.raw_answers[t] for t in terms if t in result.raw_answers}
            # Boxes of the judge whose scores rest on them, else of the first that has any.
            if not detections or set(terms) & set(getattr(judge, "detecting_terms", ())):
                detections = tuple(result.detections)
        rationale = " | ".join(r.rationale for r in results if r.rationale)
        return JudgeResult(scores, detections, rationale, raw_answers)


class SharedJudge:
    """A judge that several others use: asked once for the same samples.

    It keeps the last results, and with them the samples, until the next call or the last of
    `uses` calls.
    """

    def __init__(self, judge: Judge, uses: int) -> None:
        self._judge, self._uses = judge, uses
        self._last: tuple[list[JudgeRequest], list[JudgeResult]] = ([], [])
        self._left = 0
        self.terms: tuple[str, ...] = judge.terms
        self.identity = judge.identity
        self.group_wise = is_group_wise(judge)
        self.needs_main_thread = needs_main_thread(judge)
        self.meanings = term_meanings(judge)

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        """One result for each request; equal means the very same objects in the same order."""
        known, results = self._last
        if (
            not self._left
            or len(known) != len(requests)
            or any(a is not b for a, b in zip(known, requests))
        ):
            results = self._judge.judge(requests)
            self._left = self._uses
        self._left -= 1
        self._last = (list(requests), results) if self._left else ([], [])
        return results

    def introduce(self) -> None:
        """See `base.introduce`."""
        introduce(self._judge)

    def pop_metrics(self) -> dict[str, float]:
        """The judge's own metrics."""
        return pop_metrics(self._judge)


class CachedJudge:
    """A judge whose results are kept by caption, plan, image and the judge's identity.

    Those of a group-wise judge are kept by all samples of the group besides; where one of them is
    not known, all are judged again.

    For judges that do not ask an engine (`multimodal` keeps the engine's answers instead). Results
    with a NaN are not kept, so that they are scored again.
    """

    def __init__(self, judge: Judge, cache: AnswerCache) -> None:
        self._judge, self._cache = judge, cache
        self.terms: tuple[str, ...] = judge.terms
        self.identity = judge.identity
        self.group_wise = is_group_wise(judge)
        self.needs_main_thread = needs_main_thread(judge)
        self.meanings = term_meanings(judge)

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        """One result for each request; only those that are not kept are judged."""
        keys = request_keys(requests, self._judge)
        known = {k: r for k in keys if (r := _read(self._cache.get(k), self.terms)) is not None}
        if self.group_wise:
            return self._judge_groups(requests, keys, known)
        new = {k: r for k, r in zip(keys, requests) if k not in known}
        # A judge of one's own need not know what to do without a sample.
        judged = dict(zip(new, self._judge.judge(list(new.values())))) if new else {}
        self._keep(judged)
        return [judged[k] if k in judged else known[k] for k in keys]

    def _judge_groups(
        self, requests: Sequence[JudgeRequest], keys: Sequence[str], known: dict[str, JudgeResult]
    ) -> list[JudgeResult]:
        groups = group_places(request.group for request in requests)
        new = [i for group in groups if any(keys[i] not in known for i in group) for i in group]
        judged = dict(zip(new, self._judge.judge([requests[i] for i in new]))) if new else {}
        self._keep({keys[i]: result for i, result in judged.items()})
        return [judged[i] if i in judged else known[key] for i, key in enumerate(keys)]

    def _keep(self, judged: Mapping[str, JudgeResult]) -> None:
        whole = {k: r for k, r in judged.items() if not any(map(math.isnan, r.scores.values()))}
        self._cache.add({k: result_to_json(r) for k, r in whole.items()})

    def introduce(self) -> None:
        """See `base.introduce`."""
        introduce(self._judge)

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


def request_keys(requests: Sequence[JudgeRequest], judge: Judge) -> list[str]:
    """For each sample `request_key`; for a group-wise judge with its place in its group and the
    contents of the whole group, which its score depends on."""
    keys = [request_key(request, judge) for request in requests]
    if not is_group_wise(judge):
        return keys
    of_group = list(keys)
    for places in group_places(request.group for request in requests):
        members = " ".join(keys[i] for i in places)
        for number, i in enumerate(places):
            of_group[i] = hashlib.sha256(f"{number} of {members}".encode()).hexdigest()[:40]
    return of_group


def request_key(request: JudgeRequest, judge: Judge | None = None) -> str:
    """40 hex digits of a sample's caption, plan and image, and of a judge and its terms if any."""
    shape = request.image.shape
    by = ("", ()) if judge is None else (judge.identity, judge.terms)
    text = repr((*by, request.caption, request.plan.text, shape))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    digest.update(np.ascontiguousarray(request.image).data)
    return digest.hexdigest()[:40]
