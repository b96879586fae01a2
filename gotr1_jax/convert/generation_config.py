"""How a checkpoint wants to be sampled: generation_config.json, a file of the Hugging Face kind.

    do_sample            false: the most likely token everywhere
    temperature          of the plan, and of the image where image_temperature is absent
    top_k, top_p         of plan and image
    guidance_scale       w in uncond + w (cond - uncond), of the image
    max_new_tokens       longest text, which is a plan, where max_plan_tokens is absent
    image_temperature, max_plan_tokens, template     not known to other tools
    canvas               of a judge: longer side in pixels of the sketches that it was taught

A setting of the command line or of a job's file comes first, then the checkpoint's, then the
built-in default. Other keys of the file are of other tools: they stay in it, and are not read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from gotr1_jax.config import CheckedConfig, field_kinds, read_value
from gotr1_jax.errors import ConfigError, InputError
from gotr1_jax.io.files import write_json
from gotr1_jax.io.reading import read_json_object
from gotr1_jax.limits import (
    CanvasSide,
    Guidance,
    PromptTemplate,
    Temperature,
    TokenCount,
    TopK,
    TopP,
)

GENERATION_FILE = "generation_config.json"

# Field -> keys of the file; the first that is there counts.
_KEYS = {
    "guidance": ("guidance_scale",),
    "text_temperature": ("temperature",),
    "image_temperature": ("image_temperature", "temperature"),
    "top_k": ("top_k",),
    "top_p": ("top_p",),
    "max_plan_tokens": ("max_plan_tokens", "max_new_tokens"),
    "template": ("template",),
}
_CANVAS = "canvas"
_SHOWN = 60  # characters of a template in a line
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerationConfig(CheckedConfig):
    """How plans and images are sampled; null: not stated.

    Attributes:
      guidance: weight of classifier-free guidance of the image; 1: none.
      text_temperature: divisor of the plan's logits.
      image_temperature: divisor of the image's logits.
      top_k: plan and image are sampled from so many most likely tokens; 0: from all.
      top_p: plan and image are sampled from the most likely tokens of this probability; 1: all.
      greedy: whether plan and image take the most likely token.
      max_plan_tokens: longest plan in tokens, without BOI.
      template: the prompt around {caption}.
    """

    guidance: Guidance | None = None
    text_temperature: Temperature | None = None
    image_temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    greedy: bool | None = None
    max_plan_tokens: TokenCount | None = None
    template: PromptTemplate | None = None

    @property
    def stated(self) -> dict[str, Any]:
        """The stated settings, by field."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def or_else(self, *others: GenerationConfig) -> GenerationConfig:
        """Each setting as stated here, else by the first of the others that states it."""
        found: dict[str, Any] = {}
        for one in (self, *others):
            found = one.stated | found
        return GenerationConfig(**found)


def read_generation_config(folder: Path) -> GenerationConfig:
    """What the checkpoint in `folder` says; nothing where it has no such file.

    InputError, naming file and key, for what is no JSON object, and for a value of another type or
    out of range.
    """
    path = folder / GENERATION_FILE
    data = read_json_object(path, missing_ok=True)
    kinds = field_kinds(GenerationConfig)
    found: dict[str, Any] = {}
    for name, keys in _KEYS.items():
        values = [_read_key(path, data, key, kinds[name]) for key in keys]
        found[name] = next((value for value in values if value is not None), None)
    samples = _read_key(path, data, "do_sample", kinds["greedy"])
    return GenerationConfig(**found, greedy=None if samples is None else not samples)


def read_canvas(folder: Path) -> int | None:
    """Longer side in pixels of the sketches that the judge in `folder` was taught; None where it
    does not say. Errors as of `read_generation_config`."""
    path = folder / GENERATION_FILE
    return _read_key(path, read_json_object(path, missing_ok=True), _CANVAS, CanvasSide | None)


def write_canvas(folder: Path, side: int) -> None:
    """Says in `folder` that its judge was taught sketches of `side` pixels."""
    path = folder / GENERATION_FILE
    write_json(path, {**read_json_object(path, missing_ok=True), _CANVAS: side})


def _read_key(path: Path, data: Mapping[str, Any], key: str, kind: Any) -> Any:
    try:
        return read_value(kind, data.get(key), f"{path}: {key}")
    except ConfigError as error:
        raise ConfigError(f"{error}; correct it or remove the key from the file") from error


def generation_json(settings: GenerationConfig, others: Mapping[str, Any]) -> dict[str, Any]:
    """The file's content: the stated `settings`, beside the other keys of the content `others`."""
    stated = settings.stated
    made = {keys[0]: stated[name] for name, keys in _KEYS.items() if name in stated}
    if settings.max_plan_tokens is not None:
        made["max_new_tokens"] = settings.max_plan_tokens  # which other tools know
    if settings.greedy is not None:
        made["do_sample"] = not settings.greedy
    return {**others, **made}


class SamplingJob(Protocol):
    """The settings of a job that samples, or trains for a way of sampling."""

    @property
    def sampled(self) -> GenerationConfig:
        """What they state of it."""
        ...

    def sampled_as(self, settings: GenerationConfig) -> Self:
        """A copy with these `settings`, of the fields that the job has."""
        ...


Job = TypeVar("Job", bound=SamplingJob)


def resolve_sampling(
    config: Job,
    checkpoint: Path | None,
    built_in: GenerationConfig,
    former: GenerationConfig = GenerationConfig(),
) -> Job:
    """The job with a value for all that its settings leave open of sampling.

    What `former` says comes before what the checkpoint says, and that before `built_in`. What is
    taken from the checkpoint is logged in a line.

    Args:
      config: of the job.
      checkpoint: folder of the checkpoint that it samples or begins from; None: a new model.
      built_in: a value for every field that the job has.
      former: of the run that it goes on with.

    Raises InputError for a checkpoint's file that cannot be read or says what the job cannot do.
    """
    wanted = {} if checkpoint is None else read_generation_config(checkpoint).stated
    own = GenerationConfig(**{k: v for k, v in wanted.items() if k in built_in.stated})
    given = config.sampled.or_else(former)
    try:
        resolved = config.sampled_as(given.or_else(own, built_in))
    except InputError as error:
        if checkpoint is None or given.or_else(own) == given:
            raise
        raise InputError(f"{error}, as {checkpoint / GENERATION_FILE} says") from error
    taken = {name: value for name, value in own.stated.items() if name not in given.stated}
    if taken:
        words = ", ".join(f"{name} {_show(value)}" for name, value in taken.items())
        _log.info("as %s/%s says: %s", checkpoint, GENERATION_FILE, words)
    return resolved


def _show(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value).lower()
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
