"""Writes samples; a caption's files appear all at once, its result.json last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gotr1_jax.generate.batches import SampleTask
from gotr1_jax.generate.layouts import RESULT, UNFINISHED, Layout, image_name
from gotr1_jax.generate.tasks import JOINED_PLANS, CaptionTask
from gotr1_jax.images import encode_png
from gotr1_jax.io.files import atomic_write
from gotr1_jax.io.reading import read_json
from gotr1_jax.io.write_errors import raise_write_errors
from gotr1_jax.plan import draw_overlay, parse_plan
from gotr1_jax.tokenizers.janus import TextTokenizer, format_prompt

_ADVICE = "free some space and give the same command again to continue"


@dataclass(frozen=True)
class GeneratedSample:
    """A plan (ids, BOI last) and its image: ids and pixels uint8 (H, W, 3); None: no image.

    search: what a search drew and found; None: there was none.
    """

    plan_ids: list[int]
    image_ids: list[int] | None
    pixels: np.ndarray | None
    search: dict[str, Any] | None = None


class ResultWriter:
    """Takes samples in any order and moves a caption's files to their place when all are there.

    Until then they are in OUT/.unfinished, so that no image is held in memory.
    """

    def __init__(
        self, layout: Layout, tokenizer: TextTokenizer, sampling: Mapping[str, Any],
        on_complete: Callable[[int], None],
    ) -> None:  # fmt: skip
        """sampling: how is sampled, stored with each result; its template is that of the prompts.
        on_complete: called with the index of each caption whose files are complete.
        """
        self._layout, self._tokenizer, self._sampling = layout, tokenizer, dict(sampling)
        self._on_complete = on_complete
        self._entries: dict[int, dict[int, dict[str, Any]]] = {}

    def add(self, row: SampleTask, sample: GeneratedSample) -> None:
        """Write one sample. RunError if it cannot be written."""
        task = row.task
        staged = self._layout.out / UNFINISHED / f"{task.index:05d}"
        entries = self._entries.setdefault(task.index, {})
        with raise_write_errors(self._layout.out, _ADVICE):
            entries[row.index] = self._stage(task, staged, row.index, sample)
            if len(entries) < task.count:
                return
            result = {
                "prompt": task.caption,
                "sft_prompt": format_prompt(task.caption, self._sampling["template"]),
                "prompt_ids": row.prompt_ids,
                "sampling": self._sampling,
                "samples": [entries[i] for i in range(task.count)],
            }
            text = json.dumps(result, ensure_ascii=False, indent=1) + "\n"
            (staged / RESULT).write_bytes(text.encode())
            self._layout.complete(task, staged)
            self._move(task, staged)
        del self._entries[task.index]
        self._on_complete(task.index)

    def _stage(
        self, task: CaptionTask, staged: Path, index: int, sample: GeneratedSample
    ) -> dict[str, Any]:
        """Write one sample's files; returns its entry for the result."""
        staged.mkdir(parents=True, exist_ok=True)
        plan_text = self._tokenizer.decode(sample.plan_ids, keep_special=True)
        plan = parse_plan(plan_text)
        if self._layout.keeps_plans:
            (staged / f"plan_{index:02d}.txt").write_bytes(plan_text.encode())
        entry: dict[str, Any] = {
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
        if sample.search is not None:
            entry["search"] = sample.search
        if sample.pixels is None:
            return entry
        image = Image.fromarray(sample.pixels)
        (staged / image_name(index)).write_bytes(encode_png(image))
        if self._layout.keeps_plans:
            overlay = draw_overlay(image, plan.boxes)
            (staged / f"overlay_{index:02d}.png").write_bytes(encode_png(overlay))
        target = self._layout.image(task, index)
        name = target.name if self._layout.keeps_plans else target.relative_to(self._layout.out)
        return {**entry, "image_ids": sample.image_ids, "image": str(name)}

    def _move(self, task: CaptionTask, staged: Path) -> None:
        """Move the files to their final paths, the result last; delete those of an earlier run."""
        result = self._layout.result(task.index)
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
def staging_folder(layout: Layout) -> Iterator[None]:
    """Makes the folders of `layout`; at the end removes staged files, and folders left empty."""
    is_new = not layout.out.exists()
    unfinished = layout.out / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        with raise_write_errors(layout.out, _ADVICE):
            unfinished.mkdir(parents=True)
            layout.home.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if is_new and layout.out.is_dir() and not any(layout.out.iterdir()):
            layout.out.rmdir()


def join_plans(layout: Layout, count: int) -> None:
    """Collects the results of `count` captions, one a line, for `--plans`."""
    results = (read_json(layout.result(index)) for index in range(count))
    lines = (json.dumps(result, ensure_ascii=False) + "\n" for result in results)
    atomic_write(layout.home / JOINED_PLANS, "".join(lines))
