"""What the benchmarks share: options, image generation, queries to the models.

A benchmark is a set of prompts and `BenchmarkRules`: the queries to the models about each image,
and the score computed from their answers. Its module's `run` reads the prompts, gets the images
(`image_folder`), opens the models (`open_models`), scores (`score_images`) and writes
(`results.write_results`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.evaluation import facts
from gotr1_jax.evaluation.folders import BenchmarkImage
from gotr1_jax.evaluation.gallery import GalleryImage, known_plans
from gotr1_jax.evaluation.options import add_card_option, begin_card, finish_card
from gotr1_jax.evaluation.queries import CachedModels, ModelQuery, QueryKind, QueryModel
from gotr1_jax.evaluation.results import ResultRow, check_out, write_results
from gotr1_jax.generate.command import add_sampling_arguments, generate
from gotr1_jax.generate.config import LAYOUTS, GenerateConfig, optional_template
from gotr1_jax.generate.layouts import make_layout
from gotr1_jax.images import open_image
from gotr1_jax.io.files import atomic_write
from gotr1_jax.io.reading import read_json_object
from gotr1_jax.rewards.command import add_judge_options, device_mesh, read_judge_options
from gotr1_jax.rewards.factory import check_engine, make_engine
from gotr1_jax.rewards.judge_config import KINDS
from gotr1_jax.vlm_engine import first_token
from gotr1_jax.vlm_engine.base import ImageInput, make_image_input

IMAGES = "pictures"
ANSWERS = "answers"
CAPTIONS = "captions.jsonl"

Answers = Mapping[str, Any]
"""Answers by the queries' keys."""


@dataclass(frozen=True)
class ImageScore:
    """The score of an image: values in [0, 1] by name (NaN: could not be scored), and why.

    `size` is its height and width in pixels, as `score_images` read it.
    """

    values: Mapping[str, float]
    reason: str = ""
    size: tuple[int, int] = (0, 0)


class BenchmarkRules(Protocol):
    """A benchmark's queries about an image, and the score."""

    def queries(self, caption: int, image: ImageInput, answers: Answers) -> list[ModelQuery]:
        """The queries known so far; called again with their answers until no new ones come.

        A query may depend on the answers to earlier ones. `caption` is an index.
        """
        ...

    def score(self, caption: int, image: ImageInput, answers: Answers) -> ImageScore: ...


@dataclass(frozen=True)
class ModelOption:
    """A model of `transformers` for one kind of query.

    Attributes:
        flag: command-line option that names another checkpoint.
        name: shown in the table.
        default: hub id.
        class_name: in `torch_models`.
    """

    flag: str
    name: str
    default: str
    class_name: str


ModelOptions = Mapping[QueryKind, ModelOption]


def add_arguments(
    parser: argparse.ArgumentParser, layout: str, models: ModelOptions, prompts: str
) -> None:
    """The options of all benchmarks; `prompts` is the help of --prompts, empty: there is none.

    Without `models` the benchmark is scored by the judge alone.
    """
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--ckpt", metavar="CKPT", help="checkpoint directory, run or hub id that generates images"
    )
    source.add_argument(
        "--images", type=Path, metavar="DIR", help="existing images, in the benchmark's layout"
    )
    if prompts:
        parser.add_argument("--prompts", type=Path, required=True, metavar="PATH", help=prompts)
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    parser.add_argument("--n", type=int, help=f"images per caption ({LAYOUTS[layout]})")
    parser.add_argument(
        "--batch-size", type=int, metavar="B", help="rows sampled at once (by free memory)"
    )
    add_sampling_arguments(parser)
    if models:
        parser.add_argument(
            "--scorer", choices=("models", "judge"), default="models",
            help="score by the benchmark's kind of models, in torch, or by the judge alone "
            "(models)",
        )  # fmt: skip
    else:
        parser.set_defaults(scorer="judge")
    for model in models.values():
        parser.add_argument(
            f"--{model.flag}", default=model.default, metavar="CKPT",
            help=f"{model.name}: hub id or directory ({model.default})",
        )  # fmt: skip
    parser.add_argument(
        "--expanded-by", metavar="TEXT",
        help="what made the captions of --prompts longer, for the table (they are as published)",
    )  # fmt: skip
    add_card_option(parser)
    add_judge_options(parser)


def check_options(options: argparse.Namespace, kinds: Iterable[QueryKind]) -> None:
    """InputError for options that cannot work, before anything is generated.

    kinds: of the queries to the models.
    """
    if options.n is not None and options.n < 1:
        raise InputError(f"--n is {options.n}; use 1 or more")
    check_out(options.out)
    begin_card(options)
    if options.scorer == "judge":
        judge = read_judge_options(options)
        check_engine(judge.judge)
        if not KINDS[judge.judge.kind].in_process:
            from gotr1_jax.evaluation.judge_model import JudgeModel

            # Loads nothing, and refuses a reading that a server cannot give.
            JudgeModel(make_engine(judge.judge), judge.judge.questions, kinds)
        device_mesh(judge)  # before generation initializes the devices
    else:
        from gotr1_jax.evaluation.torch_models import check_torch

        check_torch()


def word_reading(options: argparse.Namespace) -> tuple[str, list[str]]:
    """How the judge's answers of one word are read, and what the table says of it."""
    judge = read_judge_options(options).judge
    reading = judge.questions.reading
    if reading == "text" or KINDS[judge.kind].in_process:
        return reading, []
    note = (
        f"Probabilities: of the {first_token.TOP} likeliest first tokens, as the server names "
        "them; a right word that is not among them counts 0."
    )
    return reading, [note]


def image_folder(
    options: argparse.Namespace, layout: str, prompts: Path, category: str = ""
) -> tuple[Path, int | None]:
    """The folder of the images, and their number per caption (None: as many as there are).

    Without --images, missing images are generated first, as by `gotr1 generate --layout`.
    """
    if options.images is not None:
        return options.images, options.n
    folder = options.out / IMAGES / category
    given = {f.name: getattr(options, f.name) for f in fields(GenerateConfig) if f.name in options}
    changed = {"out": folder, "prompts": prompts, "layout": layout}
    template = optional_template(options.template)
    generate(GenerateConfig(**{**given, **changed, "template": template}))
    return folder, options.n or LAYOUTS[layout]


def write_captions(out: Path, captions: Sequence[str]) -> Path:
    """A file of captions to generate from, whatever the benchmark's own file is called."""
    path = out / CAPTIONS
    lines = (json.dumps({"prompt": text}, ensure_ascii=False) + "\n" for text in captions)
    atomic_write(path, "".join(lines))
    return path


def facts_head(
    options: argparse.Namespace, layout: str, prompts: Path, captions: Sequence[str],
    scores: Sequence[ImageScore], scorers: Iterable[str], category: str = "",
) -> dict[str, Any]:  # fmt: skip
    """For scores.json and the table's foot, what must travel with the numbers; see `facts`.

    Args:
        prompts: file or folder of the captions; of their category where there are several.
        captions, scores: all that were scored.
        scorers: the models' names for the table.
        category: of the images, as of `image_folder`.
    """
    settings = _generation_settings(options, layout, prompts, category)
    source = str(options.ckpt or settings.get("checkpoint") or f"{options.images} (given)")
    return {
        "sampling": facts.sampling_facts(settings),
        "captions": facts.caption_facts(captions, prompts.name, options.expanded_by),
        "images": facts.image_facts([score.size for score in scores], len(captions), source),
        "training_judge": facts.training_judge(options.ckpt or settings.get("checkpoint"), scorers),
    }


def _generation_settings(
    options: argparse.Namespace, layout: str, prompts: Path, category: str
) -> dict[str, Any]:
    """What `gotr1 generate` wrote of the images' sampling; empty where it did not make them."""
    root = options.out / IMAGES if options.images is None else options.images
    for folder in dict.fromkeys((root / category, root)):
        with suppress(InputError):  # a folder that cannot be written is none to generate into
            layout_of = make_layout(GenerateConfig(out=folder, prompts=prompts, layout=layout))
            if found := read_json_object(layout_of.settings_file, missing_ok=True):
                return found
    return {}


def finish(
    options: argparse.Namespace, title: str, head: Mapping[str, Any], rows: Sequence[ResultRow],
    records: Sequence[Mapping[str, Any]], notes: Sequence[str], shown: Sequence[GalleryImage],
) -> None:  # fmt: skip
    """Writes the results, with the facts of `head` at the table's foot, and the card if wanted."""
    notes = [*notes, *facts.facts_lines(head)]
    write_results(options.out, title, head, rows, records, notes, shown)
    finish_card(options, title, head, {row.name: row.to_json() for row in rows})


def open_models(
    options: argparse.Namespace, models: ModelOptions | Sequence[QueryKind]
) -> tuple[CachedModels, dict[QueryKind, str]]:
    """The models behind an answer cache, and their names for the table.

    models: by kind of query; kinds alone are answered by the judge.
    """
    opened: dict[QueryKind, QueryModel] = {}
    if options.scorer == "judge":
        from gotr1_jax.evaluation.judge_model import JudgeModel

        job = read_judge_options(options)
        engine = make_engine(job.judge, device_mesh(job))
        judge = JudgeModel(engine, job.judge.questions, models)
        opened = {kind: judge for kind in models}
        names: dict[QueryKind, str] = {kind: f"judge {engine.identity}" for kind in models}
    else:
        from gotr1_jax.evaluation import torch_models

        assert isinstance(models, Mapping)
        names = {}
        for kind, model in models.items():
            source = getattr(options, model.flag.replace("-", "_"))
            opened[kind] = getattr(torch_models, model.class_name)(source)
            names[kind] = f"{model.name} ({source})"
    return CachedModels(options.out / ANSWERS, opened), names


def score_images(
    images: Sequence[BenchmarkImage], rules: BenchmarkRules, models: CachedModels, label: str
) -> list[ImageScore]:
    """The score of each image; only queries without a stored answer go to the models.

    InputError, naming the file, for an image that cannot be read or scored.
    """
    from gotr1_jax.parallel.progress import Progress

    scores: list[ImageScore] = []
    size = models.images_per_call
    with Progress(label, len(images), unit="image") as progress:
        for start in range(0, len(images), size):
            batch = [(item, read_image(item.path)) for item in images[start : start + size]]
            answers: dict[str, Any] = {}
            while new := _new_queries(batch, rules, answers):
                answers |= models.answer(new)
            for item, image in batch:
                scored = rules.score(item.caption, image, answers)
                scores.append(replace(scored, size=image.size))
            progress.update(len(scores))
    return scores


def _new_queries(
    batch: Sequence[tuple[BenchmarkImage, ImageInput]], rules: BenchmarkRules, answers: Answers
) -> list[ModelQuery]:
    new: list[ModelQuery] = []
    for item, image in batch:
        try:
            queries = rules.queries(item.caption, image, answers)
        except InputError as error:
            raise InputError(f"{item.path}: {error}") from error
        new += [query for query in queries if query.key not in answers]
    return new


def read_image(path: Path) -> ImageInput:
    """The image in a file; InputError where it cannot be decoded."""
    return make_image_input(np.array(open_image(path)))


def image_record(
    item: BenchmarkImage, caption: str, score: ImageScore, **first: str
) -> dict[str, Any]:
    """The line of an image in pictures.jsonl."""
    values = {"values": score.values, "words": score.reason}
    return {**first, "picture": item.name, "caption": caption, **values}


def shown_images(
    items: Sequence[BenchmarkImage], captions: Sequence[str], scores: Sequence[ImageScore],
    folder: Path, prefix: str = "",
) -> list[GalleryImage]:  # fmt: skip
    """The images of the gallery, with the plans of those that were generated.

    captions: by the items' index. prefix: of the images' names, which a category needs.
    """
    plans = known_plans(folder)
    return [
        GalleryImage(
            name=f"{prefix}{item.name}",
            path=item.path,
            caption=captions[item.caption],
            group=f"{prefix}{item.caption}",
            scores=score.values,
            plan=plans.get(item.path.resolve()),
            words=score.reason,
        )
        for item, score in zip(items, scores)
    ]


def comparison_remark(
    options: argparse.Namespace,
    substitutes: Iterable[str] = (),
    captions: int = 0,
    published_captions: int = 0,
) -> str:
    """Why a number is not comparable with published ones; empty where it is.

    Args:
        options: of the command: the scorer.
        substitutes: models that differ from the benchmark's own, with the scorer "models".
        captions, published_captions: number of captions evaluated, here and in the paper.
    """
    judge = ["the judge in the place of the benchmark's models"]
    remarks = judge if options.scorer == "judge" else list(substitutes)
    if captions != published_captions:
        remarks.append(f"{captions} captions in the place of {published_captions}")
    return " and ".join(remarks)
