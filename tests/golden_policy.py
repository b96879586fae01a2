"""The policy of the golden checkpoint `janus_a`, built without its image tokenizer and tower."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from gotr1_jax.convert.config_json import parse_config
from gotr1_jax.convert.names import NAMING
from gotr1_jax.convert.open_checkpoint import abstract_part
from gotr1_jax.convert.reader import Tensor
from gotr1_jax.convert.tree import load_tree
from gotr1_jax.models.janus import JanusPolicy
from gotr1_jax.tokenizers.janus import SpecialIds


def golden_policy(shared: Path, name: str = "janus_a") -> tuple[JanusPolicy, SpecialIds]:
    """Module in float32 and special ids of a golden checkpoint, weights by its `tensor` rule."""
    script = shared / "goldens" / "make_checkpoint.py"
    module_spec = importlib.util.spec_from_file_location("make_checkpoint", script)
    assert module_spec is not None and module_spec.loader is not None
    maker: Any = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(maker)
    spec = json.loads((shared / "goldens" / f"{name}.json").read_text())
    config, form = parse_config(maker.config(spec), name)

    def stored(tensor_name: str, shape: list[int]) -> Tensor:
        def read(first: int, last: int | None) -> np.ndarray:
            return maker.tensor(spec["seed"], tensor_name, shape)[first:last]

        return Tensor(tensor_name, tuple(shape), "F32", script, read)

    tensors = {n: stored(n, shape) for n, (shape, _) in spec["tensors"].items()}
    graphdef, shapes = nnx.split(abstract_part("policy", config))
    state = load_tree("policy", shapes, NAMING[form], tensors, np.float32)
    policy = nnx.merge(graphdef, state)
    specials = SpecialIds(
        bos=spec["bos_id"], eos=-1, pad=spec["pad_id"], boi=spec["boi_id"], eoi=-1, image=-1
    )
    return policy, specials
