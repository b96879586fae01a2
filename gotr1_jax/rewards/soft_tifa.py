"""Soft-TIFA as a reward (GenEval 2, arXiv 2512.16853): questions about a caption, answered by the
configured judge; see `rewards.atoms`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from gotr1_jax.config import CheckedConfig
from gotr1_jax.errors import InputError
from gotr1_jax.limits import FilledText
from gotr1_jax.rewards.atoms import (
    Atom,
    arithmetic_mean,
    ask,
    geometric_mean,
    make_atoms,
    read_atoms,
)
from gotr1_jax.rewards.base import JudgeRequest, JudgeResult, needs_main_thread
from gotr1_jax.rewards.multimodal.client import EngineClient, ParsedAnswer
from gotr1_jax.rewards.multimodal.questions import QuestionsConfig
from gotr1_jax.rewards.own_function import (
    check_function,
    failures_as_one_line,
    is_function_name,
    load_function,
)
from gotr1_jax.rewards.source_digest import source_digest
from gotr1_jax.vlm_engine.answer_cache import AnswerCache
from gotr1_jax.vlm_engine.base import Engine, make_image_input

_MEANS = {"geometric": geometric_mean, "arithmetic": arithmetic_mean}
MakeAtoms = Callable[[str], "list[Atom] | None"]
"""The atoms of a caption; None where there are none."""


@dataclass(frozen=True)
class SoftTifaConfig(CheckedConfig):
    """How sure the judge is of the right answers to questions about the caption."""

    # What the score judges, see `rewards.stages`.
    stage: ClassVar[str] = "image"

    # A file in the format of GenEval 2's geneval2_data.jsonl, or a function of one's own that
    # gets a caption and returns its questions, [[question, right answer], ...].
    questions: FilledText
    # geometric: one wrong answer spoils all; arithmetic: the share of right answers.
    mean: Literal["geometric", "arithmetic"] = "geometric"
    # How the answers are read: text counts 1 or 0, expected the probability of the right word.
    # Null: as judge.questions.reading. A server can name probabilities for these questions alone.
    reading: Literal["text", "expected"] | None = None


def check_questions(config: SoftTifaConfig) -> None:
    """InputError for a file or a function that cannot give questions; no function is run."""
    if is_function_name(config.questions):
        check_function(config.questions)
    else:
        _by_caption(Path(config.questions))


class SoftTifaJudge:
    """Scores one term; NaN, with the reason, for a caption without questions.

    Attributes:
        terms: the name of the term.
        identity: the engine's, the reading, the questions and the mean.
        meanings: one line about the term.
    """

    def __init__(
        self,
        term: str,
        config: SoftTifaConfig,
        engine: Engine,
        asked: QuestionsConfig,
        cache: AnswerCache | None = None,
    ) -> None:
        """InputError for questions that cannot be had, and a reading that the engine cannot."""
        self.terms: tuple[str, ...] = (term,)
        self._config, self._limit = config, asked.score_tokens
        how = config.reading or asked.reading
        self._client = EngineClient(engine, how == "expected", cache, words_only=True)
        self._atoms, digest, function = _find_atoms(config.questions)
        self.needs_main_thread = needs_main_thread(engine) or needs_main_thread(function)
        reading = f"reading={how} score_tokens={asked.score_tokens}"
        self.identity = f"soft_tifa {config.mean} {digest} {reading} by {engine.identity}"
        self.meanings = {term: "the questions about the caption are answered rightly"}

    def introduce(self) -> None:
        """See `base.introduce`."""
        self._client.introduce()

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        """One result for each request; all questions are asked at once."""
        by_caption = {r.caption: self._atoms(r.caption) or [] for r in requests}
        questions = [
            ask(atom, image, self._limit)
            for request in requests
            for image in (make_image_input(request.image),)
            for atom in by_caption[request.caption]
        ]
        parsed = iter(self._client.ask(questions) if questions else ())
        results = []
        for request in requests:
            atoms = by_caption[request.caption]
            results.append(self._result(atoms, [next(parsed) for _ in atoms]))
        return results

    def pop_metrics(self) -> dict[str, float]:
        """Rates of failure since the last call, `judge/soft_tifa/TERM/...`."""
        metrics = self._client.pop_counts().metrics()
        place = f"judge/soft_tifa/{self.terms[0]}/"
        return {place + n.removeprefix("judge/"): v for n, v in metrics.items()}

    def _result(self, atoms: Sequence[Atom], answers: Sequence[ParsedAnswer]) -> JudgeResult:
        (term,) = self.terms
        if not atoms:
            reason = f"no questions for this caption in {self._config.questions}"
            return JudgeResult({term: math.nan}, rationale=f"{term} failed: {reason}")
        score = _MEANS[self._config.mean]([answer.score for answer in answers])
        parts = [
            f"{atom.question} {atom.answer}: {a.reason if a.failed else f'{a.score:.2f}'}"
            for atom, a in zip(atoms, answers)
        ]
        shown = "failed" if math.isnan(score) else f"{score:.2f}"
        raw = "\n".join(f"{atom.question} {a.text}" for atom, a in zip(atoms, answers) if a.text)
        line = f"{term} {shown}: {'; '.join(parts)}"
        return JudgeResult({term: score}, rationale=line, raw_answers={term: raw} if raw else {})


def _find_atoms(source: str) -> tuple[MakeAtoms, str, Callable[..., Any] | None]:
    """What gives the atoms of a caption, a digest of it, and the function behind it if any."""
    if not is_function_name(source):
        found = _by_caption(Path(source))
        pairs = {c: [(a.question, a.answer) for a in atoms] for c, atoms in found.items()}
        digest = hashlib.sha256(json.dumps(pairs, sort_keys=True).encode()).hexdigest()
        return lambda caption: found.get(caption.strip()), f"questions={digest[:16]}", None
    function = load_function(source)
    digest = f"{source} {source_digest(function)}"
    return lambda caption: _call(source, function, caption), digest, function


def _by_caption(path: Path) -> dict[str, list[Atom]]:
    """The atoms of a file by caption; InputError where two lines give a caption different ones."""
    found: dict[str, list[Atom]] = {}
    for item in read_atoms(path):
        atoms = list(item.atoms)
        if found.setdefault(item.caption, atoms) != atoms:
            raise InputError(f"{path} gives two different lists of questions for {item.caption!r}")
    return found


def _call(source: str, function: Callable[..., Any], caption: str) -> list[Atom] | None:
    where = f"{source} for {caption[:60]!r}"
    with failures_as_one_line(where):
        pairs = function(caption)
        # A sequence of one's own may raise as well.
        return None if pairs is None else make_atoms(pairs, where)
