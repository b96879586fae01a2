"""What the benchmarks have in common: options, drawing, asking, and who answers."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from gotr1_jax.errors import InputError, RunError
from gotr1_jax.evaluation.asks import Kind, ModelQuery, QueryAnswers, QueryModel, read_image
from gotr1_jax.evaluation.folders import Item
from gotr1_jax.evaluation.summary import ResultRow, write_result
from gotr1_jax.generate.command import add_sampling_arguments, generate
from gotr1_jax.generate.config import LAYOUTS, GenerateConfig, read_template
from gotr1_jax.rewards.command import add_judge_options, device_mesh, read_judge_options
from gotr1_jax.rewards.factory import check_engine, make_engine
from gotr1_jax.vlm_engine.base import ImageInput

IMAGES = "pictures"
ANSWERS = "answers"
JUDGE_REMARK = "the judge in the place of the benchmark's models"

Answers = Mapping[str, Any]
"""Answers by the questions' keys."""


@dataclass(frozen=True)
class ItemScore:
    """What came of an image: values in [0, 1] by name, NaN where not to be told, and why."""

    values: Mapping[str, float]
    words: str = ""


class Rules(Protocol):
    """A benchmark's questions about an image, and their score."""

    def asks(self, item: Item, image: ImageInput, answers: Answers) -> list[ModelQuery]:
        """The questions that are known so far; called anew with their answers until no more come.

        A question may depend on the answers to earlier ones.
        """
        ...

    def score(self, item: Item, image: ImageInput, answers: Answers) -> ItemScore: ...


@dataclass(frozen=True)
class Model:
    """A model of `transformers` for one kind of question.

    Attributes:
        option: of the command line that names another checkpoint.
        name: of the model, for the table.
        default: hub id.
        make: its class in `torch_models`.
    """

    option: str
    name: str
    default: str
    make: str


Models = Mapping[Kind, Model]


def add_arguments(parser: argparse.ArgumentParser, layout: str, models: Models) -> None:
    """The options that all benchmarks have; add --prompts beside them."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--ckpt", metavar="CKPT", help="checkpoint directory, finished run or hub id: draws with it"
    )
    source.add_argument(
        "--images", type=Path, metavar="DIR", help="images that exist, in the benchmark's layout"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    parser.add_argument("--n", type=int, help=f"images of each caption ({LAYOUTS[layout]})")
    parser.add_argument(
        "--batch-size", type=int, metavar="B", help="rows drawn at once (by free memory)"
    )
    add_sampling_arguments(parser)
    parser.add_argument(
        "--scorer", choices=("models", "judge"), default="models",
        help="who scores: the benchmark's kind of models, by torch, or the judge alone (models)",
    )  # fmt: skip
    for model in models.values():
        parser.add_argument(
            f"--{model.option}", default=model.default, metavar="CKPT",
            help=f"{model.name}: hub id or directory ({model.default})",
        )  # fmt: skip
    add_judge_options(parser)


def check_scorer(options: argparse.Namespace) -> None:
    """InputError for a scorer that cannot work, before anything is drawn."""
    if options.n is not None and options.n < 1:
        raise InputError(f"--n is {options.n}; use 1 or more")
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out {options.out} is a file; choose a directory")
    if options.scorer == "judge":
        judge = read_judge_options(options)
        check_engine(judge.judge)
        device_mesh(judge)  # before drawing starts the devices
    else:
        from gotr1_jax.evaluation.torch_models import need_torch

        need_torch()


def draw_images(options: argparse.Namespace, layout: str, prompts: Path, folder: Path) -> None:
    """Draw what is missing in `folder`, as `gotr1 generate --layout` does."""
    given = {f.name: getattr(options, f.name) for f in fields(GenerateConfig) if f.name in options}
    changed = {"out": folder, "prompts": prompts, "layout": layout}
    template = read_template(options.template)
    generate(GenerateConfig(**{**given, **changed, "template": template}))


def open_book(options: argparse.Namespace, models: Models) -> tuple[QueryAnswers, dict[Kind, str]]:
    """The store of answers with who gives them, and their names for the table."""
    answerers: dict[Kind, QueryModel] = {}
    if options.scorer == "judge":
        from gotr1_jax.evaluation.judge_models import JudgeModel

        job = read_judge_options(options)
        engine = make_engine(job.judge, device_mesh(job))
        judge = JudgeModel(engine, job.judge.questions)
        answerers = {kind: judge for kind in models}
        names: dict[Kind, str] = {kind: f"judge {engine.identity}" for kind in models}
    else:
        from gotr1_jax.evaluation import torch_models

        names = {}
        for kind, model in models.items():
            source = getattr(options, model.option.replace("-", "_"))
            answerers[kind] = getattr(torch_models, model.make)(source)
            names[kind] = f"{model.name} ({source})"
    return QueryAnswers(options.out / ANSWERS, answerers), names


def score_items(
    items: Sequence[Item], rules: Rules, book: QueryAnswers, label: str
) -> list[ItemScore]:
    """What came of each image; only questions without a stored answer go to models.

    InputError for an image that cannot be read.
    """
    from gotr1_jax.io.progress import Progress

    scored: list[ItemScore] = []
    together = book.images
    with Progress(label, len(items), unit="picture") as progress:
        for start in range(0, len(items), together):
            group = [(item, read_image(item.path)) for item in items[start : start + together]]
            answers: dict[str, Any] = {}
            while new := _new_asks(group, rules, answers):
                answers |= book.ask(new)
            scored += [rules.score(item, image, answers) for item, image in group]
            progress.update(len(scored))
    return scored


def _new_asks(
    group: Sequence[tuple[Item, ImageInput]], rules: Rules, answers: Answers
) -> list[ModelQuery]:
    asks = (ask for item, image in group for ask in rules.asks(item, image, answers))
    return [ask for ask in asks if ask.key not in answers]


def finish(
    options: argparse.Namespace,
    title: str,
    head: Mapping[str, Any],
    rows: Sequence[ResultRow],
    images: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
) -> None:
    """Write the result and print its table; RunError where nothing could be told at all."""
    print(write_result(options.out, title, head, rows, images, notes))
    print(options.out)
    if all(row.failed == row.images for row in rows):
        raise RunError(f"not one image could be scored; see {options.out}")
