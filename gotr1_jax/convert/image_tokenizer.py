"""The image tokenizer alone: what `gotr1 train vq` writes and `gotr1 train sft` starts from.

The folder is a checkpoint in the released format with the `gen_vision_model.*` tensors and the
`gen_vision_config` section only. Complete checkpoints are read too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from gotr1_jax.convert.config_json import IMAGE_SIZE, parse_config, vq_from_json, vq_to_json
from gotr1_jax.convert.find import CONFIG_FILE
from gotr1_jax.convert.folders import read_config
from gotr1_jax.convert.names import NAMING, Format, part_of_tensor
from gotr1_jax.convert.reader import open_tensors
from gotr1_jax.convert.tree import check_tensors, checkpoint_tensors, load_tree, tree_shapes
from gotr1_jax.convert.writer import write_checkpoint
from gotr1_jax.errors import InputError
from gotr1_jax.models.config import VQConfig
from gotr1_jax.models.vq import abstract_vq


@dataclass(frozen=True)
class ImageTokenizer:
    """A VQ model: sizes, pixels a side of its images, parameters as a pure tree."""

    config: VQConfig
    image_size: int
    state: Any


def load_vq(path: str | Path, dtype: Any = jnp.float32) -> ImageTokenizer:
    """Reads the image tokenizer of a checkpoint folder.

    Raises InputError in one line for what is missing, unknown or misshapen.
    """
    path = Path(path)
    data = read_config(path)
    form: Format = "original"
    if set(data) == {"model_type", "gen_vision_config"}:
        params = data["gen_vision_config"].get("params", {})
        try:
            config = vq_from_json(params)
        except (TypeError, ValueError) as error:
            raise InputError(f"{path / CONFIG_FILE}: {error}") from error
        image_size = int(params.get("image_size", IMAGE_SIZE))
    else:
        sizes, form = parse_config(data, str(path / CONFIG_FILE))
        config, image_size = sizes.vq, sizes.image_size
    tensors = {
        name: tensor
        for name, tensor in open_tensors(path).items()
        if part_of_tensor(name, form) == "vq"
    }
    state = nnx.split(abstract_vq(config, dtype))[1]
    check_tensors(tensors, tree_shapes("vq", state), NAMING[form], str(path))
    loaded = load_tree("vq", state, NAMING[form], tensors, dtype)
    return ImageTokenizer(config, image_size, loaded)


def save_vq(
    directory: str | Path, config: VQConfig, image_size: int, state: Any, dtype: str = "float32"
) -> Path:
    """Writes the image tokenizer alone; the folder appears whole or not at all."""
    section = {"cls": "VQ-16", "model_type": "gen_vision"}
    data = {
        "model_type": "multi_modality",
        "gen_vision_config": {**section, "params": vq_to_json(config, image_size)},
    }
    tensors = checkpoint_tensors({"vq": state}, NAMING["original"])
    write_checkpoint(Path(directory), data, tensors, dtype=dtype)
    return Path(directory)
