"""Which folders and names the images get, so that a benchmark's own evaluator finds them.

    plain          OUT/00000/{image_00.png, overlay_00.png, plan_00.txt, result.json}
    t2i_compbench  OUT/samples/{caption}_000000.png            Karine-Huang/T2I-CompBench
    geneval        OUT/00000/{metadata.jsonl, samples/00000.png, grid.png}    djghosh13/geneval
    dpg            OUT/{prompt file's stem}.png, a grid            TencentQQGYLab/ELLA, dpg_bench

The evaluators list whole folders, so nothing else may lie there: a caption's result.json goes to
OUT/plans/00000.json, for dpg to OUT_plans/plans/00000.json.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from gotr1_jax.generate.config import NOTE, GenerateConfig
from gotr1_jax.generate.prompts import Task

RESULT = "result.json"
UNFINISHED = ".unfinished"
_NAME_BYTES = 255  # longest file name where the file system does not say
_GRID = "grid.png"


def image_name(index: int) -> str:
    """Name of a caption's image while it is being made, and for good in the plain layout."""
    return f"image_{index:02d}.png"


class Layout:
    """The plain layout: a numbered folder for each caption, or `out` itself for a single one.

    Attributes:
      out: directory of the images.
      home: directory of the run's note and of the results.
      keeps_plans: whether plans and overlays are files beside the images.
    """

    keeps_plans = True

    def __init__(self, config: GenerateConfig) -> None:
        self.out = self.home = config.out
        self._numbered, self._painted = config.numbered, not config.plans_only

    @property
    def note(self) -> Path:
        """The file that says by which settings the directory was filled."""
        return self.home / NOTE

    def check(self, task: Task) -> None:
        """Raise InputError for a task that has no place in this layout."""

    def result(self, place: int) -> Path:
        """File of what is known of a caption; written last, so what has it is complete."""
        return self._folder(place) / RESULT

    def image(self, task: Task, index: int) -> Path:
        """File in which image `index` of a caption ends up."""
        return self._folder(task.place) / image_name(index)

    def finished(self, task: Task) -> bool:
        """Whether all files of a caption are there."""
        indices = range(task.count) if self._painted else ()
        images = {self.image(task, i) for i in indices}
        return self.result(task.place).is_file() and all(p.is_file() for p in images)

    def is_fresh(self) -> bool:
        """Whether there is nothing yet but perhaps the note of a run that has drawn nothing."""
        entries = {p.name for f in (self.out, self.home) if f.is_dir() for p in f.iterdir()}
        return entries <= {NOTE, UNFINISHED}

    def has_results(self) -> bool:
        """Whether some run has left results of this layout here."""
        return any(self.home.glob(f"[0-9]*/{RESULT}"))

    def complete(self, task: Task, staged: Path) -> None:
        """Write into the folder of a caption's new files what takes all of its images."""

    def targets(self, task: Task, staged: Path) -> list[tuple[Path, Path]]:
        """(new file, where it belongs) of all but the result."""
        folder = self._folder(task.place)
        return [(f, folder / f.name) for f in sorted(staged.iterdir()) if f.name != RESULT]

    def stale(self, task: Task) -> list[Path]:
        """Files of an earlier run that new ones must not be mixed with."""
        folder = self._folder(task.place)
        patterns = (image_name(0), "plan_00.txt", "overlay_00.png")
        return [f for p in patterns for f in folder.glob(p.replace("00", "[0-9]*"))]

    def _folder(self, place: int) -> Path:
        return self.out / f"{place:05d}" if self._numbered else self.out


class _BenchmarkLayout(Layout):
    """What the three benchmarks have in common: results apart from the images."""

    keeps_plans = False

    def result(self, place: int) -> Path:
        return self.home / "plans" / f"{place:05d}.json"

    def has_results(self) -> bool:
        return any(self.home.glob("plans/[0-9]*.json"))

    def targets(self, task: Task, staged: Path) -> list[tuple[Path, Path]]:
        return [(staged / image_name(i), self.image(task, i)) for i in range(task.count)]

    def stale(self, task: Task) -> list[Path]:
        return []


class CompbenchLayout(_BenchmarkLayout):
    """T2I-CompBench: one folder; the caption and the image's index are read from the names.

    The caption is what stands before the first underscore, the index what stands behind the last.
    """

    def image(self, task: Task, index: int) -> Path:
        return self.out / "samples" / self._name(task, index)

    def has_results(self) -> bool:
        return super().has_results() or any(self.out.glob("samples/*"))

    def check(self, task: Task) -> None:
        reason = "the evaluators of t2i_compbench read the caption from the file name"
        for character, shown in (("/", "'/'"), ("\0", "a NUL"), ("_", "'_'")):
            if character in task.caption:
                raise task.at(f"{reason}, where {shown} cannot stand; change the caption")
        size = len(os.fsencode(self._name(task, task.count - 1)))
        most = _longest_name(self.out)
        if size > most:
            raise task.at(
                f"{reason}, and with it the name has {size} bytes, more than the {most} that a "
                f"name can have; shorten the caption {task.caption[:40]!r}..."
            )

    def _name(self, task: Task, index: int) -> str:
        return f"{task.caption}_{task.first + index:06d}.png"


class GenevalLayout(_BenchmarkLayout):
    """GenEval: a numbered folder for each line of the metadata, which is written back as it is."""

    def image(self, task: Task, index: int) -> Path:
        return self._folder(task.place) / "samples" / f"{index:05d}.png"

    def complete(self, task: Task, staged: Path) -> None:
        (staged / "metadata.jsonl").write_bytes((task.line + "\n").encode())
        write_grid([staged / image_name(i) for i in range(task.count)], staged / _GRID)

    def targets(self, task: Task, staged: Path) -> list[tuple[Path, Path]]:
        folder = self._folder(task.place)
        extra = [(staged / name, folder / name) for name in ("metadata.jsonl", _GRID)]
        return [*extra, *super().targets(task, staged)]


class DpgLayout(_BenchmarkLayout):
    """DPG-Bench: one image for each prompt file, its samples in two columns, row by row."""

    def __init__(self, config: GenerateConfig) -> None:
        super().__init__(config)
        # The evaluator takes every entry of its folder for an image.
        out = Path(os.path.abspath(config.out))
        self.home = out.with_name(out.name + "_plans")

    def image(self, task: Task, index: int) -> Path:
        return self.out / f"{task.stem}.png"

    def check(self, task: Task) -> None:
        if task.count > 4:
            raise task.at(
                f"{task.count} images are to be drawn of it, and dpg looks at 4 at most; "
                "give a smaller --n"
            )

    def complete(self, task: Task, staged: Path) -> None:
        write_grid([staged / image_name(i) for i in range(task.count)], staged / _GRID, columns=2)

    def targets(self, task: Task, staged: Path) -> list[tuple[Path, Path]]:
        return [(staged / _GRID, self.image(task, 0))]


_KINDS = {
    "plain": Layout, "t2i_compbench": CompbenchLayout, "geneval": GenevalLayout, "dpg": DpgLayout
}  # fmt: skip


def make_layout(config: GenerateConfig) -> Layout:
    """The layout that the settings name."""
    return _KINDS[config.layout](config)


def write_grid(files: Sequence[Path], target: Path, columns: int | None = None) -> None:
    """Images of one size side by side, row by row, without borders; a square if it can be."""
    columns = min(len(files), columns or math.ceil(math.sqrt(len(files))))
    images = []
    for file in files:
        with Image.open(file) as stored:
            images.append(stored.convert("RGB"))
    width, height = images[0].size
    grid = Image.new("RGB", (columns * width, -(-len(files) // columns) * height))
    for i, image in enumerate(images):
        grid.paste(image, (i % columns * width, i // columns * height))
    grid.save(target)


def _longest_name(folder: Path) -> int:
    """Bytes of the longest name that a file in `folder`, which may not be there yet, can have."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    try:
        return os.pathconf(there, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        return _NAME_BYTES
