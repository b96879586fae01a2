"""The model card of a run: what it was trained on and by, what it reached, samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from gotr1_jax import __version__
from gotr1_jax.errors import InputError
from gotr1_jax.io.hub import is_hub_id
from gotr1_jax.io.strict_yaml import read_yaml
from gotr1_jax.report.load import RunData, load_run

CARD, SAMPLES, RECIPE = "README.md", "samples.png", "training_config.yaml"
_SHOWN = 12  # samples of the image
_COLUMNS = 6


@dataclass(frozen=True)
class CardFacts:
    """What a card says besides the run's own numbers.

    Attributes:
      name: title.
      form: format of the weights: "original", "hf" or "peft".
      base: hub id of the model that training began from; None: unknown or of this disk.
      license: identifier as the hub knows it, such as "mit".
    """

    name: str
    form: str
    base: str | None
    license: str


def write_model_card(folder: Path, run_dir: Path | None, facts: CardFacts) -> None:
    """Writes README.md into `folder`, and of a run its configuration and an image of samples.

    run_dir: None where the model is no run's. Raises InputError for a run that cannot be read.
    """
    # Samples of training are not on the card.
    run = None if run_dir is None else load_run(run_dir, 0, max_followed=0)
    parts = [_front_matter(facts, run), f"# {facts.name}\n", _about(facts)]
    if run is not None:
        if _draw_samples(folder / SAMPLES, run):
            parts.append(
                f"![The first samples of the evaluation after training]({SAMPLES})\n\nThe first "
                "samples of the evaluation after training, in their order.\n"
            )
        parts += [_results(run.summary), _training(run)]
        (folder / RECIPE).write_text(run.config_text, encoding="utf-8")
    (folder / CARD).write_text("\n".join(part for part in parts if part), encoding="utf-8")


def _front_matter(facts: CardFacts, run: RunData | None) -> str:
    values: dict[str, Any] = {"license": facts.license, "pipeline_tag": "text-to-image"}
    values["library_name"] = {"peft": "peft", "hf": "transformers"}.get(facts.form, "gotr1_jax")
    if facts.base is not None and is_hub_id(facts.base):
        values["base_model"] = facts.base
        values["base_model_relation"] = "adapter" if facts.form == "peft" else "finetune"
    values["tags"] = ["gotr1_jax", *(() if run is None else ("reinforcement-learning",))]
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---\n"


def _about(facts: CardFacts) -> str:
    written = f"Written by gotr1_jax {__version__}, which plans in words with boxes, then paints."
    if facts.form == "peft":
        base = facts.base or "its base model"
        return (
            f"{written} Adapters for {base}: load them with `peft` onto its `transformers` form.\n"
        )
    if facts.form == "hf":
        return f"{written} Load with `JanusForConditionalGeneration.from_pretrained`.\n"
    return (
        f"{written}\n\n```python\nfrom gotr1_jax import Pipeline\n\n"
        f'pipe = Pipeline.from_pretrained("THIS_REPOSITORY")\n'
        'pipe("a red circle left of a blue square").images[0].save("image.png")\n```\n'
    )


def _results(summary: Mapping[str, Any]) -> str:
    before, after = summary.get("before"), summary.get("after")
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return ""
    rows = [
        f"| {term} | {_number(before[term])} | {_number(after[term])} |"
        for term in after
        if term in before
    ]
    interval = summary.get("total_gain_ci95") or ()
    of = f" of {summary['captions']} held-out captions" if "captions" in summary else ""
    text = f"## Results\n\nMeans{of}, scored by the run's own judge.\n\n"
    text += "\n".join(["| term | before | after |", "|-|-|-|", *rows]) + "\n"
    if len(interval) == 2:
        low, high = map(_number, interval)
        text += f"\nGain of the total, 95 % interval (paired bootstrap): [{low}, {high}].\n"
    return text


def _training(run: RunData) -> str:
    config = read_yaml(run.config_text, f"the configuration of {run.name}") or {}
    if not isinstance(config, dict):
        raise InputError(f"the configuration of {run.name} is no YAML of keys and values")

    def at(path: str) -> Any:
        value: Any = config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value

    facts = {
        "steps": run.summary.get("steps", at("steps")),
        "captions": at("captions.source"),
        "data": at("data.source"),
        "captions × samples a step": None if at("rollout.captions_per_step") is None
        else f"{at('rollout.captions_per_step')} × {at('rollout.samples_per_caption')}",
        "judge": at("judge.kind"),
        "reward": at("reward.total"),
        "advantage": at("advantage.kind"),
        "loss": at("loss.kind"),
        "adapters": None if at("policy.lora") is None else f"rank {at('policy.lora.rank')}",
        "learning rate": at("optimizer.learning_rate"),
        "seed": at("seed"),
    }  # fmt: skip
    rows = [f"| {key} | {_cell(value)} |" for key, value in facts.items() if value is not None]
    table = "\n".join(["| | |", "|-|-|", *rows])
    return f"## Training\n\n{table}\n\nAll settings: [{RECIPE}]({RECIPE}).\n"


def _draw_samples(path: Path, run: RunData) -> bool:
    """One image of the first samples, one a caption; False where there are none."""
    first: dict[int, np.ndarray] = {}
    for sample in run.after:
        first.setdefault(sample.record.caption_index, sample.record.image)
    images = [image for _, image in sorted(first.items())][:_SHOWN]
    if not images:
        return False
    height, width = images[0].shape[:2]
    columns = min(_COLUMNS, len(images))
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    for i, image in enumerate(images):
        sheet.paste(Image.fromarray(image), (i % columns * width, i // columns * height))
    sheet.save(path)
    return True


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) and math.isfinite(value) else "–"


def _cell(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
