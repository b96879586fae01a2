"""Images from captions, each with its plan: `gotr1 generate`."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gotr1_jax.errors import InputError
from gotr1_jax.generate.config import (
    LAYOUTS,
    NOTE,
    GenerateConfig,
    check_note,
    read_template,
    settings_note,
)
from gotr1_jax.generate.layouts import Layout, make_layout
from gotr1_jax.generate.prompts import Task, read_tasks
from gotr1_jax.generate.results import ResultWriter, Sample, join_plans, new_files
from gotr1_jax.tokenizers.janus import TEMPLATES, TextTokenizer, format_prompt

if TYPE_CHECKING:
    from gotr1_jax.generate.painter import BatchPainter
    from gotr1_jax.generate.work import Batch, Survey

Show = Callable[[dict[str, Any]], None]


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
        help="plans to paint instead of sampling them: .jsonl with prompt and plan, a result.json, "
        "or an earlier --out; alone, or beside --prompts in the same order",
    )  # fmt: skip
    parser.add_argument("--plans-only", action="store_true", help="sample plans, paint nothing")
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
        help="rows drawn at once, rounded up to a multiple of the devices (by free memory)",
    )  # fmt: skip
    add_sampling_arguments(parser)
    parser.add_argument(
        "--json", action="store_true",
        help="print result.json to standard output, for many captions one line each",
    )  # fmt: skip


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say how tokens are drawn; all are fields of `GenerateConfig`."""
    parser.add_argument("--greedy", action="store_true", help="take the most likely token always")
    parser.add_argument("--cfg", type=float, default=5.0, metavar="W", help="guidance weight (5)")
    parser.add_argument(
        "--max-plan-tokens", type=int, default=600, metavar="T", help="longest plan (600)"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="of both phases (1)")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="0 is all tokens (0)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="1 is all tokens (1)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"),
        help="of weights and activations; default: bfloat16, on a CPU float32",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of all randomness (0)")
    parser.add_argument(
        "--template",
        default="gotr1",
        help=f"prompt around the caption: {', '.join(TEMPLATES)}, a file, or a text with "
        "{caption} (gotr1)",
    )


def run(args: argparse.Namespace) -> None:
    """Does what the parsed command line says."""
    values = {field.name: getattr(args, field.name) for field in fields(GenerateConfig)}
    config = GenerateConfig(**{**values, "template": read_template(args.template)})
    show: Show | None = None
    if args.json:
        indent = None if config.numbered else 2

        def show(result: dict[str, Any]) -> None:
            print(json.dumps(result, ensure_ascii=False, indent=indent), flush=True)

    generate(config, show)


def generate(config: GenerateConfig, show: Show | None = None) -> None:
    """Draws all samples of every caption that is not finished, and writes them.

    All captions and plans are checked before anything is drawn. A caption's files appear when all
    of its samples are drawn, result.json last; a run that was stopped goes on when it is started
    again with the same settings. `show` gets the content of each result, in order, those that
    were there before included. Draws depend on (seed, caption's place, sample) alone, not on how
    rows are batched or on how many devices there are.

    Raises InputError for bad input, RunError if a file cannot be written.
    """
    layout = make_layout(config)
    todo = _survey_tasks(config, layout)
    # Imported late: a wrong caption is answered without waiting for jax.
    from gotr1_jax.convert.find import find_checkpoint
    from gotr1_jax.generate.painter import BatchPainter
    from gotr1_jax.parallel.startup import default_dtype

    source = find_checkpoint(config.ckpt, config.revision)
    dtype = config.dtype or default_dtype()
    note = settings_note(config, source, dtype, todo.digest)
    if config.numbered:
        _check_directory(layout, note)
    shown = _Shown(layout, show)
    if todo.unfinished == 0:
        for place in range(todo.captions):
            shown.add(place)
    else:
        work = _survey_rows(config, layout, source)
        painter = BatchPainter(config, source, work, dtype)
        with new_files(layout):
            if config.numbered:
                _write_note(layout, note)
            _draw(config, layout, painter, TextTokenizer.from_dir(source), todo, shown)
    if config.plans_only and config.numbered:
        join_plans(layout, todo.captions)


@dataclass(frozen=True)
class _Todo:
    """Counts of captions and samples, and a digest of all captions and plans."""

    captions: int
    samples: int
    unfinished: int  # samples of captions that have to be drawn
    digest: str


def _survey_tasks(config: GenerateConfig, layout: Layout) -> _Todo:
    """Reads all captions once; InputError for one that is no caption or does not suit."""
    digest = hashlib.sha256()
    captions = samples = unfinished = 0
    for task in read_tasks(config):
        try:
            format_prompt(task.caption, config.template)
        except InputError as error:
            raise task.at(error) from error
        layout.check(task)
        texts = [task.caption, task.stem, *(plan.text for plan in task.plans or ())]
        digest.update(json.dumps(texts).encode() + b"\n")
        captions += 1
        samples += task.count
        unfinished += task.count if _is_open(config, layout, task) else 0
    return _Todo(captions, samples, unfinished, digest.hexdigest())


def _is_open(config: GenerateConfig, layout: Layout, task: Task) -> bool:
    """Whether a task has to be drawn; a single caption is drawn anew each time."""
    return not config.numbered or not layout.finished(task)


def _open_tasks(config: GenerateConfig, layout: Layout) -> Iterator[Task]:
    return (task for task in read_tasks(config) if _is_open(config, layout, task))


def _survey_rows(config: GenerateConfig, layout: Layout, source: Path) -> Survey:
    """Encodes all that is left to do once, so that what is too long is found before any work."""
    from gotr1_jax.convert.checkpoint import load_checkpoint
    from gotr1_jax.generate.painter import sampler_config
    from gotr1_jax.generate.work import survey, task_rows

    # Loads nothing, but says what is wrong with a directory that is no checkpoint.
    tokenizer = load_checkpoint(source, parts=()).tokenizer
    tasks = _open_tasks(config, layout)
    rows = task_rows(tasks, tokenizer, config.template, config.max_plan_tokens)
    return survey(rows, config.max_plan_tokens, sampler_config(config).plan_bucket)


def _check_directory(layout: Layout, note: dict[str, Any]) -> None:
    """Results must not be mixed with those of other settings."""
    if layout.is_fresh():
        return
    noted = [path for path in (layout.note, layout.out / NOTE) if path.exists()]
    if noted:
        check_note(noted[0], note)
    elif layout.has_results():
        raise InputError(
            f"{layout.out} holds results, but no {NOTE} that says of which settings; "
            "choose another --out"
        )


def _write_note(layout: Layout, note: dict[str, Any]) -> None:
    from gotr1_jax.io.files import write_json_atomic

    if layout.is_fresh() or not layout.note.exists():
        write_json_atomic(layout.note, note)


class _Shown:
    """Gives results to `show` in the order of the captions, whatever order they are finished in."""

    def __init__(self, layout: Layout, show: Show | None) -> None:
        self._layout, self._show = layout, show
        self._next, self._ready = 0, set[int]()

    def add(self, place: int) -> None:
        """Says that the result of the caption at `place` is on disk."""
        if self._show is None:
            return
        self._ready.add(place)
        while self._next in self._ready:
            self._ready.remove(self._next)
            self._show(json.loads(self._layout.result(self._next).read_bytes()))
            self._next += 1


def _draw(
    config: GenerateConfig, layout: Layout, painter: BatchPainter, tokenizer: TextTokenizer,
    todo: _Todo, shown: _Shown,
) -> None:  # fmt: skip
    """Draws and writes all open tasks; files are written while the next batch is drawn."""
    from gotr1_jax.generate.work import batches, task_rows
    from gotr1_jax.io.progress import Progress

    def open_tasks() -> Iterator[Task]:
        for task in read_tasks(config):
            if _is_open(config, layout, task):
                yield task
            else:
                shown.add(task.place)

    rows = task_rows(open_tasks(), tokenizer, config.template, config.max_plan_tokens)
    done = todo.samples - todo.unfinished
    what = "plan" if config.plans_only else "image"
    writer = ResultWriter(layout, tokenizer, config.template, lambda task: shown.add(task.place))
    with (
        Progress(f"{what}s", todo.samples, start=done, unit=what) as progress,
        ThreadPoolExecutor(max_workers=1) as writing,
    ):

        def write(batch: Batch, drawn: Any, done: int) -> None:
            wanted = len(batch.rows)
            pixels = None if config.plans_only else painter.decode(drawn.image_ids_BU[:wanted])
            for i, row in enumerate(batch.rows):
                plan_ids = drawn.plan_ids_BT[i, : int(drawn.plan_len_B[i])].tolist()
                image_ids = None if pixels is None else drawn.image_ids_BU[i].tolist()
                sample = Sample(plan_ids, image_ids, None if pixels is None else pixels[i])
                writer.add(row.task, row.prompt_ids, row.index, sample)
            progress.update(done)

        written: Future[None] | None = None
        for batch in batches(rows, painter.batch_size, config.max_plan_tokens, painter.plan_bucket):
            drawn = painter.draw(batch)
            if written is not None:
                written.result()  # no more than one batch waits; its error ends the run here
            done += len(batch.rows)
            written = writing.submit(write, batch, drawn, done)
        if written is not None:
            written.result()
