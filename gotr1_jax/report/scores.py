"""What `gotr1 judge` wrote about the samples of a run, read and laid beside them."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gotr1_jax.errors import InputError
from gotr1_jax.rewards.base import JudgeResult, result_from_json
from gotr1_jax.tokenizers.janus import SPECIAL_STRINGS
from gotr1_jax.trainer.samples import SampleRecord

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class ScoreLine:
    """A line of a file of scores: which sample, what it was when it was judged, the answer."""

    folder: str  # step_000010, eval_after, ...
    image_name: str
    judge: str  # its identity
    caption: str
    plan_text: str
    result: JudgeResult


@dataclass(frozen=True)
class Opinion:
    """What one judge said of one sample; `judge` counts the judges on the page from 0."""

    judge: int
    result: JudgeResult


# By folder and image name of a sample: one opinion for each judge that has seen it.
Opinions = Mapping[tuple[str, str], tuple[Opinion, ...]]


@dataclass(frozen=True)
class TermMeans:
    """Means of one term over the samples of one part of the run that a judge has seen.

    `judged` is the judge's and `own` the run's, NaN where none is known; `failed` counts the
    samples whose term the judge could not tell.
    """

    judged: float
    own: float
    failed: int


@dataclass(frozen=True)
class JudgeTable:
    """A judge's means beside the run's: `rows[term]` has an entry for each of `parts`."""

    letter: str
    name: str
    identity: str
    parts: tuple[tuple[str, int], ...]  # title, number of samples
    rows: Mapping[str, tuple[TermMeans | None, ...]]


def read_scores(path: Path) -> list[ScoreLine]:
    """The lines of a file that `gotr1 judge` wrote; InputError for any line that is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"no file of scores at {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            lines.append(_read_line(line))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise InputError(
                f"{path}, line {number} is no line of scores; write the file again with gotr1 judge"
            ) from None
    if not lines:
        raise InputError(f"{path} holds no scores")
    return lines


def _read_line(line: str) -> ScoreLine:
    value = json.loads(line)
    texts = [value[key] for key in ("image", "judge", "caption", "plan_text")]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a text is of another type")
    image, judge, caption, plan_text = texts
    # A sample's own name lacks the folder where only that folder was judged.
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
        records: the samples that were read, by folder and image name.
    """
    known = set(folders)
    read = {folder for folder, _ in records}
    # Of a folder that was removed since, or that the page leaves out, nothing can be told.
    strange = not any(line.folder in known for line in lines)
    for line in lines:
        record = records.get((line.folder, line.image_name))
        place = f"{line.folder}/{line.image_name}"
        if strange or (record is None and line.folder in read):
            raise InputError(f"{path} holds scores of another run: there is no {place} in this one")
        if record is not None and (
            (record.caption, _judged_plan(record)) != (line.caption, line.plan_text)
        ):
            raise InputError(
                f"{path} holds scores of another run: {place} has another caption or plan here; "
                "judge this run again"
            )


def _judged_plan(record: SampleRecord) -> str:
    """The plan's text as `gotr1 judge` reads it."""
    return record.plan_text.rstrip().removesuffix(SPECIAL_STRINGS["boi"])


def judge_names(lines: Iterable[ScoreLine]) -> tuple[str, ...]:
    """The identities of all judges, in the order in which they come up."""
    return tuple(dict.fromkeys(line.judge for line in lines))


def join_opinions(lines: Iterable[ScoreLine], judges: Sequence[str]) -> Opinions:
    """Opinions by sample, in the order of `judges`; of one judge the later line counts."""
    found: dict[tuple[str, str], dict[int, Opinion]] = defaultdict(dict)
    for line in lines:
        judge = judges.index(line.judge)
        found[line.folder, line.image_name][judge] = Opinion(judge, line.result)
    return {key: tuple(by[judge] for judge in sorted(by)) for key, by in found.items()}


def letter(judge: int) -> str:
    """A short sign for a judge: A, B, ... Z, A2, ..."""
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
    judges: Sequence[str],
    opinions: Opinions,
    parts: Mapping[str, Mapping[tuple[str, str], SampleRecord]],
) -> tuple[JudgeTable, ...]:
    """A table for each judge; parts (title: samples by folder and name) it has not seen go."""
    tables = []
    for judge, identity in enumerate(judges):
        seen: dict[str, list[tuple[SampleRecord, JudgeResult]]] = {}
        for title, records in parts.items():
            pairs = [
                (record, opinion.result)
                for key, record in records.items()
                for opinion in opinions.get(key, ())
                if opinion.judge == judge
            ]
            if pairs:
                seen[title] = pairs
        terms = dict.fromkeys(t for pairs in seen.values() for _, r in pairs for t in r.scores)
        if terms:
            tables.append(
                JudgeTable(
                    letter=letter(judge),
                    name=short_name(identity),
                    identity=identity,
                    parts=tuple((title, len(pairs)) for title, pairs in seen.items()),
                    rows={t: tuple(_term_means(t, p) for p in seen.values()) for t in terms},
                )
            )
    return tuple(tables)


def _term_means(term: str, pairs: Sequence[tuple[SampleRecord, JudgeResult]]) -> TermMeans | None:
    asked = [(rec, res) for rec, res in pairs if term in res.scores]
    if not asked:
        return None
    known = [res.scores[term] for _, res in asked if math.isfinite(res.scores[term])]
    own = [s for rec, _ in asked if math.isfinite(s := rec.scores.get(term, math.nan))]
    return TermMeans(_mean(known), _mean(own), len(asked) - len(known))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
