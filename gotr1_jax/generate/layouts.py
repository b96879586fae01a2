"""Folders and names of the images, as each benchmark's evaluator expects them.

    plain          OUT/00000/{image_00.png, overlay_00.png, plan_00.txt, result.json}
    t2i_compbench  OUT/samples/{caption}_000000.png            Karine-Huang/T2I-CompBench
    geneval        OUT/00000/{metadata.jsonl, samples/00000.png, grid.png}    djghosh13/geneval
    dpg            OUT/{prompt file's stem}.png, a grid            TencentQQGYLab/ELLA, dpg_bench

The evaluators read every file of a folder, so results are stored apart from the images: a
caption's result.json is OUT/plans/00000.json, for dpg OUT_plans/plans/00000.json.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from gotr1_jax.generate.config import SETTINGS_FILE, GenerateConfig
from gotr1_jax.generate.tasks import CaptionTask
from gotr1_jax.images import open_image
from gotr1_jax.io.lock import LOCK_NAME
from gotr1_jax.io.reading import list_folder

RESULT = "result.json"
UNFINISHED = ".unfinished"
_NAME_BYTES = 255  # longest file name where the file system does not say
_GRID = "grid.png"


def image_name(index: int) -> str:
    """Name of a caption's image in the staging folder, and in the plain layout."""
    return f"image_{index:02d}.png"


class Layout:
    """The plain layout: a numbered folder for each caption, or `out` itself for a single one.

    Attributes:
      out: directory of the images.
      home: directory of the settings file and of the results.
      keeps_plans: whether plans and overlays are written next to the images.
    """

    keeps_plans = True

    def __init__(self, config: GenerateConfig) -> None:
        self.out = self.home = config.out
        self._numbered, self._has_images = config.numbered, not config.plans_only

    @property
    def settings_file(self) -> Path:
        """File with the settings that the results depend on."""
        return self.home / SETTINGS_FILE

    def check(self, task: CaptionTask) -> None:
        """Raise InputError for a caption that this layout cannot store."""

    def result(self, index: int) -> Path:
        """A caption's result.json; it is written last, so a caption that has it is complete."""
        return self._folder(index) / RESULT

    def image(self, task: CaptionTask, index: int) -> Path:
        """Final path of image `index` of a caption."""
        return self._folder(task.index) / image_name(index)

    def finished(self, task: CaptionTask) -> bool:
        """Whether all files of a caption exist."""
        indices = range(task.count) if self._has_images else ()
        images = {self.image(task, i) for i in indices}
        return self.result(task.index).is_file() and all(p.is_file() for p in images)

    def is_fresh(self) -> bool:
        """Whether there are no results yet; a settings file alone may be there."""
        entries = {path.name for path in (*_entries(self.out), *_entries(self.home))}
        return entries <= {SETTINGS_FILE, UNFINISHED, LOCK_NAME}

    def has_results(self) -> bool:
        """Whether there are results of this layout."""
        return any(self.home.glob(f"[0-9]*/{RESULT}"))

    def complete(self, task: CaptionTask, staged: Path) -> None:
        """Write the files made from all images of a caption into its staging folder."""

    def targets(self, task: CaptionTask, staged: Path) -> list[tuple[Path, Path]]:
        """(staged file, final path) of all files but the result."""
        folder = self._folder(task.index)
        return [(f, folder / f.name) for f in sorted(staged.iterdir()) if f.name != RESULT]

    def stale(self, task: CaptionTask) -> list[Path]:
        """Files of an earlier run to delete."""
        folder = self._folder(task.index)
        patterns = (image_name(0), "plan_00.txt", "overlay_00.png")
        return [f for p in patterns for f in folder.glob(p.replace("00", "[0-9]*"))]

    def _folder(self, index: int) -> Path:
        return self.out / f"{index:05d}" if self._numbered else self.out


class _BenchmarkLayout(Layout):
    """Shared by the three benchmarks: results apart from the images."""

    keeps_plans = False

    def result(self, index: int) -> Path:
        return self.home / "plans" / f"{index:05d}.json"

    def has_results(self) -> bool:
        return any(self.home.glob("plans/[0-9]*.json"))

    def targets(self, task: CaptionTask, staged: Path) -> list[tuple[Path, Path]]:
        return [(staged / image_name(i), self.image(task, i)) for i in range(task.count)]

    def stale(self, task: CaptionTask) -> list[Path]:
        return []


class CompbenchLayout(_BenchmarkLayout):
    """T2I-CompBench: one folder; its evaluators read caption and index from a file's name.

    The caption is the text before the first underscore, the index the text after the last.
    """

    def image(self, task: CaptionTask, index: int) -> Path:
        return self.out / "samples" / self._name(task, index)

    def has_results(self) -> bool:
        return super().has_results() or bool(_entries(self.out / "samples"))

    def check(self, task: CaptionTask) -> None:
        reason = "the evaluators of t2i_compbench read the caption from the file name"
        for character, shown in (("/", "'/'"), ("\0", "a NUL"), ("_", "'_'")):
            if character in task.caption:
                raise task.at(f"{reason}, which cannot hold {shown}; change the caption")
        size = len(os.fsencode(self._name(task, task.count - 1)))
        most = _longest_name(self.out)
        if size > most:
            raise task.at(
                f"{reason}; this name has {size} bytes, more than the {most} that a name can "
                f"have; shorten the caption {task.caption[:40]!r}..."
            )

    def _name(self, task: CaptionTask, index: int) -> str:
        return f"{task.caption}_{task.first + index:06d}.png"


class GenevalLayout(_BenchmarkLayout):
    """GenEval: a numbered folder for each line of the metadata, which is copied into it."""

    def image(self, task: CaptionTask, index: int) -> Path:
        return self._folder(task.index) / "samples" / f"{index:05d}.png"

    def complete(self, task: CaptionTask, staged: Path) -> None:
        (staged / "metadata.jsonl").write_bytes((task.line + "\n").encode())
        write_grid([staged / image_name(i) for i in range(task.count)], staged / _GRID)

    def targets(self, task: CaptionTask, staged: Path) -> list[tuple[Path, Path]]:
        folder = self._folder(task.index)
        extra = [(staged / name, folder / name) for name in ("metadata.jsonl", _GRID)]
        return [*extra, *super().targets(task, staged)]


class DpgLayout(_BenchmarkLayout):
    """DPG-Bench: one image for each prompt file, its samples in two columns, row by row."""

    def __init__(self, config: GenerateConfig) -> None:
        super().__init__(config)
        # The evaluator reads every entry of its folder as an image.
        out = Path(os.path.abspath(config.out))
        self.home = out.with_name(out.name + "_plans")

    def image(self, task: CaptionTask, index: int) -> Path:
        return self.out / f"{task.stem}.png"

    def check(self, task: CaptionTask) -> None:
        if task.count > 4:
            raise task.at(
                f"{task.count} images of one caption; dpg reads at most 4, give a smaller --n"
            )

    def complete(self, task: CaptionTask, staged: Path) -> None:
        write_grid([staged / image_name(i) for i in range(task.count)], staged / _GRID, columns=2)

    def targets(self, task: CaptionTask, staged: Path) -> list[tuple[Path, Path]]:
        return [(staged / _GRID, self.image(task, 0))]


_KINDS = {
    "plain": Layout, "t2i_compbench": CompbenchLayout, "geneval": GenevalLayout, "dpg": DpgLayout
}  # fmt: skip


def _entries(folder: Path) -> list[Path]:
    return list_folder(folder) if folder.is_dir() else []


def make_layout(config: GenerateConfig) -> Layout:
    """The layout that the configuration names."""
    return _KINDS[config.layout](config)


def write_grid(files: Sequence[Path], target: Path, columns: int | None = None) -> None:
    """Write images of one size as a grid, row by row, without borders; about square by default."""
    columns = min(len(files), columns or math.ceil(math.sqrt(len(files))))
    images = [open_image(file) for file in files]
    width, height = images[0].size
    grid = Image.new("RGB", (columns * width, -(-len(files) // columns) * height))
    for i, image in enumerate(images):
        grid.paste(image, (i % columns * width, i // columns * height))
    grid.save(target)


def _longest_name(folder: Path) -> int:
    """Bytes of the longest file name in `folder`, which need not exist yet."""
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    try:
        return os.pathconf(existing, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        return _NAME_BYTES
