"""Which of two samples of a caption is better, by questions to a model that reads images.

Every pair is asked about twice, with the images in both orders. With the reading "expected" the
answer is the probability of "2" among "1" and "2", without decoding; else the text is read, in
which 0 is a tie.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gotr1_jax.rewards.base import JudgeRequest, needs_main_thread
from gotr1_jax.rewards.multimodal import instructions
from gotr1_jax.rewards.multimodal.client import EngineClient, ParsedAnswer
from gotr1_jax.rewards.multimodal.questions import QuestionsConfig
from gotr1_jax.rewards.preferences import Pair, PairComparison
from gotr1_jax.vlm_engine.answer_cache import AnswerCache
from gotr1_jax.vlm_engine.base import Engine, ImageInput, Question, Scale, make_image_input

_ONE_OR_TWO = Scale(1, 2, instructions.SCORE_PREFIX)
_OR_NEITHER = Scale(0, 2, instructions.SCORE_PREFIX)
_LIKELIHOODS = {0.0: 0.5, 1.0: 0.0, 2.0: 1.0}  # of the second image, by the answer


class _Shown(NamedTuple):
    """What the model sees of a sample: there is nothing to ask about equal ones."""

    plan: str  # empty where plans are not shown
    image: ImageInput


@dataclass
class _OrderCounts:
    """Pairs since the metrics were last taken; `first` of the `decided` answers were "first"."""

    asked: int = 0
    unread: int = 0
    decided: int = 0
    first: int = 0
    both_decided: int = 0
    by_order: int = 0


class QuestionComparer:
    """Compares samples by questions about two images.

    Attributes:
        identity: the engine's identity, the version of the instruction, and the settings.
    """

    def __init__(
        self,
        engine: Engine,
        config: QuestionsConfig = QuestionsConfig(),  # noqa: B008 - frozen
        plans: bool = False,
        cache: AnswerCache | None = None,
    ) -> None:
        """plans: show both plans too. InputError for a reading that the engine does not support."""
        self._expected = config.reading == "expected"
        self.needs_main_thread = needs_main_thread(engine)
        self._client = EngineClient(engine, self._expected, cache)
        self._plans, self._limit = plans, config.score_tokens
        self._scale = _ONE_OR_TWO if self._expected else _OR_NEITHER
        self._instruction = instructions.ask_preference(plans, ties=not self._expected)
        self._counts = _OrderCounts()
        version = hashlib.sha256(self._instruction.encode()).hexdigest()[:12]
        reading = f"reading={config.reading} score_tokens={config.score_tokens} plans={plans}"
        self.identity = f"{engine.identity} comparison={version} {reading}"

    def compare(
        self, requests: Sequence[JudgeRequest], pairs: Sequence[Pair]
    ) -> list[PairComparison]:
        """One comparison for each pair of places in `requests`; all are asked about at once."""
        shown = [self._shown(request) for request in requests]
        questions = [
            self._question(requests[i].caption, shown[first], shown[second])
            for i, j in pairs
            if shown[i] != shown[j]
            for first, second in ((i, j), (j, i))
        ]
        parsed = iter(self._client.ask(questions))
        found = []
        for first, second in pairs:
            if shown[first] == shown[second]:
                found.append(PairComparison(0.5, 0.5))
                continue
            forward, backward = next(parsed), next(parsed)
            # The first answer gives the likelihood of the pair's second sample, the other of
            # the pair's first one.
            comparison = PairComparison(
                1 - self._likelihood(forward), self._likelihood(backward),
                (_describe(forward), _describe(backward)),
            )  # fmt: skip
            self._count(comparison)
            found.append(comparison)
        return found

    def introduce(self) -> None:
        """See `base.introduce`."""
        self._client.introduce()

    def pop_metrics(self) -> dict[str, float]:
        """Metrics since the last call, by the last part of their names.

        `questions` put to the engine; `unread_frac` of all answers; `first_frac`, the share of
        the answers that decide for the image shown first; `position_bias`, the share of the
        pairs decided in both orders (`decided_pairs`) whose answers name the same place, and so
        no image.
        """
        counts, self._counts = self._counts, _OrderCounts()
        put = self._client.pop_counts()
        metrics = {"questions": float(put.asked)}
        if put.tokens_in or put.tokens_out:
            metrics |= {"tokens_in": float(put.tokens_in), "tokens_out": float(put.tokens_out)}
        if counts.asked:
            metrics["unread_frac"] = counts.unread / counts.asked
        if counts.decided:
            metrics["first_frac"] = counts.first / counts.decided
        if counts.both_decided:
            metrics["decided_pairs"] = float(counts.both_decided)
            metrics["position_bias"] = counts.by_order / counts.both_decided
        return metrics

    def _shown(self, request: JudgeRequest) -> _Shown:
        plan = request.plan.text if self._plans else ""
        return _Shown(plan, make_image_input(request.image))

    def _question(self, caption: str, first: _Shown, second: _Shown) -> Question:
        text = instructions.show_caption(caption)
        if self._plans:
            text += f"First picture. {instructions.show_plan(first.plan)}"
            text += f"Second picture. {instructions.show_plan(second.plan)}"
        text += instructions.CLOSINGS["score"]
        images = first.image, second.image
        return Question("score", images, self._instruction, text, self._limit, self._scale)

    def _likelihood(self, answer: ParsedAnswer) -> float:
        """That the image shown second is the better one; NaN where the answer says nothing."""
        if self._expected:
            return answer.score - self._scale.low
        return _LIKELIHOODS.get(answer.score, math.nan)

    def _count(self, comparison: PairComparison) -> None:
        counts = self._counts
        # For the image that was shown first, of each order.
        shown_first = comparison.forward, 1 - comparison.backward
        decided = [p > 0.5 for p in shown_first if not math.isnan(p) and p != 0.5]
        counts.asked += 2
        counts.unread += sum(map(math.isnan, shown_first))
        counts.decided += len(decided)
        counts.first += sum(decided)
        counts.both_decided += len(decided) == 2
        counts.by_order += len(decided) == 2 and decided[0] == decided[1]


def _describe(answer: ParsedAnswer) -> str:
    return answer.text or (answer.reason if answer.failed else f"{answer.score:.3f}")
