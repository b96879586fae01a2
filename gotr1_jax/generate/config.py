"""Configuration of `gotr1 generate`, and the settings file of its output directory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

from gotr1_jax.config import CheckedConfig, to_plain
from gotr1_jax.convert.generation_config import GenerationConfig
from gotr1_jax.decoding.config import CacheDtype
from gotr1_jax.errors import InputError
from gotr1_jax.generate.search.config import SearchJob
from gotr1_jax.io.reading import open_file, read_json_object, read_text
from gotr1_jax.limits import (
    DraftWindow,
    FilledText,
    Guidance,
    PromptTemplate,
    RowCount,
    Seed,
    Temperature,
    TokenCount,
    TopK,
    TopP,
)
from gotr1_jax.rewards.judge_config import CacheConfig
from gotr1_jax.sampler.config import SamplerConfig, sampling_defaults
from gotr1_jax.tokenizers.janus import GOTR1_TEMPLATE, TEMPLATES

LAYOUTS = {"plain": 1, "t2i_compbench": 10, "geneval": 4, "dpg": 4}
"""Layout -> default number of images of a caption, as its benchmark needs."""

SETTINGS_FILE = "generation.json"
"""File in an output directory with the settings that its results depend on."""

BUILT_IN = sampling_defaults(*(field.name for field in fields(GenerationConfig)))
"""How a checkpoint is sampled that does not say it."""

SAMPLING_NAMES = (
    "template", "max_plan_tokens", "cfg", "greedy", "temperature", "image_temperature", "top_k",
    "top_p", "seed",
)  # fmt: skip
"""Settings of sampling, as `SETTINGS_FILE` calls them."""

_WEIGHTS = ("config.json", "*.safetensors", "*.bin")
_PIECES, _PIECE_BYTES = 64, 4096  # of each weights file that are hashed


@dataclass(frozen=True)
class GenerateConfig(CheckedConfig):
    """What to generate and where to.

    Attributes:
      out: directory of the files.
      prompt: one caption; its files go into `out` itself and replace those of an earlier run.
      prompts: file of captions (text, or .jsonl with the key prompt or caption), or a directory of
        .txt files of one caption each.
      plans: file (or earlier output directory) of plans to use instead of sampled ones;
        alone, or with `prompts` in the same order.
      layout: a key of LAYOUTS; folders and names of the images.
      plans_only: sample plans and no images.
      n: samples of each caption, with `plans` images of each plan; None: 1 a plan, else what
        the layout's benchmark needs.
      batch_size: rows sampled at once; None: by the free memory.
      speculative: positions of the image in one forward pass, see `SamplerConfig`; as the batch
        size it changes the time, not the samples.
      cache_dtype: of the KV cache, see `SamplerConfig`.
      ckpt: checkpoint directory, finished run or hub id; None is the embedded checkpoint.
      revision: branch, tag or commit of a hub id.
      greedy: the most likely token everywhere.
      cfg: guidance weight of the image, 1: no guidance.
      max_plan_tokens: longest plan; longer sampled plans are cut, longer given ones refused.
      temperature, top_k, top_p: of both phases, see `SamplerConfig`.
      image_temperature: of the image; None: as `temperature`, where that is given.
      dtype: "float32", "bfloat16", or None: bfloat16 on accelerators, float32 on a CPU.
      seed: of all randomness.
      template: prompt text around the caption.
      search: test-time search; None: each sample is drawn once.

    How is sampled, and the template, is None until `sampled_as` says it: as the checkpoint wants.

    Raises InputError for an invalid combination, and for an `out` that cannot be written.
    """

    out: Path
    prompt: str | None = None
    prompts: Path | None = None
    plans: Path | None = None
    layout: str = "plain"
    plans_only: bool = False
    n: RowCount | None = None
    batch_size: RowCount | None = None
    speculative: DraftWindow = 0
    cache_dtype: CacheDtype = "auto"
    ckpt: FilledText | None = None
    revision: FilledText | None = None
    greedy: bool | None = None
    cfg: Guidance | None = None
    max_plan_tokens: TokenCount | None = None
    temperature: Temperature | None = None
    image_temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    seed: Seed = 0
    template: PromptTemplate | None = None
    search: SearchJob | None = None

    def check(self) -> None:
        """One source of captions or plans, and a directory that can be written."""
        self._check_sources()
        self._check_search()
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"output {self.out} is a file; choose a directory")
        existing = next(p for p in (self.out, *self.out.absolute().parents) if p.exists())
        if not os.access(existing, os.W_OK | os.X_OK):
            raise InputError(f"output {self.out} cannot be written; choose another directory")

    @property
    def sampled(self) -> GenerationConfig:
        """What is set of how plans and images are sampled."""
        image = self.temperature if self.image_temperature is None else self.image_temperature
        return GenerationConfig(
            self.cfg, self.temperature, image, self.top_k, self.top_p, self.greedy,
            self.max_plan_tokens, self.template,
        )  # fmt: skip

    def sampled_as(self, settings: GenerationConfig) -> Self:
        """A copy that is sampled with these `settings`."""
        return replace(
            self, cfg=settings.guidance, temperature=settings.text_temperature,
            image_temperature=settings.image_temperature, top_k=settings.top_k,
            top_p=settings.top_p, greedy=settings.greedy,
            max_plan_tokens=settings.max_plan_tokens, template=settings.template,
        )  # fmt: skip

    @property
    def sampling(self) -> SamplerConfig:
        """How plans and images are sampled."""
        sampling = SamplerConfig.of(self.sampled)
        return replace(sampling, speculative=self.speculative, cache_dtype=self.cache_dtype)

    @property
    def prompt_template(self) -> str:
        """The prompt around a caption."""
        return GOTR1_TEMPLATE if self.template is None else self.template

    @property
    def samples(self) -> int:
        """Images of a caption, or of a given plan."""
        if self.n is not None:
            return self.n
        return 1 if self.plans is not None else LAYOUTS[self.layout]

    @property
    def numbered(self) -> bool:
        """Whether captions come from a file: each has a numbered folder, and finished ones stay."""
        return self.prompt is None

    def _check_sources(self) -> None:
        if self.layout not in LAYOUTS:
            raise InputError(f"layout {self.layout!r} is unknown; choose {', '.join(LAYOUTS)}")
        if self.prompt is None and self.prompts is None and self.plans is None:
            raise InputError("nothing to generate: give --prompt, --prompts or --plans")
        if self.prompt is not None and (self.prompts is not None or self.plans is not None):
            raise InputError("--prompt excludes --prompts and --plans; give one of them")
        if self.plans_only and self.speculative:
            raise InputError(
                "--speculative is of images and --plans-only makes none; give one of them"
            )
        if self.plans_only and self.plans is not None:
            raise InputError("--plans-only samples plans and --plans gives them; give one of them")
        if self.layout == "plain":
            return
        if self.plans_only:
            raise InputError(f"--layout {self.layout} names images; --plans-only makes none")
        if self.layout in ("geneval", "dpg") and self.prompts is None:
            raise InputError(f"--layout {self.layout} needs the benchmark's own --prompts")
        if self.prompt is not None:
            raise InputError(f"--layout {self.layout} needs captions from a file: --prompts")

    def _check_search(self) -> None:
        """A search draws plans of its own, at random, and images where a method needs them."""
        if self.search is None:
            return
        methods = self.search.search.methods
        if self.plans is not None:
            raise InputError("--search draws plans and --plans gives them; give one of them")
        painting = [name for name in methods if name in ("repaint", "best_of")]
        if self.plans_only and painting:
            raise InputError(
                f"--search {painting[0]} compares images and --plans-only makes none; give one "
                "of them"
            )
        drawing = [name for name in methods if name != "repair"]
        if self.greedy and drawing:
            raise InputError(
                f"--search {drawing[0]} draws several times and --greedy gives the same each time; "
                "give one of them"
            )


def read_template(text: str) -> str:
    """A prompt template from its name in `TEMPLATES`, a file, or the text itself.

    Raises InputError unless it holds {caption} exactly once.
    """
    template = TEMPLATES.get(text, text)
    if text not in TEMPLATES and "{caption}" not in text:
        try:
            template = read_text(text, max_bytes=2**20).removesuffix("\n")
        except InputError as error:
            raise InputError(
                f"template {text!r} is neither {', '.join(TEMPLATES)} nor a readable file, and "
                "as a text it lacks {caption}"
            ) from error
    if template.count("{caption}") != 1:
        raise InputError(f"a prompt template needs {{caption}} exactly once: {template!r}")
    return template


def optional_template(text: str | None) -> str | None:
    """`read_template` of an option; None where it is not given."""
    return None if text is None else read_template(text)


def result_settings(
    config: GenerateConfig, source: Path, dtype: str, captions_digest: str
) -> dict[str, Any]:
    """The settings that the results depend on: the content of `SETTINGS_FILE`."""
    settings: dict[str, Any] = {
        "layout": config.layout,
        "plans_only": config.plans_only,
        "captions": captions_digest,
        "n": config.samples,
        **checkpoint_settings(source),
        "dtype": dtype,
    }
    if config.search is not None:
        settings["search"] = search_settings(config.search)
    if config.cache_dtype != "auto":
        settings["cache_dtype"] = config.cache_dtype
    return settings | sampling_settings(config)


def checkpoint_settings(source: Path) -> dict[str, Any]:
    """The checkpoint's place and weights, as `check_settings_file` compares them."""
    return {"checkpoint": str(source), "weights": fingerprint(source)}


def sampling_settings(config: GenerateConfig) -> dict[str, Any]:
    """How a resolved job samples, as its options are called; in result.json too."""
    return {name: getattr(config, name) for name in SAMPLING_NAMES}


def search_settings(job: SearchJob) -> dict[str, Any]:
    """What the results of a search depend on: not where answers are kept, and on which devices."""
    judge = None if job.judge is None else replace(job.judge, cache=CacheConfig())
    values = to_plain(replace(job, judge=judge))
    del values["mesh"]
    return values


def check_settings_file(
    path: Path, wanted: dict[str, Any], before: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Check that the settings file `path` holds the settings `wanted`.

    The weights of a checkpoint count, not its path. `before` holds what was meant by files that
    lack a setting. Raises InputError, naming the first setting that differs, and for a file that
    cannot be read.
    """
    try:
        # A search is noted only where there was one, and so is a cache's own dtype.
        usual = {"search": None, "cache_dtype": "auto"}
        found, wanted = ({**usual, **v} for v in (read_json_object(path), wanted))
        if "image_temperature" in wanted:  # once there was one temperature
            before = {"image_temperature": found["temperature"], **before}
        found = {**before, **found}
        different = [name for name in wanted if found[name] != wanted[name]]
    except (InputError, KeyError) as error:
        raise InputError(
            f"{path} cannot be read as the settings of a run; choose another --out"
        ) from error
    for name in different:
        if name == "checkpoint":
            continue
        if name == "weights":
            what = f"other weights: those of {found['checkpoint']}, not {wanted['checkpoint']}"
        elif name == "captions":
            what = "other captions or plans than are given now"
        elif name == "search" and None in (found[name], wanted[name]):
            what = "no --search" if found[name] is None else "a --search, which is not given now"
        elif name == "search":
            what = f"another search: {_first_difference(found[name], wanted[name])}"
        else:
            what = _first_difference(found[name], wanted[name], name)
        raise InputError(
            f"{path.parent} was filled with {what}; give the same settings to continue, or another "
            "--out"
        )


def _first_difference(found: Any, wanted: Any, where: str = "") -> str:
    """The first differing value of two nested objects, with its dotted name."""
    if not (isinstance(found, dict) and isinstance(wanted, dict)):
        return f"{where} {found!r}, not {wanted!r}"
    key = next(k for k in {**wanted, **found} if found.get(k, ...) != wanted.get(k, ...))
    below = f"{where}.{key}" if where else key
    return _first_difference(found.get(key), wanted.get(key), below)


def fingerprint(source: Path) -> str:
    """A digest of a checkpoint's configuration and of pieces spread over its weights."""
    digest = hashlib.sha256()
    for file in sorted(file for pattern in _WEIGHTS for file in source.glob(pattern)):
        try:
            size = file.stat().st_size
            digest.update(f"{file.name} {size}\n".encode())
            with open_file(file) as stream:
                for piece in range(_PIECES):
                    stream.seek(max(0, size - _PIECE_BYTES) * piece // (_PIECES - 1))
                    digest.update(stream.read(_PIECE_BYTES))
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}") from error
    return digest.hexdigest()
