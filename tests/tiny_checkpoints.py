"""Small random checkpoints for tests, written in the released format."""

from __future__ import annotations

import json
import shutil
import zlib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from gotr1_jax.convert.checkpoint import save_checkpoint
from gotr1_jax.convert.config_json import parse_config
from gotr1_jax.convert.names import unused_tensors
from gotr1_jax.convert.open_checkpoint import PARTS, abstract_part
from gotr1_jax.models.config import DecoderConfig, JanusConfig, SiglipConfig, VQConfig
from gotr1_jax.shapes.tokenizer import train_tokenizer

TINY = JanusConfig(
    decoder=DecoderConfig(
        vocab_size=1440,
        hidden_size=32,
        mlp_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
    ),
    vq=VQConfig(
        codebook_size=64,
        code_dim=8,
        base_channels=8,
        z_channels=16,
        encoder_multipliers=(1, 2, 2),
        decoder_multipliers=(1, 2, 2),
        num_res_blocks=1,
        norm_groups=4,
    ),
    siglip=SiglipConfig(
        image_size=16, patch_size=4, width=16, mlp_size=32, num_layers=2, num_heads=2
    ),
    image_size=16,
)

# Sizes that the Hugging Face port has words for: groups of 32, the tower's grid, one multiplier
# list; the width of a head is not the hidden size divided by their number.
PORTABLE = replace(
    TINY,
    decoder=replace(TINY.decoder, head_dim=16, rope_theta=5e3, norm_eps=1e-5),
    vq=replace(
        TINY.vq, base_channels=32, encoder_multipliers=(1, 2), decoder_multipliers=(1, 2),
        norm_groups=VQConfig().norm_groups,
    ),
    siglip=replace(TINY.siglip, patch_size=2, mlp_size=40),
)  # fmt: skip


def add_unused(directory: Path, seed: int = 1) -> None:
    """Adds the tensors that released files hold and nothing uses, random ones, in their dtype."""
    file = directory / "model.safetensors"
    stored = load_file(file)
    kind = stored["gen_embed.weight"].dtype
    config = parse_config(json.loads((directory / "config.json").read_text()), "config.json")[0]
    rng = np.random.default_rng(seed)
    for name, shape in unused_tensors(config.siglip).items():
        stored[name] = rng.standard_normal(shape, np.float32).astype(kind)
    save_file(stored, file, metadata={"format": "pt"})


def tiny_states(config: JanusConfig = TINY, seed: int = 0) -> dict[str, nnx.State]:
    """Random parameters of all three parts; norms are near one."""

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path)
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        fan_in = max(1, leaf.size // leaf.shape[-1])
        values = rng.standard_normal(leaf.shape, np.float32) / fan_in**0.5
        return jnp.asarray(values + ("scale" in name), leaf.dtype)

    return {
        part: jax.tree.map_with_path(draw, nnx.split(abstract_part(part, config))[1])
        for part in PARTS
    }


@lru_cache(maxsize=1)
def _tokenizer() -> TemporaryDirectory[str]:
    """The shapes world's tokenizer, trained once a process."""
    folder = TemporaryDirectory()
    train_tokenizer(folder.name)
    return folder


def write_tiny(
    directory: Path, config: JanusConfig = TINY, seed: int = 0, dtype: str = "float32"
) -> Path:
    """A tiny random checkpoint with the shapes world's tokenizer; returns `directory`."""
    tokenizer = directory.with_name(directory.name + "_tokenizer")
    if not tokenizer.is_dir():
        shutil.copytree(_tokenizer().name, tokenizer)
    states = tiny_states(config, seed)
    return save_checkpoint(
        directory,
        config,
        states["policy"],
        states["vq"],
        states["understanding"],
        tokenizer,
        dtype,
    )
