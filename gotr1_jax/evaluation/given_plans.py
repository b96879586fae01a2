"""What limits the images of the shapes world when the plan is right: `gotr1 eval given_plans`.

The policy gets the caption and the true plan of held-out scenes and draws the image; the exact
judge scores it. Beside it stand the true image, as rendered and through the image tokenizer and
back (no image can score more), and how likely the policy finds the true image tokens. A box of
some plans is moved at random (`box_edits.move_box`), to see whether the image follows. A stopped
command continues with the next batch.

OUT holds generated/, edited/ and reconstructed/ with a folder a scene, in the format of a run's
samples, and scores.md, scores.json and pictures.jsonl.
"""

from __future__ import annotations

import argparse
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from gotr1_jax.config import CheckedConfig
from gotr1_jax.convert.generation_config import resolve_sampling
from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.box_edits import move_box
from gotr1_jax.evaluation.drawing import load_drawing
from gotr1_jax.evaluation.facts import caption_facts, image_facts, training_judge
from gotr1_jax.evaluation.given_plans_report import (
    EDITED,
    GENERATED,
    NATS,
    RECONSTRUCTED,
    RENDERED,
    TERMS,
    SceneResult,
    write_report,
)
from gotr1_jax.evaluation.options import (
    CHECKPOINT,
    add_batch_size,
    add_card_option,
    add_sampling_options,
    begin_card,
    finish_card,
)
from gotr1_jax.evaluation.results import check_out
from gotr1_jax.evaluation.shapes import CAPTIONS, NOTE
from gotr1_jax.generate.config import (
    BUILT_IN,
    GenerateConfig,
    check_settings_file,
    checkpoint_settings,
    optional_template,
)
from gotr1_jax.generate.tasks import caption_tasks
from gotr1_jax.limits import (
    FilledText,
    Guidance,
    ItemCount,
    PromptTemplate,
    Range,
    RowCount,
    Seed,
    Temperature,
)
from gotr1_jax.plan import parse_plan
from gotr1_jax.rewards.base import JudgeRequest, JudgeResult
from gotr1_jax.shapes.dataset import ShapesSource
from gotr1_jax.shapes.judge import judge_sample
from gotr1_jax.shapes.render import render
from gotr1_jax.shapes.scenes import Scene
from gotr1_jax.tokenizers.janus import TextTokenizer

if TYPE_CHECKING:
    from gotr1_jax.generate.batches import SampleTask
    from gotr1_jax.trainer.samples import SampleRecord

# How images are sampled where the checkpoint does not say it.
_RECIPE = replace(BUILT_IN, guidance=3.0)
_Draw = Callable[["Sequence[SampleTask]"], "list[SampleRecord]"]


@dataclass(frozen=True)
class GivenPlansConfig(CheckedConfig):
    """What is measured.

    Attributes:
      out: directory of the results.
      ckpt: checkpoint directory, finished run, hub id, or "embedded".
      captions: number of held-out scenes.
      edits: of so many of them a second image is drawn, of the plan with one box moved.
      seed: of the scenes, the moves and the sampling.
      cfg: guidance weight of the images, 1: no guidance.
      temperature: of the image tokens.
      template: prompt text around the caption.
      batch_size: rows sampled at once.

    cfg, temperature, template: None is as the checkpoint says, else 3, 1 and GoT-R1's.
    """

    out: Path
    ckpt: FilledText
    captions: ItemCount = 128
    edits: Annotated[int, Range("[0, 10000000]")] = 100
    seed: Seed = 0
    cfg: Guidance | None = None
    temperature: Temperature | None = None
    template: PromptTemplate | None = None
    batch_size: RowCount = 64

    def check(self) -> None:
        """A directory that can be written; every edit has a scene of its own."""
        check_out(self.out)
        if self.edits > self.captions:
            raise InputError(
                f"edits is {self.edits}, more than captions {self.captions}: one plan of each "
                "scene is edited at most; give a smaller --edits or more --captions"
            )


@dataclass(frozen=True)
class PlannedScene:
    """A held-out scene; `edited` is its plan with one box moved, None where there is none."""

    caption: str
    plan: str
    scene: Scene
    edited: str | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 eval given_plans`."""
    parser.add_argument(
        "--ckpt", required=True, metavar="CKPT",
        help=CHECKPOINT,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    parser.add_argument(
        "--captions", type=int, default=128, metavar="N", help="held-out scenes (128)"
    )
    parser.add_argument(
        "--edits", type=int, metavar="N",
        help="scenes of which a second plan, with one box moved, is drawn too (100, or as many "
        "as there are; 0: none)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, help="of scenes, moved boxes and sampling (0)"
    )
    add_sampling_options(parser, ("cfg", "temperature"), "the checkpoint", _RECIPE)
    add_batch_size(parser)
    add_card_option(parser)


def run(options: argparse.Namespace) -> None:
    """Draw what has no results yet, write the table, print one line."""
    from gotr1_jax.convert.checkpoint import load_checkpoint
    from gotr1_jax.convert.find import find_checkpoint
    from gotr1_jax.io.files import write_json_atomic

    begin_card(options)
    values = {field.name: getattr(options, field.name) for field in fields(GivenPlansConfig)}
    values["template"] = optional_template(options.template)
    if options.edits is None:
        values["edits"] = min(100, options.captions)
    config = GivenPlansConfig(**values)
    source = find_checkpoint(config.ckpt)
    tokenizer = load_checkpoint(source, parts=()).tokenizer
    base = GenerateConfig(
        Path("."), prompt="none", cfg=config.cfg, image_temperature=config.temperature,
        seed=config.seed, template=config.template,
        batch_size=min(config.batch_size, config.captions),
    )  # fmt: skip
    base = resolve_sampling(base, source, _RECIPE)
    note = _note(config, base, source)
    if (config.out / NOTE).exists():
        check_settings_file(config.out / NOTE, note)
    cases = make_cases(config)
    # Given plans are of any length.
    true, edited = _encode(cases, tokenizer, replace(base, max_plan_tokens=None))
    longest = max(len(row.plan_ids) for row in (*true, *edited)) - 1  # without BOI
    base = replace(base, max_plan_tokens=longest)
    write_json_atomic(config.out / NOTE, note)
    generate = cache(partial(_load_generator, base, source, (*true, *edited)))
    found = {
        RECONSTRUCTED: _complete(
            config.out / RECONSTRUCTED, true, base, partial(_load_truth, base, source, cases)
        ),
        GENERATED: _complete(config.out / GENERATED, true, base, generate),
        EDITED: _complete(config.out / EDITED, edited, base, generate),
    }
    head = {"ckpt": config.ckpt, "settings": note, **_facts(config, base, cases, found)}
    scores = write_report(config.out, head, _results(cases, found))
    finish_card(options, "Images of given true plans", head, scores)


def _facts(
    config: GivenPlansConfig, base: GenerateConfig, cases: Sequence[PlannedScene],
    found: Mapping[str, Mapping[int, SampleRecord]],
) -> dict[str, Any]:  # fmt: skip
    """What must travel with the numbers; see `facts`. No plan is sampled: they are given."""
    sampling = {**base.sampled.stated, "seed": config.seed}
    for name in ("text_temperature", "max_plan_tokens"):
        sampling.pop(name, None)
    sizes = [record.image.shape[:2] for record in found[GENERATED].values()]
    return {
        "sampling": sampling,
        "captions": caption_facts([case.caption for case in cases], CAPTIONS),
        "images": image_facts(sizes, len(cases), config.ckpt),
        "training_judge": training_judge(config.ckpt, ["the exact judge"]),
    }


def make_cases(config: GivenPlansConfig) -> list[PlannedScene]:
    """The scenes and, for the first `edits` of those with room for it, their edited plans."""
    source = ShapesSource("heldout", config.captions, config.seed)
    stream = zlib.crc32(b"edits")
    cases: list[PlannedScene] = []
    left = config.edits
    for index in range(config.captions):
        example = source[index]
        edited = None
        if left:
            rng = np.random.default_rng((config.seed, stream, index))
            moved = move_box(rng, parse_plan(example.plan))
            edited = None if moved is None else moved.text
            left -= edited is not None
        cases.append(PlannedScene(example.caption, example.plan, example.scene, edited))
    return cases


def _note(config: GivenPlansConfig, base: GenerateConfig, source: Path) -> dict[str, Any]:
    """What the results depend on."""
    return {
        **checkpoint_settings(source),
        "template": base.template,
        "guidance": base.cfg,
        "temperature": base.image_temperature,
        "tokens": [base.greedy, base.top_k, base.top_p],
        "scenes": ShapesSource("heldout", config.captions, config.seed).key,
        "number of captions": config.captions,
        "edits": config.edits,
        "seed": config.seed,
    }


def _encode(
    cases: Sequence[PlannedScene], tokenizer: TextTokenizer, base: GenerateConfig
) -> tuple[list[SampleTask], list[SampleTask]]:
    """The cases with their true plans, and those with an edited one with that; indices stay."""
    from gotr1_jax.generate.batches import encode_samples

    def rows(plans: Sequence[str]) -> list[SampleTask]:
        tasks = caption_tasks([case.caption for case in cases], plans)
        return list(encode_samples(tasks, tokenizer, base))

    edited = rows([case.edited or case.plan for case in cases])
    return rows([case.plan for case in cases]), [
        row for row, case in zip(edited, cases) if case.edited is not None
    ]


def _complete(
    folder: Path, rows: Sequence[SampleTask], base: GenerateConfig, load: Callable[[], _Draw]
) -> dict[int, SampleRecord]:
    """The record of each row by its caption's index; draws the batches that are not all there.

    Batches are always the same ones, so that a stopped command ends with the same images.
    """
    from gotr1_jax.parallel.progress import Progress
    from gotr1_jax.trainer.samples import write_samples

    size = base.batch_size or len(rows)
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    missing = [b for b in batches if not all((folder / _name(row)).is_dir() for row in b)]
    if missing:
        draw = load()
        done = len(rows) - sum(map(len, missing))
        with Progress(folder.name, len(rows), start=done, unit="image") as progress:
            for batch in missing:
                for row, record in zip(batch, draw(batch), strict=True):
                    write_samples(folder, 0, [record], name=_name(row))
                done += len(batch)
                progress.update(done)
    for unfinished in folder.glob(".*"):  # of a process that was killed
        shutil.rmtree(unfinished)
    return {row.task.index: _read(folder / _name(row)) for row in rows}


def _name(row: SampleTask) -> str:
    return f"{row.task.index:05d}"


def _read(folder: Path) -> SampleRecord:
    from gotr1_jax.trainer.samples import read_samples

    records = read_samples(folder)
    if len(records) != 1 or not {*TERMS} <= {*records[0].scores}:
        raise InputError(f"{folder} holds no result of this command; remove it to draw it again")
    return records[0]


def _record(
    row: SampleTask, image: np.ndarray, extra: Mapping[str, float] | None = None
) -> SampleRecord:
    """The record of an image of a row's own plan, by the exact judge; its total is the verdict."""
    from gotr1_jax.trainer.samples import SampleRecord

    assert row.task.plans is not None
    plan = parse_plan(row.task.plans[0].text)
    judged = judge_sample(row.task.caption, plan, image)
    scores = {**judged.scores, **(extra or {})}
    result = JudgeResult(scores, judged.detections, judged.rationale)
    return SampleRecord.scored(
        JudgeRequest(row.task.caption, plan, image), result, scores["verdict"]
    )


def _load_generator(base: GenerateConfig, source: Path, rows: Sequence[SampleTask]) -> _Draw:
    """A function that draws the images of given plans."""
    drawing = load_drawing(base, source, rows)

    def draw(batch: Sequence[SampleTask]) -> list[SampleRecord]:
        images = drawing.draw_images(batch)
        return [_record(row, pixels) for row, (_, pixels) in zip(batch, images)]

    return draw


def _load_truth(base: GenerateConfig, source: Path, cases: Sequence[PlannedScene]) -> _Draw:
    """A function that gives the true images through the tokenizer, with the policy's nats."""
    from gotr1_jax.evaluation.true_images import ImageReconstructor, ImageTokenScorer
    from gotr1_jax.generate.batches import fill_batch, prompt_width

    reconstruct, nats = ImageReconstructor(source), ImageTokenScorer(source)

    def draw(batch: Sequence[SampleTask]) -> list[SampleRecord]:
        size = base.batch_size or len(batch)
        filled = [*batch, *[batch[-1]] * (size - len(batch))]
        scenes = [cases[row.task.index].scene for row in filled]
        true = np.stack([render(scene, reconstruct.image_size) for scene in scenes])
        ids_BU, pixels = reconstruct(true)
        C = prompt_width(max(len(row.prompt_ids) for row in batch))
        T = base.sampling.max_plan_tokens + 1  # with BOI
        nats_B = nats(fill_batch(batch, size, C, T), ids_BU)
        return [_record(row, pixels[i], {NATS: float(nats_B[i])}) for i, row in enumerate(batch)]

    return draw


def _results(
    cases: Sequence[PlannedScene], found: Mapping[str, Mapping[int, SampleRecord]]
) -> list[SceneResult]:
    """What is reported of each scene."""
    results = []
    for index, case in enumerate(cases):
        records = {kind: by_index[index] for kind, by_index in found.items() if index in by_index}
        size = records[RECONSTRUCTED].image.shape[0]
        truth = judge_sample(case.caption, parse_plan(case.plan), render(case.scene, size))
        scores = {RENDERED: truth.scores} | {k: dict(r.scores) for k, r in records.items()}
        results.append(
            SceneResult(case.caption, case.plan, case.edited, len(case.scene.objects), scores)
        )
    return results
