"""Small random Qwen-VLs for tests, written in the released format; needs no torch."""

from __future__ import annotations

import copy
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from gotr1_jax.convert.qwen_json import parse_qwen_config
from gotr1_jax.convert.qwen_vl import abstract_state, save_qwen
from gotr1_jax.errors import InputError
from gotr1_jax.images.qwen import Geometry
from gotr1_jax.models.config import DecoderConfig
from gotr1_jax.models.qwen_config import Qwen3VisionConfig, QwenConfig, QwenVisionConfig

SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip

TINY_QWEN = QwenConfig(
    text=DecoderConfig(
        vocab_size=272,
        hidden_size=32,
        mlp_size=48,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        rope_theta=1e4,
        norm_eps=1e-5,
        qkv_bias=True,
        mrope_section=(1, 1, 2),
    ),
    vision=QwenVisionConfig(
        width=32,
        mlp_size=40,
        num_layers=4,
        num_heads=2,
        out_size=32,
        full_attention=(1, 3),
        geometry=Geometry(),
    ),
)
TINY_QWEN3 = QwenConfig(
    text=replace(
        TINY_QWEN.text,
        head_dim=16,
        qkv_bias=False,
        mrope_section=(4, 2, 2),
        mrope_interleaved=True,
        qk_norm=True,
    ),
    vision=Qwen3VisionConfig(
        width=32,
        mlp_size=40,
        num_layers=4,
        num_heads=2,
        out_size=32,
        position_side=5,
        deepstack=(0, 2),
        geometry=Geometry(patch_size=16, window_size=0),
    ),
)


def check_refused_config(
    released: Mapping[str, Any], change: Mapping[str, Any], message: str
) -> None:
    """A config.json with changes, by dotted keys, is refused in one line that names the file."""
    data = copy.deepcopy(dict(released))
    for key, value in change.items():
        section, _, name = key.rpartition(".")
        (data[section] if section else data)[name] = value
    with pytest.raises(InputError, match=re.escape(message)) as error:
        parse_qwen_config(data, "some/config.json")
    assert "some/config.json" in str(error.value) and "\n" not in str(error.value)


def tiny_qwen_state(config: QwenConfig = TINY_QWEN, seed: int = 0) -> nnx.State:
    """Random parameters; norms near one, biases not zero, so that a mistake with them shows.

    Kernels of the text model are large enough that greedy answers do not repeat one token.
    """

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path)
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        values = rng.standard_normal(leaf.shape, np.float32)
        if "kernel" in name:
            fan_in = np.prod(leaf.shape[:-1]) if "patch" in name else leaf.shape[-2]
            return jnp.asarray((1.5 if "text" in name else 1.0) * values / fan_in**0.5)
        return jnp.asarray(0.2 * values + 1 if "scale" in name else 0.5 * values)

    return jax.tree.map_with_path(draw, abstract_state(config))


def write_qwen_files(
    directory: Path, max_pixels: int = 392 * 392, geometry: Geometry = TINY_QWEN.vision.geometry
) -> Path:
    """A byte-level tokenizer.json and a preprocessor_config.json; returns `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate([*letters, "ĊĊ"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("Ċ", "Ċ")]))
    # Ends of lines stay together, as in the released vocabulary.
    words = pre_tokenizers.Split(Regex(r"\s*[\r\n]+|\s?\S+|\s+"), "isolated")
    letters_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, letters_of])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": geometry.unit_size**2,
        "max_pixels": max_pixels,
        "patch_size": geometry.patch_size,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    if not geometry.window_size:  # Qwen3-VL
        settings |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        settings["size"] = {
            "shortest_edge": settings.pop("min_pixels"), "longest_edge": settings.pop("max_pixels"),
        }  # fmt: skip
    (directory / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return directory


def write_tiny_qwen(
    directory: Path, config: QwenConfig = TINY_QWEN, seed: int = 0, dtype: str = "float32"
) -> Path:
    """A tiny random checkpoint; returns `directory`."""
    files = write_qwen_files(
        directory.with_name(directory.name + "_files"), geometry=config.vision.geometry
    )
    return save_qwen(directory, config, tiny_qwen_state(config, seed), files, dtype)
