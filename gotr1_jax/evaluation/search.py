"""What test-time search gains, and costs, on the shapes world: `gotr1 eval search`.

Runs several searches of `gotr1 generate --search` over the same held-out captions, one sample each,
and scores what they keep with the exact judge. Equal draws (seed, number of the draw, caption) of
several searches are made once; the cost of each is counted in full. Gains are against a single
draw, with 95 % intervals by a paired bootstrap over captions. A stopped command continues with the
next search.

OUT holds searches.jsonl (a line a search), scores.json (with how they sampled), scores.md (the
table), gain.svg (gain over cost) and
for each search NAME.jsonl (a line a caption: scores, and what the search did) and its images in
pictures/NAME, which gallery.html shows side by side.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

from gotr1_jax.config import CheckedConfig, from_dict, load_config, to_plain
from gotr1_jax.convert.generation_config import resolve_sampling
from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.facts import caption_facts, image_facts, training_judge
from gotr1_jax.evaluation.gallery import GalleryImage, write_columns
from gotr1_jax.evaluation.options import CHECKPOINT, add_card_option, begin_card, finish_card
from gotr1_jax.evaluation.results import check_out
from gotr1_jax.evaluation.search_report import SearchResult, write_report
from gotr1_jax.evaluation.shapes import CAPTIONS, NOTE
from gotr1_jax.generate.config import (
    BUILT_IN,
    GenerateConfig,
    check_settings_file,
    checkpoint_settings,
)
from gotr1_jax.generate.search.config import SearchConfig, SearchJob
from gotr1_jax.grpo.config import RewardConfig
from gotr1_jax.images import image_size
from gotr1_jax.io.files import atomic_write, write_json_atomic
from gotr1_jax.io.reading import parse_json_object, read_lines
from gotr1_jax.io.strict_yaml import read_yaml
from gotr1_jax.io.write_errors import raise_write_errors
from gotr1_jax.jobs import add_command_help
from gotr1_jax.limits import FilledText, Guidance, ItemCount, RowCount, Seed, TokenCount
from gotr1_jax.rewards.combine import combine
from gotr1_jax.rewards.judge_config import JudgeConfig
from gotr1_jax.shapes.dataset import shapes_captions
from gotr1_jax.shapes.judge import SHAPES_TERMS, judge_sample

if TYPE_CHECKING:
    from gotr1_jax.generate.batches import SampleTask
    from gotr1_jax.generate.search.rounds import Drawing, Search
    from gotr1_jax.generate.write_results import GeneratedSample

_DEFAULT = """
- {name: none, search: {methods: [best_of], samples: 1}}
- {name: best of 2, search: {methods: [best_of], samples: 2}}
- {name: best of 4, search: {methods: [best_of], samples: 4}}
- {name: best of 8, search: {methods: [best_of], samples: 8}}
- {name: verify 2, search: {methods: [verify], plans: 2}}
- {name: verify 4, search: {methods: [verify], plans: 4}}
- {name: verify 8, search: {methods: [verify], plans: 8}}
- {name: repair, search: {methods: [repair]}}
- {name: verify 4 + repair, search: {methods: [verify, repair], plans: 4}}
- {name: repaint 2, search: {methods: [repaint], images: 2}}
- {name: repaint 4, search: {methods: [repaint], images: 4}}
- {name: verify 4 + repair + repaint 4,
   search: {methods: [verify, repair, repaint], plans: 4, images: 4}}
"""
# As in the shipped recipes, where the checkpoint does not say it.
_RECIPE = replace(BUILT_IN, guidance=3.0, max_plan_tokens=80)
# What only a checkpoint says.
_MORE = ("template", "text_temperature", "image_temperature", "top_k", "top_p", "greedy")
_Drawn = TypeVar("_Drawn")
IMAGE_FOLDER = "pictures"
_Found = tuple[list[dict[str, Any]], list[np.ndarray]]  # a line and an image for each caption


@dataclass(frozen=True)
class NamedSearchConfig(CheckedConfig):
    """A search of the comparison under its name."""

    # Its name in the results.
    name: FilledText
    search: SearchConfig

    def check(self) -> None:
        """A name that can be a file's."""
        if "/" in self.name or self.name.startswith(".") or len(self.name) > 100:
            raise InputError(
                f"name is {self.name!r}; use at most 100 characters without /, no dot first"
            )

    @property
    def job(self) -> SearchJob:
        """With the exact judge, which also picks the best of several."""
        return SearchJob(self.search, JudgeConfig(kind="shapes"), RewardConfig(total="v2"))


def _default_searches() -> tuple[NamedSearchConfig, ...]:
    values = read_yaml(_DEFAULT, "the default searches")
    return tuple(from_dict(NamedSearchConfig, value) for value in values)


@dataclass(frozen=True)
class SearchEvaluationConfig(CheckedConfig):
    """What is compared; the numbers of sampling are those of the shipped recipes."""

    # Each against the first.
    searches: tuple[NamedSearchConfig, ...] = field(default_factory=_default_searches)
    # Number of held-out captions.
    captions: ItemCount = 128
    # Seed of sampling.
    seed: Seed = 0
    # Weight of classifier-free guidance of the image. Null: as the checkpoint's
    # generation_config.json says, else 3.
    guidance: Guidance | None = None
    # Longest plan in tokens. Null: as the checkpoint's generation_config.json says, else 80.
    max_plan_tokens: TokenCount | None = None
    # Rows sampled at once.
    batch_size: RowCount = 64

    def check(self) -> None:
        """Searches of different names."""
        names = [search.name for search in self.searches]
        if not names or len(set(names)) < len(names):
            raise InputError("searches must be one or more of different names")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 eval search`."""
    parser.add_argument(
        "--ckpt", default="embedded", metavar="CKPT",
        help=f"{CHECKPOINT} (embedded)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    parser.add_argument(
        "--config", type=Path, metavar="FILE",
        help="YAML file of searches, captions, seed, guidance, max_plan_tokens and batch_size",
    )  # fmt: skip
    parser.add_argument("--captions", metavar="N", help="held-out captions (128)")
    parser.add_argument("--seed", metavar="N", help="of sampling (0)")
    parser.add_argument("--batch-size", metavar="B", help="rows sampled at once (64)")
    add_card_option(parser)
    add_command_help(parser, "eval search")


def run(options: argparse.Namespace) -> None:
    """Run the searches that have no results yet, score them, write the table and the plot."""
    from gotr1_jax.convert.find import find_checkpoint

    check_out(options.out)
    begin_card(options)
    names = ("captions", "seed", "batch_size")
    words = [f"--{n}={v}" for n in names if (v := getattr(options, n)) is not None]
    config = load_config(SearchEvaluationConfig, options.config, words)
    source = find_checkpoint(options.ckpt)
    base = resolve_sampling(_base(config), source, _RECIPE)
    note = _note(config, base, source)
    if (options.out / NOTE).exists():
        before = _RECIPE.stated
        check_settings_file(options.out / NOTE, note, {"sampling": {k: before[k] for k in _MORE}})
    options.out.mkdir(parents=True, exist_ok=True)
    write_json_atomic(options.out / NOTE, note)
    captions = shapes_captions("heldout", config.captions)
    search: Callable[[NamedSearchConfig], _Found] | None = None
    results = []
    for named in config.searches:
        file = options.out / f"{named.name}.jsonl"
        if not file.exists():
            search = search or _make_search(base, source, captions)
            lines, images = search(named)
            _write_images(options.out / IMAGE_FOLDER / named.name, images)
            atomic_write(file, "".join(json.dumps(line) + "\n" for line in lines))
        results.append(_read_result(named, file))
    head = {"ckpt": options.ckpt, **_facts(config, base, captions, options)}
    scores = write_report(options.out, results, SHAPES_TERMS, head)
    finish_card(options, "Test-time search on the shapes world", head, scores)
    columns = {s.name: _shown_images(s, options.out) for s in config.searches}
    if columns := {name: images for name, images in columns.items() if images}:
        print(write_columns(options.out, "Searches over the same captions", columns))


def _facts(
    config: SearchEvaluationConfig, base: GenerateConfig, captions: Sequence[str],
    options: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    """What must travel with the numbers; see `facts`. One image of each search is kept."""
    kept = (options.out / IMAGE_FOLDER / config.searches[0].name).glob("*.png")
    return {
        "sampling": {**base.sampled.stated, "seed": config.seed},
        "captions": caption_facts(captions, CAPTIONS),
        # None of a search of earlier versions.
        "images": {**image_facts(map(image_size, kept), len(captions), options.ckpt),
                   "per_caption": 1},
        "training_judge": training_judge(options.ckpt, ["the exact judge"]),
    }  # fmt: skip


def _base(config: SearchEvaluationConfig) -> GenerateConfig:
    """How images are sampled, as far as the file says it."""
    return GenerateConfig(
        Path("."), prompt="none", cfg=config.guidance, max_plan_tokens=config.max_plan_tokens,
        seed=config.seed, batch_size=config.batch_size, search=config.searches[0].job,
    )  # fmt: skip


def _note(config: SearchEvaluationConfig, base: GenerateConfig, source: Path) -> dict[str, Any]:
    """What the results depend on."""
    return {
        **checkpoint_settings(source),
        "number of captions": config.captions,
        "seed": config.seed,
        "guidance": base.cfg,
        "max_plan_tokens": base.max_plan_tokens,
        "sampling": {name: base.sampled.stated[name] for name in _MORE},
        "searches": {s.name: to_plain(s.search) for s in config.searches},
    }


def _make_search(
    base: GenerateConfig, source: Path, captions: Sequence[str]
) -> Callable[[NamedSearchConfig], _Found]:
    """A function that runs a search over all captions and gives a line and an image for each."""
    from gotr1_jax.convert.checkpoint import load_checkpoint
    from gotr1_jax.evaluation.drawing import load_drawing
    from gotr1_jax.generate.batches import encode_samples
    from gotr1_jax.generate.search.rounds import Search
    from gotr1_jax.generate.search.run import make_judges
    from gotr1_jax.generate.tasks import caption_tasks
    from gotr1_jax.parallel.progress import Progress

    tokenizer = load_checkpoint(source, parts=()).tokenizer
    rows = list(encode_samples(caption_tasks(captions), tokenizer, base))
    drawing = KnownDraws(load_drawing(base, source, rows))

    def search(named: NamedSearchConfig) -> _Found:
        whole = Search(
            named.search, drawing, tokenizer, make_judges(named.job), base.sampling.max_plan_tokens
        )
        found: dict[int, tuple[dict[str, Any], np.ndarray]] = {}
        with Progress(named.name, len(rows), unit="caption") as progress:
            for row, sample in whole(rows):
                assert sample.pixels is not None
                found[row.task.index] = _score(row, sample, whole), sample.pixels
                progress.update(len(found))
        lines, images = zip(*(found[i] for i in range(len(rows))))
        return list(lines), list(images)

    return search


def _score(row: SampleTask, sample: GeneratedSample, search: Search) -> dict[str, Any]:
    """A line of a search's file: the exact judge's scores of the kept sample."""
    assert sample.pixels is not None
    plan = search.read_plan(sample.plan_ids)
    scores = judge_sample(row.task.caption, plan, sample.pixels).scores
    return {
        "caption": row.task.caption,
        "plan_text": plan.text,
        "scores": scores,
        "search": sample.search,
    }


def _write_images(folder: Path, images: Sequence[np.ndarray]) -> None:
    """The kept images, uint8 (H, W, 3), as 00000.png, ..."""
    with raise_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{index:05d}.png")


def _shown_images(named: NamedSearchConfig, out: Path) -> list[GalleryImage]:
    """The images of a search; none of a search of earlier versions, which stored no image."""
    file, reward = out / f"{named.name}.jsonl", named.job.reward
    assert reward is not None
    shown = []
    for index, (_, text) in enumerate(read_lines(file, "scores")):
        line = parse_json_object(text, str(file))
        path = out / IMAGE_FOLDER / named.name / f"{index:05d}.png"
        if not path.is_file():
            return []
        scores = {term: np.array([value], np.float32) for term, value in line["scores"].items()}
        total = float(combine(scores, reward.total, reward.terms)[0])
        shown.append(
            GalleryImage(
                name=f"{named.name}/{path.stem}",
                path=path,
                caption=line["caption"],
                group=f"{index} {line['caption']}",
                scores={"total": total, **line["scores"]},
                plan=line["plan_text"],
            )
        )
    return shown


def _read_result(named: NamedSearchConfig, file: Path) -> SearchResult:
    """What is reported of a search."""
    lines = [parse_json_object(text, f"{file}, line {n}") for n, text in read_lines(file, "scores")]
    try:
        scores = {t: np.array([line["scores"][t] for line in lines]) for t in SHAPES_TERMS}
        costs: list[Mapping[str, int]] = [line["search"]["cost"] for line in lines]
        plan, image = (sum(c[k] for c in costs) for k in ("plan_tokens", "image_tokens"))
    except (KeyError, TypeError) as error:
        message = f"{file} holds no results of this command; choose another --out"
        raise InputError(message) from error
    reward = named.job.reward
    assert reward is not None
    total = combine(scores, reward.total, reward.terms)
    return SearchResult(named.name, {"total": total, **scores}, plan, image)


class KnownDraws:
    """Draws that are remembered: equal draws of several searches are made once."""

    def __init__(self, drawing: Drawing) -> None:
        self._drawing = drawing
        self._known: dict[Any, Any] = {}

    @property
    def batch_size(self) -> int:
        """Rows of a batch."""
        return self._drawing.batch_size

    def draw_plans(self, rows: Sequence[SampleTask]) -> list[list[int]]:
        """See `Drawing`."""
        return self._draw(rows, self._drawing.draw_plans)

    def draw_images(self, rows: Sequence[SampleTask]) -> list[tuple[list[int], np.ndarray]]:
        """See `Drawing`."""
        return self._draw(rows, self._drawing.draw_images)

    def _draw(
        self, rows: Sequence[SampleTask], draw: Callable[[Sequence[SampleTask]], list[_Drawn]]
    ) -> list[_Drawn]:
        keys = [(row.task.index, row.index, row.draw, tuple(row.plan_ids)) for row in rows]
        new = [row for row, key in zip(rows, keys) if key not in self._known]
        drawn = iter(draw(new) if new else [])
        for key in keys:
            if key not in self._known:
                self._known[key] = next(drawn)
        return [self._known[key] for key in keys]
