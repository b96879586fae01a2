"""Samples before and after training as one image: `gotr1 strip`.

The captions are the first held-out ones of the seed, in their order, each with one sample of
either checkpoint, whatever comes out: nothing is chosen by its result. The samples are those of
`gotr1 generate` for these captions, settings and seed.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

from gotr1_jax.config import CheckedConfig
from gotr1_jax.convert.generation_config import resolve_sampling
from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.drawing import load_drawing
from gotr1_jax.evaluation.options import CHECKPOINT, add_sampling_options
from gotr1_jax.evaluation.strip_image import StripPair, StripSample, draw_strip
from gotr1_jax.generate.config import BUILT_IN, GenerateConfig, optional_template
from gotr1_jax.generate.tasks import caption_tasks, read_plan
from gotr1_jax.limits import (
    FilledText,
    Guidance,
    PromptTemplate,
    Range,
    Seed,
    Temperature,
    TokenCount,
)
from gotr1_jax.shapes.dataset import shapes_captions
from gotr1_jax.shapes.judge import judge_sample

# How is sampled where a checkpoint does not say it.
_RECIPE = replace(BUILT_IN, guidance=3.0, max_plan_tokens=256)


@dataclass(frozen=True)
class StripConfig(CheckedConfig):
    """What is shown.

    Attributes:
      out: the PNG file.
      before, after: checkpoint directory, finished run, hub id, or "embedded".
      captions: number of held-out captions.
      seed: of the captions' order and of sampling.
      cfg: guidance weight of the images, 1: no guidance.
      temperature: of plan and image.
      max_plan_tokens: longest plan.
      template: prompt text around the caption.

    The last four: None is as each checkpoint says, else 3, 1, 256 and GoT-R1's.
    """

    out: Path
    before: FilledText
    after: FilledText
    captions: Annotated[int, Range("[1, 64]", why="all stand in one image")] = 8
    seed: Seed = 0
    cfg: Guidance | None = None
    temperature: Temperature | None = None
    max_plan_tokens: TokenCount | None = None
    template: PromptTemplate | None = None

    def check(self) -> None:
        """A file that can be written."""
        if self.out.suffix.lower() != ".png" or self.out.is_dir():
            raise InputError(f"--out {self.out} is no name of a file ending in .png")
        if not self.out.parent.is_dir():
            raise InputError(f"--out {self.out}: there is no folder {self.out.parent}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 strip`."""
    for name in ("before", "after"):
        parser.add_argument(f"--{name}", required=True, metavar="CKPT", help=CHECKPOINT)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="PNG to write")
    parser.add_argument(
        "--captions", type=int, default=8, metavar="N",
        help="the first N held-out captions of the seed (8)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of captions and sampling (0)")
    names = ("cfg", "temperature", "max-plan-tokens")
    add_sampling_options(parser, names, "each checkpoint", _RECIPE)


def run(options: argparse.Namespace) -> None:
    """Draw the samples of both checkpoints, write the image, print one line."""
    from gotr1_jax.convert.checkpoint import load_checkpoint
    from gotr1_jax.convert.find import find_checkpoint
    from gotr1_jax.io.files import atomic_write

    values = {field.name: getattr(options, field.name) for field in fields(StripConfig)}
    config = StripConfig(**values | {"template": optional_template(options.template)})
    sources = [find_checkpoint(name) for name in (config.before, config.after)]
    for source in sources:
        load_checkpoint(source, parts=())  # refuses one that is none before the other is used
    captions = shapes_captions("heldout", config.captions, config.seed)
    before, after = (_draw(config, source, captions) for source in sources)
    pairs = [StripPair(*three) for three in zip(captions, before, after, strict=True)]
    counts = [sum(sample.is_true for sample in samples) for samples in (before, after)]
    page = draw_strip(pairs, _title(config), _footer(counts[0], counts[1], len(pairs)))
    file = io.BytesIO()
    page.save(file, "PNG", optimize=True)
    atomic_write(config.out, file.getvalue())
    print(f"{config.out}: {counts[0]} of {len(pairs)} true before, {counts[1]} after")


def _title(config: StripConfig) -> str:
    n = config.captions
    first = f"The first {n} held-out captions" if n > 1 else "The first held-out caption"
    return (
        f"{first} of seed {config.seed}, one sample each before and after training, whatever came "
        "out."
    )


def _footer(before: int, after: int, of: int) -> str:
    return (
        "Dashed: the boxes of the model's own plan. The mark says whether the caption is true of "
        f"the image, by the exact judge: {before} of {of} before, {after} of {of} after."
    )


def _draw(config: StripConfig, source: Path, captions: Sequence[str]) -> list[StripSample]:
    """One judged sample of each caption."""
    from gotr1_jax.convert.checkpoint import load_checkpoint
    from gotr1_jax.generate.batches import encode_samples

    base = GenerateConfig(
        Path("."), prompt="none", cfg=config.cfg, temperature=config.temperature,
        max_plan_tokens=config.max_plan_tokens, seed=config.seed, template=config.template,
        batch_size=len(captions),
    )  # fmt: skip
    base = resolve_sampling(base, source, _RECIPE)
    tokenizer = load_checkpoint(source, parts=()).tokenizer
    rows = list(encode_samples(caption_tasks(captions), tokenizer, base))
    drawing = load_drawing(base, source, rows)
    plans = drawing.draw_plans(rows)
    rows = [replace(row, plan_ids=ids) for row, ids in zip(rows, plans, strict=True)]
    samples = []
    for caption, ids, (_, pixels) in zip(captions, plans, drawing.draw_images(rows), strict=True):
        plan = read_plan(ids, tokenizer)
        verdict = judge_sample(caption, plan, pixels).scores["verdict"]
        samples.append(StripSample(pixels, tuple(box for _, box in plan.boxes), verdict == 1))
    return samples
