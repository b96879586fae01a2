"""`gotr1 eval dpg`: dense captions, scored by questions that depend on each other."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.evaluation import benchmark, published
from gotr1_jax.evaluation.benchmark import Answers, ImageScore, ModelOption, ModelOptions
from gotr1_jax.evaluation.dpg_rules import Proposition, dependent_scores, read_questions
from gotr1_jax.evaluation.folders import find_dpg_images
from gotr1_jax.evaluation.queries import ModelQuery, is_failed
from gotr1_jax.evaluation.results import make_row
from gotr1_jax.generate.config import LAYOUTS, GenerateConfig
from gotr1_jax.generate.tasks import CaptionTask, read_tasks
from gotr1_jax.vlm_engine.base import ImageInput, make_image_input

NAME = "dpg"
MODELS: ModelOptions = {
    "yes": ModelOption("vqa-model", "BLIP-VQA", "Salesforce/blip-vqa-capfilt-large", "BlipVqa")
}
_SUBSTITUTE = "BLIP-VQA in the place of mPLUG"
_NOTE = (
    "Category rows: share of questions answered with yes, regardless of their parents. Their "
    "column captions counts questions, and their intervals resample questions."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 eval dpg`."""
    benchmark.add_arguments(parser, NAME, MODELS, "the benchmark's folder of prompt files")
    parser.add_argument(
        "--questions", type=Path, required=True, metavar="FILE",
        help="the benchmark's dpg_bench.csv",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Generate the images if needed, score them, write the results."""
    questions = read_questions(options.questions)
    tasks = _read_tasks(options, questions)
    benchmark.check_options(options, MODELS)
    folder, _ = benchmark.image_folder(options, NAME, options.prompts)
    items = find_dpg_images(folder, [task.stem for task in tasks])
    models, names = benchmark.open_models(options, MODELS)
    rules = DpgRules([questions[task.stem] for task in tasks], tasks[0].count)
    scores = benchmark.score_images(items, rules, models, NAME)
    remark = benchmark.comparison_remark(options, [_SUBSTITUTE])
    total = make_row(
        NAME, [s.values["score"] for s in scores], range(len(items)), names["yes"], remark,
        published.dpg(NAME),
    )  # fmt: skip
    rows = [total] + [
        replace(total, name=name, groups=(np.array(shares),), published=published.dpg(name))
        for name, shares in sorted(rules.categories.items())
    ]
    records = [
        benchmark.image_record(item, task.caption, score)
        for item, task, score in zip(items, tasks, scores)
    ]
    head = {"benchmark": NAME, "scorer": options.scorer, "cells": tasks[0].count}
    notes = [_NOTE, published.REASONGEN]
    unused = len(questions) - len(tasks)
    if unused:
        notes.insert(0, f"{unused} items of the table have no prompt file and are left out.")
    texts = [task.caption for task in tasks]
    head |= benchmark.facts_head(options, NAME, options.prompts, texts, scores, names.values())
    shown = benchmark.shown_images(items, texts, scores, folder)
    benchmark.finish(options, "DPG-Bench", head, rows, records, notes, shown)


class DpgRules:
    """Queries and scores of DPG-Bench; see `dpg_rules`.

    Attributes:
        categories: by broad category, for each question scored so far, the share of cells in which
            it was answered with yes.
    """

    def __init__(self, propositions: Sequence[Sequence[Proposition]], cells: int) -> None:
        """propositions: of each caption. cells: number of grid cells scored per image."""
        self._propositions, self._cells = propositions, cells
        self.categories: dict[str, list[float]] = {}

    def queries(self, caption: int, image: ImageInput, answers: Answers) -> list[ModelQuery]:
        """All questions about all cells."""
        return [
            ModelQuery("yes", cell, proposition.question)
            for cell in grid_cells(image, self._cells)
            for proposition in self._propositions[caption]
        ]

    def score(self, caption: int, image: ImageInput, answers: Answers) -> ImageScore:
        """score: the mean over the cells of the mean over the questions.

        A cell with a question that could not be scored is left out.
        """
        propositions = self._propositions[caption]
        scores: list[float] = []
        yes: list[dict[int, bool]] = []
        for cell in grid_cells(image, self._cells):
            probs = {
                p.number: answers[ModelQuery("yes", cell, p.question).key] for p in propositions
            }
            if any(map(is_failed, probs.values())):
                continue
            yes.append({number: prob > 0.5 for number, prob in probs.items()})
            scores.append(sum(dependent_scores(propositions, yes[-1]).values()) / len(propositions))
        for proposition in propositions if yes else ():
            share = sum(cell[proposition.number] for cell in yes) / len(yes)
            self.categories.setdefault(proposition.broad_category, []).append(share)
        never = [p.question for p in propositions if yes and not any(c[p.number] for c in yes)]
        score = sum(scores) / len(scores) if scores else math.nan
        reason = f"never: {' '.join(never)}" if never else ""
        return ImageScore({"score": score}, reason)


def grid_cells(image: ImageInput, count: int) -> list[ImageInput]:
    """The first `count` (1 to 4) cells of a grid of two columns, row by row; one is the whole.

    InputError where the image cannot be such a grid of squares.
    """
    if count == 1:
        return [image]
    height, width = image.size
    side = width // 2
    rows = -(-count // 2)
    if width % 2 or height != rows * side:
        raise InputError(
            f"an image of {width}x{height} is no grid of {count} squares in two columns; give "
            "the number of cells by --n"
        )
    corners = [(i // 2 * side, i % 2 * side) for i in range(count)]
    return [
        make_image_input(np.ascontiguousarray(image.pixels[y : y + side, x : x + side]))
        for y, x in corners
    ]


def _read_tasks(
    options: argparse.Namespace, questions: Mapping[str, Sequence[Proposition]]
) -> list[CaptionTask]:
    """The prompts, each with questions."""
    count = options.n or LAYOUTS[NAME]
    config = GenerateConfig(options.out, prompts=options.prompts, layout=NAME, n=count)
    tasks = list(read_tasks(config))
    if count > 4:
        raise InputError(f"--n is {count}; dpg scores 4 images of a caption at most")
    for task in tasks:
        if task.stem not in questions:
            raise InputError(f"{options.questions} has no questions for {task.where}")
    return tasks
