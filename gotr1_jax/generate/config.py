"""What `gotr1 generate` is told, and the note of it that an output directory keeps."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gotr1_jax.errors import InputError
from gotr1_jax.tokenizers.janus import GOTR1_TEMPLATE, TEMPLATES

LAYOUTS = {"plain": 1, "t2i_compbench": 10, "geneval": 4, "dpg": 4}
"""Layout -> images of a caption unless told otherwise, as its benchmark asks for."""

NOTE = "generation.json"
"""Name of the file that says by which settings an output directory was filled."""

_WEIGHTS = ("config.json", "*.safetensors", "*.bin")
_PIECES, _PIECE = 64, 4096  # of a weights file's bytes go into its fingerprint


@dataclass(frozen=True)
class GenerateConfig:
    """What to generate and where to.

    Attributes:
      out: directory of the files.
      prompt: one caption; its files go straight into `out`, over those of an earlier run.
      prompts: file of captions (text, or .jsonl with the key prompt or caption), or a directory of
        .txt files of one caption each.
      plans: file (or earlier output directory) of plans that are painted instead of sampled ones;
        alone, or beside `prompts` in the same order.
      layout: a key of LAYOUTS; which folders and names the images get.
      plans_only: sample plans, paint nothing.
      n: samples of each caption, with `plans` images of each plan; None: 1 a plan, else what
        the layout's benchmark asks for.
      batch_size: rows drawn at once; None goes by the free memory.
      ckpt: checkpoint directory, finished run or hub id; None is the embedded checkpoint.
      revision: branch, tag or commit of a hub id.
      greedy: the most likely token everywhere.
      cfg: guidance weight of the image, 1 is none.
      max_plan_tokens: longest plan; a longer one is cut, a longer given one refused.
      temperature, top_k, top_p: of both phases, see `SamplerConfig`.
      dtype: "float32", "bfloat16", or None: bfloat16 on accelerators, float32 on a CPU.
      seed: of all randomness.
      template: prompt text around the caption.

    Raises InputError for what is impossible, and for an `out` that cannot be written.
    """

    out: Path
    prompt: str | None = None
    prompts: Path | None = None
    plans: Path | None = None
    layout: str = "plain"
    plans_only: bool = False
    n: int | None = None
    batch_size: int | None = None
    ckpt: str | None = None
    revision: str | None = None
    greedy: bool = False
    cfg: float = 5.0
    max_plan_tokens: int = 600
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    dtype: str | None = None
    seed: int = 0
    template: str = GOTR1_TEMPLATE

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_sources()
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"output {self.out} is a file; choose a directory")
        there = next(p for p in (self.out, *self.out.absolute().parents) if p.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            raise InputError(f"output {self.out} cannot be written; choose another directory")

    @property
    def samples(self) -> int:
        """Images of a caption, or of a given plan."""
        if self.n is not None:
            return self.n
        return 1 if self.plans is not None else LAYOUTS[self.layout]

    @property
    def numbered(self) -> bool:
        """Whether there may be many captions."""
        return self.prompt is None

    def _check_numbers(self) -> None:
        least = {"n": 1, "batch_size": 1, "max_plan_tokens": 1, "seed": 0, "top_k": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise InputError(f"{name} is {value}; give {smallest} or more")
        if not math.isfinite(self.cfg):
            raise InputError(f"cfg is {self.cfg}; give a finite guidance weight")
        if self.seed >= 2**32:
            raise InputError(f"seed is {self.seed}; give less than 2**32")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise InputError(f"temperature is {self.temperature}; give a number greater than 0")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; give a number in (0, 1]")

    def _check_sources(self) -> None:
        if self.layout not in LAYOUTS:
            raise InputError(f"layout {self.layout!r} is unknown; choose {', '.join(LAYOUTS)}")
        if self.prompt is None and self.prompts is None and self.plans is None:
            raise InputError("nothing to generate: give --prompt, --prompts or --plans")
        if self.prompt is not None and (self.prompts is not None or self.plans is not None):
            raise InputError("--prompt goes with neither --prompts nor --plans; give one of them")
        if self.plans_only and self.plans is not None:
            raise InputError("--plans-only samples plans and --plans brings them; give one of them")
        if self.layout == "plain":
            return
        if self.plans_only:
            raise InputError(f"--layout {self.layout} names pictures; --plans-only makes none")
        if self.layout in ("geneval", "dpg") and self.prompts is None:
            raise InputError(f"--layout {self.layout} needs the benchmark's own --prompts")
        if self.prompt is not None:
            raise InputError(f"--layout {self.layout} needs captions from a file: --prompts")


def read_template(text: str) -> str:
    """The template that a user means: a name of `text.TEMPLATES`, a file of it, or its text itself.

    Raises InputError unless it holds {caption} exactly once.
    """
    template = TEMPLATES.get(text, text)
    if text not in TEMPLATES and "{caption}" not in text:
        try:
            template = Path(text).read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, ValueError) as error:
            raise InputError(
                f"template {text!r} is neither {', '.join(TEMPLATES)} nor a readable file, and "
                "as a text it lacks {caption}"
            ) from error
    if template.count("{caption}") != 1:
        raise InputError(f"a prompt template needs {{caption}} exactly once: {template!r}")
    return template


def settings_note(
    config: GenerateConfig, source: Path, dtype: str, captions_digest: str
) -> dict[str, Any]:
    """All that the results depend on, for `generation.json`."""
    return {
        "layout": config.layout,
        "plans_only": config.plans_only,
        "captions": captions_digest,
        "n": config.samples,
        "checkpoint": str(source),
        "weights": fingerprint(source),
        "dtype": dtype,
        "template": config.template,
        "max_plan_tokens": config.max_plan_tokens,
        "cfg": config.cfg,
        "greedy": config.greedy,
        "temperature": config.temperature,
        "top_k": config.top_k,
        "top_p": config.top_p,
        "seed": config.seed,
    }


def check_note(path: Path, wanted: dict[str, Any]) -> None:
    """That the directory whose note lies at `path` was filled by the settings `wanted`.

    A checkpoint counts by its weights, not by where it lies. Raises InputError, naming the first
    setting that differs, and for a note that cannot be read.
    """
    advice = "give the same settings to go on with it, or another --out"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        different = [name for name in wanted if found[name] != wanted[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read as the note of a run; choose another --out"
        ) from error
    for name in different:
        if name == "checkpoint":
            continue
        if name == "weights":
            what = f"the weights that were in {found['checkpoint']}, not those in {wanted['checkpoint']}"  # fmt: skip  # noqa: E501
        elif name == "captions":
            what = "other captions or plans than are given now"
        else:
            what = f"{name} {found[name]!r}, not {wanted[name]!r}"
        raise InputError(f"{path.parent} was filled with {what}; {advice}")


def fingerprint(source: Path) -> str:
    """A digest of a checkpoint's configuration and of pieces spread over its weights."""
    digest = hashlib.sha256()
    for file in sorted(file for pattern in _WEIGHTS for file in source.glob(pattern)):
        try:
            size = file.stat().st_size
            digest.update(f"{file.name} {size}\n".encode())
            with open(file, "rb") as stream:
                for piece in range(_PIECES):
                    stream.seek(max(0, size - _PIECE) * piece // (_PIECES - 1))
                    digest.update(stream.read(_PIECE))
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}") from error
    return digest.hexdigest()
