"""Samples into files: each caption's appear whole or not at all, its result last."""

from __future__ import annotations

import errno
import io
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gotr1_jax.errors import RunError
from gotr1_jax.generate.layouts import RESULT, UNFINISHED, Layout, image_name
from gotr1_jax.generate.prompts import JOINED_PLANS, Task
from gotr1_jax.plan import draw_overlay, parse_plan
from gotr1_jax.tokenizers.janus import TextTokenizer, format_prompt


@dataclass(frozen=True)
class Sample:
    """A plan (ids, BOI last) and its image: ids, pixels uint8 (H, W, 3); None is no image."""

    plan_ids: list[int]
    image_ids: list[int] | None
    pixels: np.ndarray | None


class ResultWriter:
    """Takes samples in any order and writes a caption's files when its last one has come.

    New files lie in OUT/.unfinished until then, so no image is held in memory.
    """

    def __init__(
        self, layout: Layout, tokenizer: TextTokenizer, template: str,
        finished: Callable[[Task], None],
    ) -> None:  # fmt: skip
        """finished: is told each task whose files are complete."""
        self._layout, self._tokenizer, self._template = layout, tokenizer, template
        self._finished = finished
        self._open: dict[int, dict[int, dict[str, Any]]] = {}

    def add(self, task: Task, prompt_ids: Sequence[int], index: int, sample: Sample) -> None:
        """Take sample `index` of a task. RunError if it cannot be written."""
        staged = self._layout.out / UNFINISHED / f"{task.place:05d}"
        entries = self._open.setdefault(task.place, {})
        with clear_errors(self._layout.out):
            entries[index] = self._stage(task, staged, index, sample)
            if len(entries) < task.count:
                return
            samples = [entries[i] for i in range(task.count)]
            result = {
                "prompt": task.caption,
                "sft_prompt": format_prompt(task.caption, self._template),
                "prompt_ids": list(prompt_ids),
                "samples": samples,
            }
            text = json.dumps(result, ensure_ascii=False, indent=1) + "\n"
            (staged / RESULT).write_bytes(text.encode())
            self._layout.complete(task, staged)
            self._move(task, staged)
        del self._open[task.place]
        self._finished(task)

    def _stage(self, task: Task, staged: Path, index: int, sample: Sample) -> dict[str, Any]:
        """Write one sample's files; returns its entry in the result."""
        staged.mkdir(parents=True, exist_ok=True)
        plan_text = self._tokenizer.decode(sample.plan_ids, keep_special=True)
        plan = parse_plan(plan_text)
        if self._layout.keeps_plans:
            (staged / f"plan_{index:02d}.txt").write_bytes(plan_text.encode())
        entry = {
            "plan_ids": sample.plan_ids,
            "plan_text": plan_text,
            "objects": [
                {
                    "name": o.name,
                    "box": None if o.box is None else [o.box.x1, o.box.y1, o.box.x2, o.box.y2],
                }
                for o in plan.objects
            ],
        }
        if sample.pixels is None:
            return entry
        image = Image.fromarray(sample.pixels)
        (staged / image_name(index)).write_bytes(_png(image))
        if self._layout.keeps_plans:
            overlay = draw_overlay(image, plan.boxes)
            (staged / f"overlay_{index:02d}.png").write_bytes(_png(overlay))
        target = self._layout.image(task, index)
        name = target.name if self._layout.keeps_plans else target.relative_to(self._layout.out)
        return {**entry, "image_ids": sample.image_ids, "image": str(name)}

    def _move(self, task: Task, staged: Path) -> None:
        """Put new files where they belong, the result last; those of an earlier run go."""
        result = self._layout.result(task.place)
        moves = [*self._layout.targets(task, staged), (staged / RESULT, result)]
        for folder in {target.parent for _, target in moves}:
            folder.mkdir(parents=True, exist_ok=True)
        result.unlink(missing_ok=True)
        for old in self._layout.stale(task):
            old.unlink()
        for new, target in moves:
            new.replace(target)
        shutil.rmtree(staged)


@contextmanager
def clear_errors(out: Path) -> Iterator[None]:
    """Turns an OSError of writing below `out` into a RunError of one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"disk full: {error.filename or out} was not written; free some space and give "
                "the same command again, it goes on from here"
            ) from error
        raise RunError(
            f"cannot write {error.filename or out}: {error.strerror or error}"
        ) from error


@contextmanager
def new_files(layout: Layout) -> Iterator[None]:
    """Inside, files are made in `layout`; behind it, unfinished ones and empty folders are gone."""
    made = not layout.out.exists()
    unfinished = layout.out / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        with clear_errors(layout.out):
            unfinished.mkdir(parents=True)
            layout.home.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if made and layout.out.is_dir() and not any(layout.out.iterdir()):
            layout.out.rmdir()


def join_plans(layout: Layout, count: int) -> None:
    """Collects the results of `count` captions, one a line, for `--plans`."""
    target = layout.home / JOINED_PLANS
    temporary = layout.home / f".{JOINED_PLANS}"
    with clear_errors(target):
        try:
            with open(temporary, "wb") as stream:
                for place in range(count):
                    record = json.loads(layout.result(place).read_bytes())
                    stream.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()
