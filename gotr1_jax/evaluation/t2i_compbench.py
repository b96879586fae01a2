"""`gotr1 eval t2i_compbench`: attributes, relations and their mixture, in six categories.

Attributes (color, shape, texture) are what a VQA model says to each noun phrase; spatial relations
go by where a detector finds the objects; other relations by CLIP; complex captions by all three.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gotr1_jax.data.sources import iter_captions
from gotr1_jax.errors import InputError
from gotr1_jax.evaluation import job, published
from gotr1_jax.evaluation.asks import Kind, ModelQuery, found_objects, is_missing
from gotr1_jax.evaluation.compbench_rules import (
    Parts,
    attribute_score,
    complex_objects,
    complex_parts,
    phrase_questions,
    place_word,
    read_part_lists,
    simple_objects,
    spatial_score,
    without_adjectives,
)
from gotr1_jax.evaluation.folders import Item, compbench_items
from gotr1_jax.evaluation.phrases import Reader, Wording, make_reader
from gotr1_jax.evaluation.summary import ResultRow, caption_means
from gotr1_jax.generate.config import LAYOUTS
from gotr1_jax.vlm_engine.base import ImageInput

NAME = "t2i_compbench"
CATEGORIES = tuple(published.T2I_COMPBENCH)
MODELS: job.Models = {
    "yes": job.Model("vqa-model", "BLIP-VQA", "Salesforce/blip-vqa-capfilt-large", "BlipVqa"),
    "find": job.Model("detector", "OWLv2", "google/owlv2-base-patch16-ensemble", "Owl"),
    "match": job.Model("clip-model", "CLIP", "openai/clip-vit-base-patch32", "ClipMatch"),
}
_KINDS: Mapping[str, Kind] = {"spatial": "find", "non_spatial": "match"}
_COMPLEX_KINDS: Mapping[Parts, tuple[Kind, ...]] = {
    "spatial": ("yes", "find"),
    "action": ("yes", "match"),
    "both": ("yes", "find", "match"),
}
_BLIP_NOTE = "BLIP-VQA's port in transformers reads images at 384 pixels, the original at 480."
_RULES_REMARK = "noun phrases by rules in the place of spaCy's"
_DETECTOR_REMARK = "OWLv2 in the place of UniDet"
_PARTS_NOTE = (
    "Which parts a complex caption has goes by its words: the published lists "
    "(complex_val_spatial.txt, complex_val_action.txt) are not beside the captions."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 eval t2i_compbench`."""
    job.add_arguments(parser, NAME, MODELS)
    parser.add_argument(
        "--prompts", type=Path, required=True, metavar="PATH",
        help="the benchmark's folder with {category}_val.txt, or one category's file",
    )  # fmt: skip
    parser.add_argument(
        "--category", nargs="+", choices=CATEGORIES, default=list(CATEGORIES),
        help="which ones (all six)",
    )  # fmt: skip
    parser.add_argument(
        "--phrases", choices=("spacy", "rules"),
        help="noun phrases by spaCy, as published, or by rules (spacy; with --scorer judge rules)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Does what the parsed command line says."""
    files = _caption_files(options.prompts, options.category)
    captions = {name: _read_captions(file) for name, file in files.items()}
    lists = read_part_lists(files["complex"]) if "complex" in files else {}
    job.check_scorer(options)
    how = options.phrases or ("rules" if options.scorer == "judge" else "spacy")
    reader = make_reader(how) if set(files) != {"non_spatial"} else None
    items = {name: _items(options, name, captions[name], file) for name, file in files.items()}
    book, names = job.open_book(options, MODELS)
    rows: list[ResultRow] = []
    images: list[dict[str, Any]] = []
    for name in files:
        rules = CompbenchRules(name, captions[name], reader, lists)
        scored = job.score_items(items[name], rules, book, name)
        values = [s.values["score"] for s in scored]
        means = caption_means(values, [item.place for item in items[name]])
        failed = sum(value != value for value in values)
        scorer = " + ".join(dict.fromkeys(names[kind] for kind in rules.kinds))
        remark = _remark(options.scorer, how, rules.kinds, len(captions[name]))
        figures = published.t2i_compbench(name)
        rows.append(ResultRow(name, (means,), len(values), failed, scorer, remark, figures))
        images += [
            {"category": name, "picture": item.name, "caption": captions[name][item.place],
             "values": s.values, "words": s.words}
            for item, s in zip(items[name], scored)
        ]  # fmt: skip
    notes = [_PARTS_NOTE] if "complex" in files and not lists else []
    if options.scorer == "models" and set(files) - {"spatial", "non_spatial"}:
        notes.append(_BLIP_NOTE)
    head = {"benchmark": NAME, "scorer": options.scorer, "phrases": reader and reader.name}
    job.finish(options, "T2I-CompBench", head, rows, images, [*notes, published.REASONGEN])


class CompbenchRules:
    """Questions and scores of one category: the mean of what its captions ask for.

    Attributes:
        kinds: of the questions that the category asks: "yes" for attributes, "find" for
            positions, "match" for other relations.
    """

    def __init__(
        self,
        category: str,
        captions: Sequence[str],
        reader: Reader | None,
        lists: Mapping[Parts, Sequence[str]],
    ) -> None:
        """reader: of noun phrases; only non_spatial goes without. lists: as `complex_parts`."""
        self._captions, self._is_complex = captions, category == "complex"
        self._wordings = [Wording((), ()) if reader is None else reader.read(c) for c in captions]
        if self._is_complex:
            self._kinds = [_COMPLEX_KINDS[part] for part in complex_parts(captions, lists)]
        else:
            self._kinds = [(_KINDS.get(category, "yes"),)] * len(captions)
        self.kinds = [kind for kind in MODELS if any(kind in kinds for kinds in self._kinds)]

    def asks(self, item: Item, image: ImageInput, answers: job.Answers) -> list[ModelQuery]:
        """All questions of the caption at once."""
        kinds, wording = self._kinds[item.place], self._wordings[item.place]
        asks: list[ModelQuery] = []
        if "yes" in kinds:
            asks += [ModelQuery("yes", image, question) for question in phrase_questions(wording)]
        if "find" in kinds:
            asks += [ModelQuery("find", image, name) for name in self._objects(item.place)]
        if "match" in kinds:
            asks.append(ModelQuery("match", image, self._text(item.place)))
        return asks

    def score(self, item: Item, image: ImageInput, answers: job.Answers) -> job.ItemScore:
        """score: the mean of the parts; each part under its kind's name."""
        given: dict[str, list[Any]] = {kind: [] for kind in self._kinds[item.place]}
        words = []
        for ask in self.asks(item, image, answers):
            answer = answers[ask.key]
            given[ask.kind].append(answer)
            shown = "failed" if is_missing(answer) else (
                f"{len(answer)} found" if ask.kind == "find" else f"{answer:.3f}"
            )  # fmt: skip
            words.append(f"{ask.text} {shown}")
        values = {kind: self._part(kind, item.place, part, image) for kind, part in given.items()}
        score = sum(values.values()) / len(values)
        return job.ItemScore({"score": score, **values}, "; ".join(words))

    def _part(self, kind: str, place: int, given: Sequence[Any], image: ImageInput) -> float:
        if any(is_missing(answer) for answer in given):
            return math.nan
        if kind == "yes":
            return attribute_score(given)
        if kind == "match":
            return given[0]
        if not given:
            return 0.0  # the caption names no two objects
        first, second = found_objects(given[0]), found_objects(given[-1])
        return spatial_score(place_word(self._captions[place]), first, second, image.size)

    def _objects(self, place: int) -> tuple[str, ...]:
        wording = self._wordings[place]
        return (complex_objects if self._is_complex else simple_objects)(wording) or ()

    def _text(self, place: int) -> str:
        return (
            without_adjectives(self._wordings[place]) if self._is_complex else self._captions[place]
        )


def _caption_files(path: Path, categories: Sequence[str]) -> dict[str, Path]:
    """The file of each category."""
    if path.is_file():
        if len(categories) != 1:
            raise InputError(f"{path} is one category's file; say which by --category")
        return {categories[0]: path}
    if not path.is_dir():
        raise InputError(f"no captions at {path}: there is no such file or folder")
    files = {name: path / f"{name}_val.txt" for name in dict.fromkeys(categories)}
    for name, file in files.items():
        if not file.is_file():
            raise InputError(
                f"{path} has no {file.name}; add it, or leave {name} out by --category"
            )
    return files


def _read_captions(file: Path) -> list[str]:
    captions = [line.text for line in iter_captions(file, json_lines=False)]
    if captions[0].startswith("{"):
        raise InputError(f"{file} holds JSON, not a caption a line; is it of another benchmark?")
    return captions


def _items(
    options: argparse.Namespace, category: str, captions: Sequence[str], file: Path
) -> list[Item]:
    """The images of a category, drawn first unless they are given."""
    if options.images is None:
        folder = options.out / job.IMAGES / category
        job.draw_images(options, NAME, file, folder)
        return compbench_items(folder, captions, options.n or LAYOUTS[NAME])
    folder = options.images / category
    if not folder.is_dir() and len(set(options.category)) == 1:
        folder = options.images
    return compbench_items(folder, captions, options.n)


def _remark(scorer: str, how: str, kinds: Sequence[Kind], captions: int) -> str:
    """Why a category's number is not comparable with published ones, if so."""
    remarks = published.fewer(captions, published.T2I_COMPBENCH_CAPTIONS)
    if scorer == "judge":
        return " and ".join([job.JUDGE_REMARK, *remarks])
    if how == "rules" and kinds != ["match"]:
        remarks.insert(0, _RULES_REMARK)
    if "find" in kinds:
        remarks.insert(0, _DETECTOR_REMARK)
    return " and ".join(remarks)
