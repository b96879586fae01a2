"""`gotr1 eval geneval`: are the objects there, with the right count, color and position?"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from gotr1_jax.evaluation import benchmark, published
from gotr1_jax.evaluation.benchmark import Answers, ImageScore, ModelOption, ModelOptions
from gotr1_jax.evaluation.detections import Detection, read_detections
from gotr1_jax.evaluation.folders import find_geneval_images
from gotr1_jax.evaluation.geneval_rules import (
    TAGS,
    GenevalPrompt,
    check_image,
    filter_detections,
    objects_to_color,
    read_prompts,
)
from gotr1_jax.evaluation.queries import ModelQuery, is_failed
from gotr1_jax.evaluation.results import ResultRow, make_row
from gotr1_jax.vlm_engine.base import ImageInput

NAME = "geneval"
MODELS: ModelOptions = {
    "find": ModelOption(
        "detector", "Mask2Former", "facebook/mask2former-swin-small-coco-instance", "Mask2Former"
    ),
    "color": ModelOption("clip-model", "CLIP", "openai/clip-vit-large-patch14", "ClipColor"),
}
_SUBSTITUTE = "Mask2Former's own weights in the place of mmdet's"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 eval geneval`."""
    benchmark.add_arguments(parser, NAME, MODELS, "the benchmark's evaluation_metadata.jsonl")


def run(options: argparse.Namespace) -> None:
    """Generate the images if needed, score them, write the results."""
    prompts = read_prompts(options.prompts)
    benchmark.check_options(options, MODELS)
    folder, count = benchmark.image_folder(options, NAME, options.prompts)
    items = find_geneval_images(folder, prompts, count)
    models, names = benchmark.open_models(options, MODELS)
    scores = benchmark.score_images(items, GenevalRules(prompts), models, NAME)
    remark = benchmark.comparison_remark(
        options, [_SUBSTITUTE], len(prompts), published.GENEVAL_CAPTIONS
    )
    scorer = " + ".join(dict.fromkeys(names.values()))
    rows = []
    for tag in TAGS:
        group = [i for i, item in enumerate(items) if prompts[item.caption].tag == tag]
        if group:
            values = [scores[i].values["correct"] for i in group]
            of = [items[i].caption for i in group]
            rows.append(make_row(tag, values, of, scorer, remark, published.geneval(tag)))
    groups, failed = tuple(row.groups[0] for row in rows), sum(row.failed for row in rows)
    mean = published.geneval("mean")
    rows.append(ResultRow("mean", groups, len(items), failed, scorer, remark, mean))
    records = [
        benchmark.image_record(item, prompt.prompt, score, task=prompt.tag)
        for item, score in zip(items, scores)
        for prompt in (prompts[item.caption],)
    ]
    head = {"benchmark": NAME, "scorer": options.scorer}
    texts = [prompt.prompt for prompt in prompts]
    head |= benchmark.facts_head(options, NAME, options.prompts, texts, scores, names.values())
    shown = benchmark.shown_images(items, texts, scores, folder)
    benchmark.finish(options, "GenEval", head, rows, records, [published.REASONGEN], shown)


class GenevalRules:
    """Queries and scores of GenEval; see `geneval_rules`."""

    def __init__(self, prompts: Sequence[GenevalPrompt]) -> None:
        self._prompts = prompts

    def queries(self, caption: int, image: ImageInput, answers: Answers) -> list[ModelQuery]:
        """Detection queries; after their answers, color queries for the objects that count."""
        prompt = self._prompts[caption]
        finds = [ModelQuery("find", image, name) for name in prompt.names]
        objects = _find_objects(prompt, image, answers)
        return finds if objects is None else finds + _color_queries(prompt, image, objects)

    def score(self, caption: int, image: ImageInput, answers: Answers) -> ImageScore:
        """correct: 1 or 0; NaN where an answer is missing."""
        prompt = self._prompts[caption]
        objects = _find_objects(prompt, image, answers)
        if objects is None:
            return ImageScore({"correct": math.nan}, "a detection failed")
        colors: dict[tuple[str, Detection], str] = {}
        for query in _color_queries(prompt, image, objects):
            assert query.target is not None
            if is_failed(answers[query.key]):
                return ImageScore({"correct": math.nan}, "a color query failed")
            colors[query.color, query.target] = answers[query.key]
        is_correct, violations = check_image(prompt, objects, colors)
        return ImageScore({"correct": float(is_correct)}, violations)


def _find_objects(
    prompt: GenevalPrompt, image: ImageInput, answers: Answers
) -> dict[str, list[Detection]] | None:
    """Each class's `filter_detections`; None while an answer is missing."""
    found = {n: answers.get(ModelQuery("find", image, n).key, math.nan) for n in prompt.names}
    if any(map(is_failed, found.values())):
        return None
    return {name: filter_detections(prompt, read_detections(a)) for name, a in found.items()}


def _color_queries(
    prompt: GenevalPrompt, image: ImageInput, objects: dict[str, list[Detection]]
) -> list[ModelQuery]:
    return [
        ModelQuery("color", image, required.name, required.color, detection)
        for required in prompt.include
        for detection in objects_to_color(required, objects)
    ]
