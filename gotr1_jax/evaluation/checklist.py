"""`gotr1 eval checklist`: captions with questions of yes or no, choices or grades, by any judge.

A caption counts by the weighted mean of its questions, over its images. The formats of the files
are in `checklist_formats`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gotr1_jax.evaluation import benchmark
from gotr1_jax.evaluation.benchmark import ImageScore
from gotr1_jax.evaluation.checklist_formats import OWN, Checklist, read_checklist
from gotr1_jax.evaluation.folders import BenchmarkImage, find_numbered_images
from gotr1_jax.evaluation.results import ResultRow, make_row, rows_apart
from gotr1_jax.evaluation.word_rules import WordQuestion, WordRules

_OWN_WORDS = "each question is asked alone and in this project's words"
_NOTE = (
    "all: the mean over the captions of the weighted mean of their questions. Rows of questions: "
    "the mean over questions; their column captions counts questions, and their intervals resample "
    "questions."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 eval checklist`."""
    benchmark.add_arguments(parser, "plain", {}, "")
    parser.add_argument(
        "--questions", type=Path, required=True, metavar="PATH",
        help="a checklist (.jsonl), or a copy of the questions of UniGenBench (.csv), R2I-Bench "
        "(its folder data), T2I-CoReBench (.json or their folder) or SpatialGenEval (.jsonl)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Generate the images if needed, ask about them, write the results."""
    checklist = read_checklist(options.questions)
    benchmark.check_options(options, ["word"])
    texts = [item.caption for item in checklist.captions]
    prompts = benchmark.write_captions(options.out, texts)
    folder, count = benchmark.image_folder(options, "plain", prompts)
    items = find_numbered_images(folder, [c.stem for c in checklist.captions], texts, count)
    models, names = benchmark.open_models(options, ["word"])
    rules = WordRules([item.questions for item in checklist.captions], combine)
    scores = benchmark.score_images(items, rules, models, checklist.benchmark)
    reading, how = benchmark.word_reading(options)
    rows = [
        replace(row, scorer=names["word"], remark=_OWN_WORDS)
        for row in make_rows(checklist, items, scores, rules)
    ]
    records = [
        benchmark.image_record(item, texts[item.caption], score)
        for item, score in zip(items, scores)
    ]
    head = {"benchmark": checklist.benchmark, "scorer": "judge", "reading": reading}
    head |= benchmark.facts_head(options, "plain", options.questions, texts, scores, names.values())
    notes = [*checklist.notes, _NOTE, *how]
    title = "Checklist" if checklist.benchmark == OWN else checklist.benchmark
    shown = benchmark.shown_images(items, texts, scores, folder)
    benchmark.finish(options, title, head, rows, records, notes, shown)


def combine(questions: Sequence[WordQuestion], values: Sequence[float]) -> dict[str, float]:
    """score: the weighted mean of an image's questions; 0 where none has a weight."""
    total = math.fsum(question.weight for question in questions)
    weighted = math.fsum(q.weight * value for q, value in zip(questions, values))
    return {"score": weighted / total if total else 0.0}


def make_rows(
    checklist: Checklist, items: Sequence[BenchmarkImage], scores: Sequence[ImageScore],
    rules: WordRules,
) -> list[ResultRow]:  # fmt: skip
    """All captions; those of each of the captions' tags; the questions of each of their tags."""
    values = [score.values["score"] for score in scores]
    rows = [make_row("all", values, [item.caption for item in items], "")]
    captions, tagged = checklist.captions, []
    for tag in sorted({tag for item in captions for tag in item.tags}):
        places = [i for i, item in enumerate(items) if tag in captions[item.caption].tags]
        chosen = [items[i].caption for i in places]
        tagged.append(make_row(tag, [values[i] for i in places], chosen, ""))
    rows = rows_apart(rows, tagged, "captions")
    return rows_apart(rows, rules.tag_rows(), "questions")
