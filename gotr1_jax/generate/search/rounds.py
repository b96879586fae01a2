"""The search itself, in batches: each round draws plans, or images, of all that still need one.

A sample is searched in `attempts` (best_of; else one). An attempt draws plans until one passes
(verify), moves its boxes (repair), and draws images of that plan until one passes (repaint); see
docs/search.md. This is the plan resampling ("verify-then-generate") and the geometric plan repair
of arXiv 2608.21713, and repainting as in Janus-Pro-R1.

Draw number d of a caption's sample has the random key of (seed, d, caption, sample): plan k of
attempt n is draw n * K + k, its image r draw n * R + r. So draw 0 is the sample of the same
command without --search, and no result depends on batches, devices or other captions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.generate.batches import SampleTask
from gotr1_jax.generate.search.attempt import (
    Attempt,
    DrawnImage,
    best_by,
    best_plan,
    search_record,
)
from gotr1_jax.generate.search.config import SearchConfig
from gotr1_jax.generate.search.verify import NO_RULES, PlanVerifier, caption_goal
from gotr1_jax.generate.tasks import GivenPlan, plan_ids, read_plan
from gotr1_jax.generate.write_results import GeneratedSample
from gotr1_jax.plan import Plan
from gotr1_jax.plan.repair import repair_layout
from gotr1_jax.rewards.base import Judge, JudgeRequest, stack_scores
from gotr1_jax.tokenizers.janus import TextTokenizer

_IN_FLIGHT = 2  # batches of attempts at once: one of plans or of images is then always full


class Drawing(Protocol):
    """Draws plans and images of at most `batch_size` rows; the rows' `draw` gives their keys."""

    @property
    def batch_size(self) -> int: ...

    def draw_plans(self, rows: Sequence[SampleTask]) -> list[list[int]]:
        """Token ids of a plan for each row, BOI last."""
        ...

    def draw_images(self, rows: Sequence[SampleTask]) -> list[tuple[list[int], np.ndarray]]:
        """Image ids and pixels of each row's own plan."""
        ...


@dataclass(frozen=True)
class SearchJudges:
    """Judges, None where not needed or not configured.

    Attributes:
      plans: scores plans that no rule can verify.
      images: scores each image of repaint.
      attempts: scores the images that the attempts of best_of have kept, all of a sample in one
        group, for `total`.
      total: scores float32 (B,) by term -> their total (B,).
    """

    plans: Judge | None = None
    images: Judge | None = None
    attempts: Judge | None = None
    total: Callable[[Mapping[str, np.ndarray]], np.ndarray] | None = None


class Search:
    """Searches samples; `plans_only`: no images are drawn."""

    def __init__(
        self, config: SearchConfig, drawing: Drawing, tokenizer: TextTokenizer,
        judges: SearchJudges, max_plan_tokens: int, plans_only: bool = False,
    ) -> None:  # fmt: skip
        self._config, self._drawing, self._tokenizer = config, drawing, tokenizer
        self._verifier = PlanVerifier(config, judges.plans)
        self._judges = judges
        self._longest, self._plans_only = max_plan_tokens, plans_only

    def __call__(self, rows: Iterable[SampleTask]) -> Iterator[tuple[SampleTask, GeneratedSample]]:
        """The kept sample of each row, in the order in which they are done."""
        waiting = (Attempt(row, n) for row in rows for n in range(self._config.attempts))
        most = self._drawing.batch_size
        flight: list[Attempt] = []
        done: dict[tuple[int, int], list[Attempt]] = {}
        while True:
            while len(flight) < _IN_FLIGHT * most and (new := next(waiting, None)) is not None:
                flight.append(new)
            if not flight:
                return
            unplanned = [attempt for attempt in flight if not attempt.plan_ids]
            planned = [attempt for attempt in flight if attempt.plan_ids]
            if len(planned) >= most or not unplanned:
                self._paint(planned[:most])
            else:
                self._plan(unplanned[:most])
            over = [attempt for attempt in flight if self._is_over(attempt)]
            flight = [attempt for attempt in flight if not self._is_over(attempt)]
            for attempt in over:
                key = attempt.row.task.index, attempt.row.index
                done.setdefault(key, []).append(attempt)
            whole = [key for key, found in done.items() if len(found) == self._config.attempts]
            yield from self._keep([done.pop(key) for key in whole])

    def _is_over(self, attempt: Attempt) -> bool:
        if self._plans_only:
            return bool(attempt.plan_ids)
        return attempt.image_index is not None

    def _plan(self, attempts: Sequence[Attempt]) -> None:
        """Draw one more plan of each; choose, and repair, where that is the last."""
        most = self._config.most_plans
        rows = [replace(a.row, draw=a.number * most + len(a.plans)) for a in attempts]
        drawn = self._drawing.draw_plans(rows)
        if self._config.uses("verify"):
            plans = [self.read_plan(ids) for ids in drawn]
            verdicts = self._verifier([(a.row.task.caption, p) for a, p in zip(attempts, plans)])
            for attempt, verdict in zip(attempts, verdicts):
                attempt.verdicts.append(verdict)
        for attempt, ids in zip(attempts, drawn):
            attempt.plans.append(ids)
            last = attempt.verdicts[-1] if attempt.verdicts else None
            # A caption that nothing can verify is not drawn again: no later plan would be better.
            if last is None or last.passed or last.by == "nothing" or len(attempt.plans) == most:
                self._choose(attempt)

    def _choose(self, attempt: Attempt) -> None:
        attempt.plan_index = best_plan(attempt.verdicts)
        attempt.plan_ids = attempt.plans[attempt.plan_index]
        if not self._config.uses("repair"):
            return
        goal = caption_goal(attempt.row.task.caption)
        if goal is None:
            attempt.repair_note = NO_RULES
            return
        plan = self.read_plan(attempt.plan_ids)
        repaired = repair_layout(goal, plan, self._config.margin)
        attempt.repair_note = "" if repaired.holds else "; ".join(repaired.reasons)
        if not repaired.moved:
            return
        try:
            given = GivenPlan(repaired.plan.text)
            attempt.plan_ids = plan_ids(given, self._tokenizer, self._longest)
        except InputError as error:
            attempt.repair_note = str(error)
            return
        attempt.note_moves(plan, repaired.plan, repaired.moved)

    def _paint(self, attempts: Sequence[Attempt]) -> None:
        """Draw one more image of each; keep the best where that is the last."""
        most = self._config.most_images
        rows = [
            replace(a.row, draw=a.number * most + len(a.images), plan_ids=a.plan_ids)
            for a in attempts
        ]
        drawn = [DrawnImage(*found) for found in self._drawing.draw_images(rows)]
        if self._judges.images is not None:
            results = self._judges.images.judge(
                [self._request(a, p) for a, p in zip(attempts, drawn)]
            )
            drawn = [replace(p, scores=dict(r.scores)) for p, r in zip(drawn, results)]
        for attempt, image in zip(attempts, drawn):
            attempt.images.append(image)
            score = self._image_score(image)
            passed = not self._config.uses("repaint") or score >= self._config.image_score
            if passed or len(attempt.images) == most:
                attempt.image_index = best_by([self._image_score(p) for p in attempt.images])

    def _image_score(self, image: DrawnImage) -> float:
        return image.scores.get(self._config.image_term, math.nan)

    def _request(self, attempt: Attempt, image: DrawnImage, group: int = 0) -> JudgeRequest:
        plan = self.read_plan(attempt.plan_ids)
        return JudgeRequest(attempt.row.task.caption, plan, image.pixels, group)

    def _keep(
        self, samples: Sequence[list[Attempt]]
    ) -> Iterator[tuple[SampleTask, GeneratedSample]]:
        """The best attempt of each sample."""
        samples = [sorted(attempts, key=lambda a: a.number) for attempts in samples]
        if samples and self._judges.attempts is not None:
            self._compare(samples)
        for attempts in samples:
            chosen = best_by([attempt.total for attempt in attempts])
            kept, image = attempts[chosen], attempts[chosen].image
            yield (
                kept.row,
                GeneratedSample(
                    plan_ids=kept.plan_ids,
                    image_ids=None if image is None else image.image_ids,
                    pixels=None if image is None else image.pixels,
                    search=search_record(attempts, chosen),
                ),
            )

    def _compare(self, samples: Sequence[list[Attempt]]) -> None:
        """Scores and totals of the images that the attempts have kept."""
        assert self._judges.attempts is not None and self._judges.total is not None
        flat = [(group, a) for group, attempts in enumerate(samples) for a in attempts]
        requests = [self._request(a, a.image, g) for g, a in flat if a.image is not None]
        results = self._judges.attempts.judge(requests)
        totals = self._judges.total(stack_scores(results, self._judges.attempts.terms))
        for (_, attempt), result, total in zip(flat, results, totals):
            attempt.scores, attempt.total = dict(result.scores), float(total)

    def read_plan(self, ids: Sequence[int]) -> Plan:
        """The plan of token ids, without the token that begins the image."""
        return read_plan(ids, self._tokenizer)
