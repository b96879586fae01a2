"""Two checkpoints' answers to the same questions, compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gotr1_jax.evaluation.understanding_questions import ALL, UnderstandingQuestion
from gotr1_jax.io.markdown import markdown_table
from gotr1_jax.trainer.bootstrap import mean_interval


@dataclass(frozen=True)
class ScoredAnswer:
    """One checkpoint's answer to one question.

    Attributes:
      text: as the model wrote it.
      ended: the model ended it; False: cut at the longest length.
      content: by `read_answer`; "" if unclear.
      is_right: whether it is right.
    """

    text: str
    ended: bool
    content: str
    is_right: bool

    def to_json(self) -> dict[str, Any]:
        """For answers.jsonl."""
        return {
            "said": self.text, "ended": self.ended, "read": self.content, "right": self.is_right
        }  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """The scores of a group of questions; shares are of its questions, 0 to 1.

    Attributes:
      questions, images: how many.
      ckpt, baseline: share of right answers.
      gain: ckpt - baseline; low, high: its 95 % interval by a paired bootstrap over images.
      lost: questions that the baseline answered right and the checkpoint wrong; won: the reverse.
      commonest: share that is right by always giving the commonest answer of each kind.
      over_commonest: baseline - commonest; over_low, over_high: its interval, as above.
      unclear_ckpt, unclear_baseline: number of unclear answers.
      cut_ckpt, cut_baseline: number of answers that were cut at the longest length.
    """

    questions: int
    images: int
    ckpt: float
    baseline: float
    gain: float
    low: float
    high: float
    lost: int
    won: int
    commonest: float
    over_commonest: float
    over_low: float
    over_high: float
    unclear_ckpt: int
    unclear_baseline: int
    cut_ckpt: int
    cut_baseline: int

    def to_json(self) -> dict[str, Any]:
        """For scores.json; its number of images is called "pictures"."""
        return {{"images": "pictures"}.get(k, k): value for k, value in asdict(self).items()}


def compare(
    questions: Sequence[UnderstandingQuestion],
    ckpt: Sequence[ScoredAnswer],
    baseline: Sequence[ScoredAnswer],
) -> dict[str, Comparison]:
    """Scores of all questions, and of each kind in the order of first appearance."""
    rows = list(zip(questions, ckpt, baseline, _right_by_commonest_answer(questions)))
    groups = {ALL: rows}
    for row in rows:
        groups.setdefault(row[0].kind, []).append(row)
    return {name: _compare(group) for name, group in groups.items()}


def _right_by_commonest_answer(questions: Sequence[UnderstandingQuestion]) -> list[bool]:
    """Whether the commonest answer of its kind is right for each question."""
    counts: dict[str, Counter[str]] = {}
    for question in questions:
        counts.setdefault(question.kind, Counter()).update(question.accepted)
    best = {kind: count.most_common(1)[0][0] for kind, count in counts.items()}
    return [best[question.kind] in question.accepted for question in questions]


def _compare(
    rows: Sequence[tuple[UnderstandingQuestion, ScoredAnswer, ScoredAnswer, bool]],
) -> Comparison:
    questions, ckpt, baseline, is_guessed = zip(*rows)
    new = np.asarray([answer.is_right for answer in ckpt], np.float64)
    old = np.asarray([answer.is_right for answer in baseline], np.float64)
    guess = np.asarray(is_guessed, np.float64)
    images = [question.image_digest for question in questions]
    low, high = _interval_over_images(new - old, images)
    over_low, over_high = _interval_over_images(old - guess, images)
    return Comparison(
        questions=len(questions),
        images=len(set(images)),
        ckpt=float(new.mean()),
        baseline=float(old.mean()),
        gain=float((new - old).mean()),
        low=low,
        high=high,
        lost=int((old > new).sum()),
        won=int((new > old).sum()),
        commonest=float(guess.mean()),
        over_commonest=float((old - guess).mean()),
        over_low=over_low,
        over_high=over_high,
        unclear_ckpt=sum(not answer.content for answer in ckpt),
        unclear_baseline=sum(not answer.content for answer in baseline),
        cut_ckpt=sum(not answer.ended for answer in ckpt),
        cut_baseline=sum(not answer.ended for answer in baseline),
    )


def _interval_over_images(values: np.ndarray, images: Sequence[str]) -> tuple[float, float]:
    """95 % interval of a mean; images are drawn with all of their questions."""
    cluster = np.unique(np.asarray(images), return_inverse=True)[1]
    return mean_interval(np.bincount(cluster, values), np.bincount(cluster))


def verdict(all_questions: Comparison) -> str:
    """One sentence: whether the baseline's answers are better than guessing at all."""
    c = all_questions
    numbers = (
        f"{c.baseline:.3f} against {c.commonest:.3f}, difference {c.over_commonest:+.3f}, "
        f"95 % interval [{c.over_low:+.3f}, {c.over_high:+.3f}]"
    )
    if c.over_low > 0:
        return f"The baseline answers better than the commonest answer of each kind ({numbers})."
    return (
        f"The baseline does not answer better than the commonest answer of each kind ({numbers}): "
        "it cannot answer these questions, so a difference to it says nothing about what training "
        "did to understanding."
    )


def table(comparisons: Mapping[str, Comparison], notes: Sequence[str]) -> str:
    """The Markdown table, one row a group, and the notes below it."""
    head = (
        "kind", "questions", "checkpoint", "baseline", "gain", "95 % interval", "right to wrong",
        "wrong to right", "commonest answer", "unclear",
    )  # fmt: skip
    rows = [
        (
            name, str(c.questions), f"{c.ckpt:.3f}", f"{c.baseline:.3f}", f"{c.gain:+.3f}",
            f"{c.low:+.3f} to {c.high:+.3f}", str(c.lost), str(c.won), f"{c.commonest:.3f}",
            f"{c.unclear_ckpt} / {c.unclear_baseline}",
        )
        for name, c in comparisons.items()
    ]  # fmt: skip
    title = "# Understanding: the same questions, two checkpoints"
    return "\n".join([title, "", markdown_table(head, rows), "", *notes]) + "\n"
