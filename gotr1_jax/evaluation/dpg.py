"""`gotr1 eval dpg`: dense captions, asked about in questions that depend on each other."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.evaluation import job, published
from gotr1_jax.evaluation.asks import ModelQuery, is_missing
from gotr1_jax.evaluation.crops import grid_cells
from gotr1_jax.evaluation.dpg_rules import Proposition, dependent_scores, read_questions
from gotr1_jax.evaluation.folders import Item, dpg_items
from gotr1_jax.evaluation.summary import ResultRow
from gotr1_jax.generate.config import LAYOUTS, GenerateConfig
from gotr1_jax.generate.prompts import Task, read_tasks
from gotr1_jax.vlm_engine.base import ImageInput

NAME = "dpg"
MODELS: job.Models = {
    "yes": job.Model("vqa-model", "BLIP-VQA", "Salesforce/blip-vqa-capfilt-large", "BlipVqa")
}
_REMARK = "BLIP-VQA in the place of mPLUG"
_NOTE = (
    "Rows of categories: share of questions answered with yes, whatever their parents. What counts "
    "as captions there are questions, and the intervals draw questions."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 eval dpg`."""
    job.add_arguments(parser, NAME, MODELS)
    parser.add_argument(
        "--prompts", type=Path, required=True, metavar="DIR",
        help="the benchmark's folder of prompt files",
    )  # fmt: skip
    parser.add_argument(
        "--questions", type=Path, required=True, metavar="FILE",
        help="the benchmark's dpg_bench.csv",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Does what the parsed command line says."""
    questions = read_questions(options.questions)
    tasks = _tasks(options, questions)
    job.check_scorer(options)
    folder = options.images or options.out / job.IMAGES
    if options.images is None:
        job.draw_images(options, NAME, options.prompts, folder)
    items = dpg_items(folder, [task.stem for task in tasks])
    book, names = job.open_book(options, MODELS)
    rules = DpgRules([questions[task.stem] for task in tasks], tasks[0].count)
    scored = job.score_items(items, rules, book, NAME)
    samples = [
        {"picture": item.name, "caption": task.caption, "values": s.values, "words": s.words}
        for item, task, s in zip(items, tasks, scored)
    ]
    remark = job.JUDGE_REMARK if options.scorer == "judge" else _REMARK
    values = np.array([s.values["score"] for s in scored])
    failed = int(np.isnan(values).sum())
    rows = [ResultRow(NAME, (values,), len(values), failed, names["yes"], remark)]
    rows += [
        ResultRow(category, (np.array(shares),), len(items), failed, names["yes"], remark)
        for category, shares in sorted(rules.categories.items())
    ]
    head = {"benchmark": NAME, "scorer": options.scorer, "cells": tasks[0].count}
    notes = [_NOTE, published.REASONGEN]
    left = len(questions) - len(tasks)
    if left:
        notes.insert(0, f"{left} items of the table have no prompt file and are left out.")
    job.finish(options, "DPG-Bench", head, rows, samples, notes)


class DpgRules:
    """Questions and scores of DPG-Bench; see `dpg_rules`.

    Attributes:
        categories: by broad category the share of cells that each question scored so far was
            answered with yes in.
    """

    def __init__(self, propositions: Sequence[Sequence[Proposition]], cells: int) -> None:
        """propositions: of each item. cells: how many of an image's grid are looked at."""
        self._propositions, self._cells = propositions, cells
        self.categories: dict[str, list[float]] = {}

    def asks(self, item: Item, image: ImageInput, answers: job.Answers) -> list[ModelQuery]:
        """All questions about all cells."""
        return [
            ModelQuery("yes", cell, proposition.question)
            for cell in self._grid(item, image)
            for proposition in self._propositions[item.place]
        ]

    def score(self, item: Item, image: ImageInput, answers: job.Answers) -> job.ItemScore:
        """score: the mean over the cells of the mean over the questions.

        A cell with a question that could not be told is left out.
        """
        propositions = self._propositions[item.place]
        cells, yes = [], []
        for cell in self._grid(item, image):
            given = {
                p.number: answers[ModelQuery("yes", cell, p.question).key] for p in propositions
            }
            if any(map(is_missing, given.values())):
                continue
            said = {number: share > 0.5 for number, share in given.items()}
            yes.append(said)
            cells.append(sum(dependent_scores(propositions, said).values()) / len(propositions))
        for proposition in propositions if yes else ():
            share = sum(said[proposition.number] for said in yes) / len(yes)
            self.categories.setdefault(proposition.broad, []).append(share)
        no = [p.question for p in propositions if yes and not any(s[p.number] for s in yes)]
        score = sum(cells) / len(cells) if cells else math.nan
        return job.ItemScore({"score": score}, f"never: {' '.join(no)}" if no else "")

    def _grid(self, item: Item, image: ImageInput) -> list[ImageInput]:
        try:
            return grid_cells(image, self._cells)
        except InputError as error:
            raise InputError(f"{item.path}: {error}; say how many by --n") from error


def _tasks(
    options: argparse.Namespace, questions: Mapping[str, Sequence[Proposition]]
) -> list[Task]:
    """The prompts, each with questions of its own."""
    count = options.n or LAYOUTS[NAME]
    config = GenerateConfig(options.out, prompts=options.prompts, layout=NAME, n=count)
    tasks = list(read_tasks(config))
    if count > 4:
        raise InputError(f"--n is {count}; dpg looks at 4 pictures of a caption at most")
    for task in tasks:
        if task.stem not in questions:
            raise InputError(f"{options.questions} has no questions for {task.where}")
    return tasks
