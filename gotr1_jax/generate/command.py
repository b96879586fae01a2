"""Images from captions, each with its plan: `gotr1 generate`."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.generate.config import (
    BUILT_IN,
    LAYOUTS,
    SETTINGS_FILE,
    GenerateConfig,
    check_settings_file,
    optional_template,
    result_settings,
    sampling_settings,
)
from gotr1_jax.generate.layouts import Layout, make_layout
from gotr1_jax.generate.options import add_dtype_option
from gotr1_jax.generate.search.config import add_search_options, read_search_options
from gotr1_jax.generate.tasks import CaptionTask, read_tasks
from gotr1_jax.io.lock import folder_lock
from gotr1_jax.io.reading import read_json
from gotr1_jax.tokenizers.janus import TEMPLATES, TextTokenizer, format_prompt

if TYPE_CHECKING:
    from gotr1_jax.generate.batches import SampleBatch
    from gotr1_jax.generate.generator import ImageGenerator
    from gotr1_jax.generate.search.rounds import SearchJudges
    from gotr1_jax.sampler.token_batch import TokenBatch

PrintResult = Callable[[dict[str, Any]], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 generate`."""
    parser.add_argument(
        "--ckpt", metavar="CKPT",
        help="checkpoint directory, finished run or hub id (the embedded checkpoint)",
    )  # fmt: skip
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--prompt", metavar="TEXT", help="one caption; its files go into --out")
    what.add_argument(
        "--prompts", type=Path, metavar="FILE",
        help="captions, one a line, or .jsonl with the key prompt, or a directory of .txt files; "
        "finished captions are skipped when the command is given again",
    )  # fmt: skip
    parser.add_argument(
        "--plans", type=Path, metavar="FILE",
        help="given plans instead of sampled ones: .jsonl with prompt and plan, a result.json, "
        "or an earlier --out; alone, or with --prompts in the same order",
    )  # fmt: skip
    parser.add_argument("--plans-only", action="store_true", help="sample plans and no images")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    parser.add_argument(
        "--layout", choices=tuple(LAYOUTS), default="plain",
        help="folders and names of the images, as a benchmark's evaluator expects them (plain)",
    )  # fmt: skip
    parser.add_argument(
        "--n", type=int,
        help="samples of each caption, or images of each given plan (1; without --plans "
        "t2i_compbench 10, geneval and dpg 4)",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=int, metavar="B",
        help="rows sampled at once, rounded up to a multiple of the devices (by free memory)",
    )  # fmt: skip
    parser.add_argument(
        "--speculative", type=int, default=0, metavar="WINDOW",
        help="positions of the image in one forward pass: the same images in fewer passes, for a "
        "few rows on an accelerator (0: one)",
    )  # fmt: skip
    add_sampling_arguments(parser)
    add_search_options(parser)
    parser.add_argument(
        "--json", action="store_true",
        help="print result.json to standard output, for many captions one line each",
    )  # fmt: skip


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of sampling; all are fields of `GenerateConfig`."""
    sampling = parser.add_argument_group(
        "sampling",
        "Without an option: as the checkpoint's generation_config.json says, else (...).",
    )
    sampling.add_argument(
        "--greedy", action=argparse.BooleanOptionalAction,
        help="always take the most likely token (no)",
    )  # fmt: skip
    sampling.add_argument("--cfg", type=float, metavar="W", help="guidance weight (5)")
    sampling.add_argument("--max-plan-tokens", type=int, metavar="T", help="longest plan (600)")
    sampling.add_argument("--temperature", type=float, help="of both phases (1)")
    sampling.add_argument(
        "--image-temperature", type=float, help="of the image alone (as --temperature)"
    )
    sampling.add_argument("--top-k", type=int, metavar="K", help="0 is all tokens (0)")
    sampling.add_argument("--top-p", type=float, metavar="P", help="1 is all tokens (1)")
    sampling.add_argument(
        "--template",
        help=f"prompt around the caption: {', '.join(TEMPLATES)}, a file, or a text with "
        "{caption} (gotr1)",
    )
    add_dtype_option(parser)
    parser.add_argument(
        "--cache-dtype", choices=("auto", "int8"), default="auto",
        help="of the KV cache; int8: half the bytes of bfloat16, rounded (auto: as --dtype)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of all randomness (0)")


def run(args: argparse.Namespace) -> None:
    """Run the command with parsed options."""
    values = {field.name: getattr(args, field.name) for field in fields(GenerateConfig)}
    values |= {
        "template": optional_template(args.template), "search": read_search_options(args)
    }  # fmt: skip
    config = GenerateConfig(**values)
    print_result: PrintResult | None = None
    if args.json:
        indent = None if config.numbered else 2

        def print_result(result: dict[str, Any]) -> None:
            print(json.dumps(result, ensure_ascii=False, indent=indent), flush=True)

    generate(config, print_result)
    # Last, what was written; the standard output is the results' alone with --json.
    print(config.out, file=sys.stderr if args.json else sys.stdout)


def generate(config: GenerateConfig, print_result: PrintResult | None = None) -> None:
    """Generates all samples of every caption that is not finished, and writes them.

    All captions and plans are checked before anything is sampled. A caption's files appear when
    all of its samples are there, result.json last; a stopped run continues when it is started
    again with the same settings. `print_result` gets each result in the order of the captions,
    earlier ones included. A sample depends on (seed, caption index, sample index) alone, not on
    batches or devices.

    Raises InputError for bad input, RunError if a file cannot be written.
    """
    layout = make_layout(config)
    counts = _check_tasks(config, layout)
    with folder_lock(layout.home, "--out"):
        _generate(config, layout, counts, print_result)


def _generate(
    config: GenerateConfig, layout: Layout, counts: _TaskCounts, print_result: PrintResult | None
) -> None:
    """`generate` once the captions are checked and the folder is held."""
    # Imported late: bad captions are reported without waiting for jax.
    from gotr1_jax.convert.checkpoint import load_checkpoint
    from gotr1_jax.convert.find import find_checkpoint
    from gotr1_jax.convert.generation_config import resolve_sampling
    from gotr1_jax.generate import generator
    from gotr1_jax.generate.batches import batch_sizes, encode_samples
    from gotr1_jax.generate.search.run import make_judges
    from gotr1_jax.generate.write_results import join_plans, staging_folder
    from gotr1_jax.io.files import write_json_atomic
    from gotr1_jax.parallel.startup import default_dtype

    source = find_checkpoint(config.ckpt, config.revision)
    config = resolve_sampling(config, source, BUILT_IN)
    dtype = config.dtype or default_dtype()
    settings = result_settings(config, source, dtype, counts.digest)
    if config.numbered:
        _check_directory(layout, settings)
    output = _OrderedOutput(layout, print_result)
    if counts.unfinished == 0:
        for index in range(counts.captions):
            output.add(index)
    else:
        # Loads no weights, but refuses a directory that is no checkpoint.
        tokenizer = load_checkpoint(source, parts=()).tokenizer
        # All texts are encoded once in advance, so that one over the limit is refused now.
        samples = encode_samples(_unfinished(config, layout), tokenizer, config)
        longest, bucket = config.sampling.max_plan_tokens, config.sampling.plan_bucket
        sizes = batch_sizes(samples, longest, bucket)
        judges = None
        if config.search is not None:
            judges = make_judges(config.search)
            sizes = replace(sizes, rows=sizes.rows * config.search.search.attempts)
        images = generator.ImageGenerator(config, source, sizes, dtype)
        with staging_folder(layout):
            if config.numbered and (layout.is_fresh() or not layout.settings_file.exists()):
                write_json_atomic(layout.settings_file, settings)
            _generate_samples(config, layout, images, tokenizer, counts, output, judges)
    if config.plans_only and config.numbered:
        join_plans(layout, counts.captions)


@dataclass(frozen=True)
class _TaskCounts:
    """Numbers of captions and samples, and a digest of all captions and plans."""

    captions: int
    samples: int
    unfinished: int  # samples that have no files yet
    digest: str


def _check_tasks(config: GenerateConfig, layout: Layout) -> _TaskCounts:
    """Reads all captions once; InputError for a bad one, or one that the layout cannot store."""
    digest = hashlib.sha256()
    captions = samples = unfinished = 0
    for task in read_tasks(config):
        try:
            format_prompt(task.caption, config.prompt_template)
        except InputError as error:
            raise task.at(error) from error
        layout.check(task)
        texts = [task.caption, task.stem, *(plan.text for plan in task.plans or ())]
        digest.update(json.dumps(texts).encode() + b"\n")
        captions += 1
        samples += task.count
        unfinished += 0 if _is_finished(config, layout, task) else task.count
    return _TaskCounts(captions, samples, unfinished, digest.hexdigest())


def _is_finished(config: GenerateConfig, layout: Layout, task: CaptionTask) -> bool:
    """Whether a caption's files exist; a single caption is generated anew each time."""
    return config.numbered and layout.finished(task)


def _unfinished(
    config: GenerateConfig, layout: Layout, on_finished: Callable[[int], None] | None = None
) -> Iterator[CaptionTask]:
    """The captions without files; `on_finished` is called with the indices of the others."""
    for task in read_tasks(config):
        if not _is_finished(config, layout, task):
            yield task
        elif on_finished is not None:
            on_finished(task.index)


def _check_directory(layout: Layout, settings: dict[str, Any]) -> None:
    """InputError if the directory has results of other settings."""
    if layout.is_fresh():
        return
    for file in (layout.settings_file, layout.out / SETTINGS_FILE):
        if file.exists():
            check_settings_file(file, settings)
            return
    if layout.has_results():
        raise InputError(
            f"{layout.out} holds results, but no {SETTINGS_FILE} with their settings; choose "
            "another --out"
        )


class _OrderedOutput:
    """Prints results in the order of the captions, whatever order they are finished in."""

    def __init__(self, layout: Layout, print_result: PrintResult | None) -> None:
        self._layout, self._print = layout, print_result
        self._next, self._ready = 0, set[int]()

    def add(self, index: int) -> None:
        """The result of caption `index` is on disk."""
        if self._print is None:
            return
        self._ready.add(index)
        while self._next in self._ready:
            self._ready.remove(self._next)
            self._print(read_json(self._layout.result(self._next)))
            self._next += 1


def _generate_samples(
    config: GenerateConfig, layout: Layout, images: ImageGenerator, tokenizer: TextTokenizer,
    counts: _TaskCounts, output: _OrderedOutput, judges: SearchJudges | None,
) -> None:  # fmt: skip
    """Generates and writes; a batch is decoded and written while the next one is sampled.

    judges: of a search; None: each sample is drawn once.
    """
    from gotr1_jax.generate.batches import encode_samples, make_batches
    from gotr1_jax.generate.search.run import search_samples
    from gotr1_jax.generate.write_results import GeneratedSample, ResultWriter
    from gotr1_jax.parallel.progress import Progress

    done = counts.samples - counts.unfinished
    unit = "plan" if config.plans_only else "image"
    writer = ResultWriter(layout, tokenizer, sampling_settings(config), output.add)
    with (
        Progress(f"{unit}s", counts.samples, start=done, unit=unit) as progress,
        ThreadPoolExecutor(max_workers=1) as writing,
    ):

        def write(batch: SampleBatch, tokens: TokenBatch, done: int) -> None:
            ids_BU = np.asarray(tokens.image_ids_BU)[: len(batch.samples)]
            pixels = None if images.decode is None else images.decode(ids_BU)
            for i, sample in enumerate(batch.samples):
                plan_ids = tokens.plan_ids_BT[i, : int(tokens.plan_len_B[i])].tolist()
                image_ids = None if pixels is None else ids_BU[i].tolist()
                image = None if pixels is None else pixels[i]
                writer.add(sample, GeneratedSample(plan_ids, image_ids, image))
            progress.update(done)

        samples = encode_samples(_unfinished(config, layout, output.add), tokenizer, config)
        if judges is not None:
            for sample, found in search_samples(config, images, judges, tokenizer, samples):
                writer.add(sample, found)
                done += 1
                progress.update(done)
            return
        limit, bucket = config.sampling.max_plan_tokens, config.sampling.plan_bucket
        written: Future[None] | None = None
        for batch in make_batches(samples, images.batch_size, limit, bucket):
            tokens = images.sample(batch)
            if written is not None:
                written.result()  # at most one batch waits; its error ends the run here
            done += len(batch.samples)
            written = writing.submit(write, batch, tokens, done)
        if written is not None:
            written.result()
