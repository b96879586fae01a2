"""`gotr1 eval geneval`: are the objects there, as many, of the color and at the place asked for?"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from gotr1_jax.evaluation import job, published
from gotr1_jax.evaluation.asks import Detection, ModelQuery, found_objects, is_missing
from gotr1_jax.evaluation.folders import Item, geneval_items
from gotr1_jax.evaluation.geneval_rules import (
    TAGS,
    Metadata,
    colored_objects,
    judge_image,
    kept_objects,
    read_metadata,
)
from gotr1_jax.evaluation.summary import ResultRow, caption_means
from gotr1_jax.generate.config import LAYOUTS
from gotr1_jax.vlm_engine.base import ImageInput

NAME = "geneval"
MODELS: job.Models = {
    "find": job.Model(
        "detector", "Mask2Former", "facebook/mask2former-swin-small-coco-instance", "Mask2Former"
    ),
    "color": job.Model("clip-model", "CLIP", "openai/clip-vit-large-patch14", "ClipColor"),
}
_REMARK = "Mask2Former's own weights in the place of mmdet's"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 eval geneval`."""
    job.add_arguments(parser, NAME, MODELS)
    parser.add_argument(
        "--prompts", type=Path, required=True, metavar="FILE",
        help="the benchmark's evaluation_metadata.jsonl",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Does what the parsed command line says."""
    wanted = read_metadata(options.prompts)
    job.check_scorer(options)
    folder, count = options.images, options.n
    if folder is None:
        folder, count = options.out / job.IMAGES, options.n or LAYOUTS[NAME]
        job.draw_images(options, NAME, options.prompts, folder)
    items = geneval_items(folder, wanted, count)
    book, names = job.open_book(options, MODELS)
    scored = job.score_items(items, GenevalRules(wanted), book, NAME)
    values = [s.values["correct"] for s in scored]
    scorer = " + ".join(dict.fromkeys(names.values()))
    fewer = published.fewer(len(wanted), published.GENEVAL_CAPTIONS)
    who = job.JUDGE_REMARK if options.scorer == "judge" else _REMARK
    remark = " and ".join([who, *fewer])
    samples = [
        {"task": wanted[item.place].tag, "picture": item.name,
         "caption": wanted[item.place].prompt, "values": s.values, "words": s.words}
        for item, s in zip(items, scored)
    ]  # fmt: skip
    rows = _rows(wanted, items, values, scorer, remark)
    head = {"benchmark": NAME, "scorer": options.scorer}
    job.finish(options, "GenEval", head, rows, samples, [published.REASONGEN])


class GenevalRules:
    """Questions and verdicts of GenEval; see `geneval_rules`."""

    def __init__(self, wanted: Sequence[Metadata]) -> None:
        self._wanted = wanted

    def asks(self, item: Item, image: ImageInput, answers: job.Answers) -> list[ModelQuery]:
        """Where the objects are; once that is known, the colors of those that count."""
        metadata = self._wanted[item.place]
        finds = [ModelQuery("find", image, name) for name in metadata.names]
        objects = self._objects(metadata, image, answers)
        return finds if objects is None else finds + _color_asks(metadata, image, objects)

    def score(self, item: Item, image: ImageInput, answers: job.Answers) -> job.ItemScore:
        """correct: 1 or 0; NaN where an answer is missing."""
        metadata = self._wanted[item.place]
        objects = self._objects(metadata, image, answers)
        if objects is None:
            return job.ItemScore({"correct": math.nan}, "an object's search failed")
        colors: dict[tuple[str, Detection], str] = {}
        for ask in _color_asks(metadata, image, objects):
            assert ask.place is not None
            if is_missing(answers[ask.key]):
                return job.ItemScore({"correct": math.nan}, "a question for a color failed")
            colors[ask.color, ask.place] = answers[ask.key]
        correct, words = judge_image(metadata, objects, colors)
        return job.ItemScore({"correct": float(correct)}, words)

    def _objects(
        self, metadata: Metadata, image: ImageInput, answers: job.Answers
    ) -> dict[str, list[Detection]] | None:
        """What counts of each class; None while an answer is missing."""
        given = {n: answers.get(ModelQuery("find", image, n).key, math.nan) for n in metadata.names}
        if any(is_missing(answer) for answer in given.values()):
            return None
        return {name: kept_objects(metadata, found_objects(a)) for name, a in given.items()}


def _color_asks(
    metadata: Metadata, image: ImageInput, objects: dict[str, list[Detection]]
) -> list[ModelQuery]:
    return [
        ModelQuery("color", image, wanted.name, wanted.color, found)
        for wanted in metadata.include
        for found in colored_objects(wanted, objects)
    ]


def _rows(
    wanted: Sequence[Metadata],
    items: Sequence[Item],
    values: Sequence[float],
    scorer: str,
    remark: str,
) -> list[ResultRow]:
    """The tasks' accuracies over images, then their mean."""
    rows = []
    for tag in TAGS:
        mine = [i for i, item in enumerate(items) if wanted[item.place].tag == tag]
        if mine:
            chosen = [values[i] for i in mine]
            means = caption_means(chosen, [items[i].place for i in mine])
            failed = sum(value != value for value in chosen)
            rows.append(ResultRow(tag, (means,), len(mine), failed, scorer, remark))
    groups = tuple(row.groups[0] for row in rows)
    failed = sum(row.failed for row in rows)
    rows.append(ResultRow("mean", groups, len(items), failed, scorer, remark, published.GENEVAL))
    return rows
