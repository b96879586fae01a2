"""Low-rank adapters in the layout of the `peft` library, for a base in the Hugging Face port."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from gotr1_jax.convert.names import NAMING
from gotr1_jax.convert.rules import sources
from gotr1_jax.convert.writer import OutTensor, write_safetensors
from gotr1_jax.errors import InputError
from gotr1_jax.io.files import atomic_folder, write_json
from gotr1_jax.io.reading import read_json_object
from gotr1_jax.models.config import LoraConfig

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # what peft puts before the names of the model that it wraps


def save_adapters(
    directory: str | Path,
    adapters: Mapping[str, tuple[np.ndarray, np.ndarray]],
    lora: LoraConfig,
    base: str,
) -> int:
    """Writes adapter_config.json and adapter_model.safetensors; returns the number of tensors.

    The directory appears whole or not at all. Names are those of the port: load with
    `PeftModel.from_pretrained(JanusForConditionalGeneration.from_pretrained(PORT), directory)`.

    Args:
      directory: where to.
      adapters: for the dotted path of each adapted kernel ("policy.decoder.layers.q.kernel"),
        A (L, in, rank) and B (L, rank, out), float32: W gets alpha / rank · A @ B.
      lora: rank and alpha.
      base: the model of the adapters, a directory or hub id; it is stored, not read.

    Raises InputError for a target that holds something else, RunError if it cannot be written.
    """
    if not adapters:
        raise InputError("there are no adapters to export")
    tensors, modules = [], []
    for path, (a_LIR, b_LRO) in sorted(adapters.items()):
        shape = (a_LIR.shape[0], a_LIR.shape[1], b_LRO.shape[2])
        for place in sources(path, shape, NAMING["hf"]):
            module = place.name.removesuffix(".weight")
            modules.append(module)
            for name, stack in (("lora_A", a_LIR), ("lora_B", b_LRO)):
                layer = stack[place.layer].T
                get = partial(np.asarray, layer)
                tensors.append(OutTensor(f"{_PREFIX}{module}.{name}.weight", layer.shape, get))
    with atomic_folder(Path(directory), ADAPTER_CONFIG) as temporary:
        write_json(temporary / ADAPTER_CONFIG, _config(lora, base, modules))
        ordered = sorted(tensors, key=lambda tensor: tensor.name)
        write_safetensors(temporary / ADAPTER_WEIGHTS, ordered)
    return len(tensors)


def set_base(directory: Path, base: str) -> None:
    """Names another base model in the adapter_config.json of written adapters."""
    config = read_json_object(directory / ADAPTER_CONFIG)
    write_json(directory / ADAPTER_CONFIG, {**config, "base_model_name_or_path": base})


def _config(lora: LoraConfig, base: str, modules: list[str]) -> dict[str, object]:
    # A pattern of whole names: the vision tower has projections of the same short names.
    patterns = sorted({re.escape(name).replace("\\.", "[.]") for name in modules})
    kinds = sorted({re.sub(r"\[\.\]\d+\[\.\]", r"[.]\\d+[.]", pattern) for pattern in patterns})
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": "|".join(f"(?:{kind})" for kind in kinds),
    }
