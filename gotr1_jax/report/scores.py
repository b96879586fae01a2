"""Scores that `gotr1 judge` wrote about the samples of a run, joined with the samples."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import parse_json, read_text
from gotr1_jax.rewards.base import JudgeResult, result_from_json
from gotr1_jax.tokenizers.janus import without_boi
from gotr1_jax.trainer.samples import SampleRecord

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class ScoreLine:
    """A line of a score file: the judge's identity and result, and the sample at that time."""

    folder: str  # step_000010, eval_after, ...
    image_name: str
    judge: str
    caption: str
    plan_text: str
    result: JudgeResult


@dataclass(frozen=True)
class ReportSample:
    """A sample of the run, with the results of later judges by their number, ascending."""

    record: SampleRecord
    results: Mapping[int, JudgeResult] = field(default_factory=dict)


@dataclass(frozen=True)
class TermMeans:
    """Means of one term over the samples of one part of the run that a judge has scored.

    `judged` is the judge's mean and `own` the run's, NaN where there is none; `failed` counts the
    samples that the judge could not score.
    """

    judged: float
    own: float
    failed: int


@dataclass(frozen=True)
class JudgeTable:
    """A judge's means next to the run's: `rows[term]` has an entry for each of `parts`."""

    letter: str
    name: str
    identity: str
    parts: tuple[tuple[str, int], ...]  # title, number of samples
    rows: Mapping[str, tuple[TermMeans | None, ...]]


def read_scores(path: Path) -> list[ScoreLine]:
    """The lines of a file that `gotr1 judge` wrote; InputError for any other line."""
    if not os.path.lexists(path):
        raise InputError(f"no file of scores at {path}")
    text = read_text(path)
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            lines.append(_read_line(line))
        except (InputError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            raise InputError(
                f"{path}, line {number} is no line of scores; write the file again with gotr1 judge"
            ) from None
    if not lines:
        raise InputError(f"{path} holds no scores")
    return lines


def _read_line(line: str) -> ScoreLine:
    value = parse_json(line, "it", allow_nan=True)
    texts = [value[key] for key in ("image", "judge", "caption", "plan_text")]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a text is of another type")
    image, judge, caption, plan_text = texts
    # The sample's name lacks the folder where a single folder was judged.
    path = Path(image)
    result = result_from_json(value)
    return ScoreLine(path.parent.name, path.name, judge, caption, plan_text, result)


def check_scores(
    path: Path,
    lines: Sequence[ScoreLine],
    folders: Iterable[str],
    records: Mapping[tuple[str, str], SampleRecord],
) -> None:
    """InputError where the lines of `path` were written for another run.

    Args:
        folders: names of all sample folders of the run.
        records: the samples on the page, by folder and image name.
    """
    known = set(folders)
    read = {folder for folder, _ in records}
    # Samples of a folder that was removed, or that the page leaves out, cannot be compared.
    is_foreign = not any(line.folder in known for line in lines)
    for line in lines:
        record = records.get((line.folder, line.image_name))
        place = f"{line.folder}/{line.image_name}"
        if is_foreign or (record is None and line.folder in read):
            raise InputError(f"{path} holds scores of another run: there is no {place} in this one")
        if record is not None and (
            (record.caption, without_boi(record.plan_text)) != (line.caption, line.plan_text)
        ):
            raise InputError(
                f"{path} holds scores of another run: {place} has another caption or plan here; "
                "judge this run again"
            )


def judge_names(lines: Iterable[ScoreLine]) -> tuple[str, ...]:
    """The identities of all judges, in the order of first appearance."""
    return tuple(dict.fromkeys(line.judge for line in lines))


def join_results(
    folders: Mapping[str, Sequence[SampleRecord]],
    lines: Iterable[ScoreLine],
    judges: Sequence[str],
) -> dict[str, tuple[ReportSample, ...]]:
    """Each folder's samples with their results; of one judge the later line counts."""
    results: dict[tuple[str, str], dict[int, JudgeResult]] = {}
    for line in lines:
        by_judge = results.setdefault((line.folder, line.image_name), {})
        by_judge[judges.index(line.judge)] = line.result
    return {
        folder: tuple(
            ReportSample(r, dict(sorted(results.get((folder, r.image_name), {}).items())))
            for r in records
        )
        for folder, records in folders.items()
    }


def letter(judge: int) -> str:
    """The letter of a judge, counted from 0: A, B, ... Z, A2, ..."""
    again, index = divmod(judge, len(LETTERS))
    return LETTERS[index] + (str(again + 1) if again else "")


def short_name(identity: str) -> str:
    """A judge's identity without its settings: the words before the first `key=value`."""
    names = []
    for part in identity.split(" + "):
        words: list[str] = []
        for word in part.split():
            if words and ("=" in word or "(" in word or word.startswith("[")):
                break
            words.append(word)
        names.append(" ".join(words))
    return " + ".join(names)


def judge_tables(
    judges: Sequence[str], parts: Mapping[str, Sequence[ReportSample]]
) -> tuple[JudgeTable, ...]:
    """A table for each judge, with the parts (samples by title) in which it scored any sample."""
    tables = []
    for judge, identity in enumerate(judges):
        scored = {t: [s for s in samples if judge in s.results] for t, samples in parts.items()}
        scored = {title: samples for title, samples in scored.items() if samples}
        terms = dict.fromkeys(
            term for samples in scored.values() for s in samples for term in s.results[judge].scores
        )
        if terms:
            tables.append(
                JudgeTable(
                    letter=letter(judge),
                    name=short_name(identity),
                    identity=identity,
                    parts=tuple((title, len(samples)) for title, samples in scored.items()),
                    rows={t: tuple(_means(t, judge, s) for s in scored.values()) for t in terms},
                )
            )
    return tuple(tables)


def _means(term: str, judge: int, samples: Sequence[ReportSample]) -> TermMeans | None:
    scored = [s for s in samples if term in s.results[judge].scores]
    if not scored:
        return None
    judged = _finite(s.results[judge].scores[term] for s in scored)
    own = _finite(s.record.scores.get(term, math.nan) for s in scored)
    return TermMeans(_mean(judged), _mean(own), len(scored) - len(judged))


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
