"""`gotr1 eval t2i_compbench`: attributes, relations and their mixture, in six categories.

And two of T2I-CompBench++, 3d_spatial and numeracy (`compbench_plus`).

A VQA model scores attributes (color, shape, texture) by noun phrase; a detector scores spatial
relations by the objects' positions; CLIP scores other relations; all three score complex captions.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gotr1_jax.data.captions import iter_captions
from gotr1_jax.errors import InputError
from gotr1_jax.evaluation import benchmark, published
from gotr1_jax.evaluation.benchmark import Answers, ImageScore, ModelOption, ModelOptions
from gotr1_jax.evaluation.compbench_plus import (
    OBJECTS_FILE,
    DepthRules,
    NumeracyRules,
    read_object_names,
)
from gotr1_jax.evaluation.compbench_rules import (
    ComplexKind,
    attribute_score,
    classify_complex,
    complex_objects,
    phrase_questions,
    read_complex_lists,
    simple_objects,
    spatial_relation,
    spatial_score,
    without_adjectives,
)
from gotr1_jax.evaluation.detections import read_detections
from gotr1_jax.evaluation.folders import BenchmarkImage, find_compbench_images
from gotr1_jax.evaluation.gallery import GalleryImage
from gotr1_jax.evaluation.phrases import CaptionParser, ParsedCaption, make_parser
from gotr1_jax.evaluation.queries import ModelQuery, QueryKind, is_failed
from gotr1_jax.evaluation.results import ResultRow, make_row
from gotr1_jax.vlm_engine.base import ImageInput

NAME = "t2i_compbench"
CATEGORIES = tuple(published.T2I_COMPBENCH)
PLUS = ("3d_spatial", "numeracy")
MODELS: ModelOptions = {
    "yes": ModelOption("vqa-model", "BLIP-VQA", "Salesforce/blip-vqa-capfilt-large", "BlipVqa"),
    "find": ModelOption("detector", "OWLv2", "google/owlv2-base-patch16-ensemble", "Owl"),
    "nearer": ModelOption(
        "depth-model",
        "Depth-Anything",
        "depth-anything/Depth-Anything-V2-Small-hf",
        "DepthAnything",
    ),
    "match": ModelOption("clip-model", "CLIP", "openai/clip-vit-base-patch32", "ClipMatch"),
}
_KINDS: Mapping[str, QueryKind] = {"spatial": "find", "non_spatial": "match"}
_COMPLEX_KINDS: Mapping[ComplexKind, tuple[QueryKind, ...]] = {
    "spatial": ("yes", "find"),
    "action": ("yes", "match"),
    "both": ("yes", "find", "match"),
}
_BLIP_NOTE = "BLIP-VQA's port in transformers reads images at 384 pixels, the original at 480."
_RULES_REMARK = "noun phrases by rules in the place of spaCy's"
_DETECTOR_REMARK = "OWLv2 in the place of UniDet"
_DEPTH_REMARK = "Depth-Anything in the place of DPT"
_OBJECTS_REMARK = f"objects by their noun phrases, for want of {OBJECTS_FILE} beside the captions"
_UPRIGHT = "3d_spatial, upright"
_UPRIGHT_NOTE = (
    f"{_UPRIGHT}: with the depths under the boxes. The published script, whose formula 3d_spatial "
    "has, takes rows of the depth map for columns."
)
_PARTS_NOTE = (
    "Rules on the words decide which parts a complex caption has: the published lists "
    "(complex_val_spatial.txt, complex_val_action.txt) are not next to the captions."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 eval t2i_compbench`."""
    prompts = "the benchmark's folder with {category}_val.txt, or one category's file"
    benchmark.add_arguments(parser, NAME, MODELS, prompts)
    parser.add_argument(
        "--category", nargs="+", choices=(*CATEGORIES, *PLUS), default=list(CATEGORIES),
        help=f"which ones (all six of T2I-CompBench; of T2I-CompBench++ also {', '.join(PLUS)})",
    )  # fmt: skip
    parser.add_argument(
        "--phrases", choices=("spacy", "rules"),
        help="noun phrases by spaCy, as published, or by rules (spacy; with --scorer judge rules)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """For each category: generate the images if needed, and score them. Write the results."""
    files = _caption_files(options.prompts, options.category)
    captions = {name: _read_captions(file) for name, file in files.items()}
    lists = read_complex_lists(files["complex"]) if "complex" in files else {}
    benchmark.check_options(options, MODELS)
    phrases = options.phrases or ("rules" if options.scorer == "judge" else "spacy")
    objects = read_object_names(files["numeracy"]) if "numeracy" in files else {}
    unparsed = {"non_spatial", "numeracy"} if objects else {"non_spatial"}
    parser = make_parser(phrases) if set(files) - unparsed else None
    items = {name: _find_images(options, name, captions[name], files[name]) for name in files}
    models, names = benchmark.open_models(options, MODELS)
    rows: list[ResultRow] = []
    records: list[dict[str, Any]] = []
    everything: list[ImageScore] = []
    shown: list[GalleryImage] = []
    for name in files:
        rules = _make_rules(name, captions[name], parser, lists, objects)
        scores = benchmark.score_images(items[name], rules, models, name)
        everything += scores
        remark = benchmark.comparison_remark(
            options, _substitutes(name, rules.kinds, phrases, objects), len(captions[name]),
            published.T2I_COMPBENCH_CAPTIONS,
        )  # fmt: skip
        scorer = " + ".join(dict.fromkeys(names[kind] for kind in rules.kinds))
        of = [item.caption for item in items[name]]
        values = [score.values["score"] for score in scores]
        rows.append(make_row(name, values, of, scorer, remark, published.t2i_compbench(name)))
        if "nearer" in rules.kinds and options.scorer == "models":
            upright = [score.values["upright"] for score in scores]
            rows.append(make_row(_UPRIGHT, upright, of, scorer, remark))
        records += [
            benchmark.image_record(item, captions[name][item.caption], score, category=name)
            for item, score in zip(items[name], scores)
        ]
        folder = items[name][0].path.parents[1]  # of samples/
        shown += benchmark.shown_images(items[name], captions[name], scores, folder, f"{name}/")
    notes = [_PARTS_NOTE] if "complex" in files and not lists else []
    if options.scorer == "models" and set(files) - {"spatial", "non_spatial", *PLUS}:
        notes.append(_BLIP_NOTE)
    if any(row.name == _UPRIGHT for row in rows):
        notes.append(_UPRIGHT_NOTE)
    head = {"benchmark": NAME, "scorer": options.scorer, "phrases": parser and parser.name}
    notes.append(published.REASONGEN)
    texts = [text for name in files for text in captions[name]]
    first = next(iter(files))
    source = files[first] if len(files) == 1 else options.prompts
    head |= benchmark.facts_head(options, NAME, source, texts, everything, names.values(), first)
    benchmark.finish(options, "T2I-CompBench", head, rows, records, notes, shown)


def _make_rules(
    name: str, captions: Sequence[str], parser: CaptionParser | None,
    lists: Mapping[ComplexKind, Sequence[str]], objects: Mapping[str, str],
) -> CompbenchRules | DepthRules | NumeracyRules:  # fmt: skip
    if name == "numeracy":
        return NumeracyRules(captions, objects, parser)
    if name == "3d_spatial":
        assert parser is not None
        return DepthRules(captions, parser)
    return CompbenchRules(name, captions, parser, lists)


def _substitutes(
    name: str, kinds: Sequence[QueryKind], phrases: str, objects: Mapping[str, str]
) -> list[str]:
    """Why a category's number is not comparable, besides the scorer and the captions."""
    remarks = [_DETECTOR_REMARK] if "find" in kinds else []
    remarks += [_DEPTH_REMARK] if "nearer" in kinds else []
    if name == "numeracy":
        return remarks if objects else [*remarks, _OBJECTS_REMARK]
    by_rules = phrases == "rules" and list(kinds) != ["match"]
    return [*remarks, _RULES_REMARK] if by_rules else remarks


class CompbenchRules:
    """Queries and scores of one category: the mean of the parts that its captions have.

    Attributes:
        kinds: of the category's queries: "yes" for attributes, "find" for positions, "match" for
            other relations.
    """

    def __init__(
        self,
        category: str,
        captions: Sequence[str],
        parser: CaptionParser | None,
        lists: Mapping[ComplexKind, Sequence[str]],
    ) -> None:
        """parser: None only for non_spatial. lists: see `classify_complex`."""
        self._captions, self._is_complex = captions, category == "complex"
        self._parsed = [
            ParsedCaption((), ()) if parser is None else parser.parse(c) for c in captions
        ]
        if self._is_complex:
            self._kinds = [_COMPLEX_KINDS[kind] for kind in classify_complex(captions, lists)]
        else:
            self._kinds = [(_KINDS.get(category, "yes"),)] * len(captions)
        self.kinds = [kind for kind in MODELS if any(kind in kinds for kinds in self._kinds)]

    def queries(self, caption: int, image: ImageInput, answers: Answers) -> list[ModelQuery]:
        """All queries of the caption at once."""
        kinds, parsed = self._kinds[caption], self._parsed[caption]
        texts: dict[QueryKind, Sequence[str]] = {
            "yes": phrase_questions(parsed),
            "find": (complex_objects if self._is_complex else simple_objects)(parsed) or (),
            "match": [without_adjectives(parsed) if self._is_complex else self._captions[caption]],
        }
        return [ModelQuery(kind, image, text) for kind in kinds for text in texts[kind]]

    def score(self, caption: int, image: ImageInput, answers: Answers) -> ImageScore:
        """score: the mean of the parts; each part under its kind's name."""
        by_kind: dict[str, list[Any]] = {kind: [] for kind in self._kinds[caption]}
        reasons = []
        for query in self.queries(caption, image, answers):
            answer = answers[query.key]
            by_kind[query.kind].append(answer)
            shown = "failed" if is_failed(answer) else (
                f"{len(answer)} found" if query.kind == "find" else f"{answer:.3f}"
            )  # fmt: skip
            reasons.append(f"{query.text} {shown}")
        values = {kind: self._part(kind, caption, part, image) for kind, part in by_kind.items()}
        score = sum(values.values()) / len(values)
        return ImageScore({"score": score, **values}, "; ".join(reasons))

    def _part(self, kind: str, caption: int, answers: Sequence[Any], image: ImageInput) -> float:
        if any(map(is_failed, answers)):
            return math.nan
        if kind == "yes":
            return attribute_score(answers)
        if kind == "match":
            return answers[0]
        if not answers:
            return 0.0  # the caption names no two objects
        first, second = read_detections(answers[0]), read_detections(answers[-1])
        return spatial_score(spatial_relation(self._captions[caption]), first, second, image.size)


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


def _find_images(
    options: argparse.Namespace, category: str, captions: Sequence[str], file: Path
) -> list[BenchmarkImage]:
    """The images of a category, generated first unless --images is given."""
    folder, count = benchmark.image_folder(options, NAME, file, category)
    if options.images is not None:
        # The images of a single category may be in --images itself.
        is_single = len(set(options.category)) == 1 and not (folder / category).is_dir()
        folder = folder if is_single else folder / category
    return find_compbench_images(folder, captions, count)
