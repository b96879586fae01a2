"""Tiny CLIP checkpoints for tests: sizes, a vocabulary, the vocabulary's file."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gotr1_jax.convert.clip import HF, abstract_state, clip_config_to_json
from gotr1_jax.convert.tree import checkpoint_tensors
from gotr1_jax.convert.writer import write_safetensors
from gotr1_jax.models.config import ClipConfig, ClipTowerConfig

# Merges that build on each other, in the order of their ranks.
_LINES = """
t h
th e</w>
r e
re d</w>
c u
cu b
cub e</w>
b a
ba l
bal l</w>
l e
le f
lef t</w>
o f</w>
t o</w>
b l
bl u
blu e</w>
n g</w>
i ng</w>
a n
an d</w>
Ã ©</w>
' s</w>
d o
do n</w>
' t</w>
e r
th er
ther e</w>
r e</w>
' re</w>
"""
MERGES: tuple[tuple[str, str], ...] = tuple(
    (left, right) for left, right in (line.split() for line in _LINES.strip().splitlines())
)

TINY = ClipConfig(
    vision=ClipTowerConfig(width=32, mlp_size=48, num_layers=3, num_heads=4),
    text=ClipTowerConfig(width=24, mlp_size=40, num_layers=2, num_heads=3),
    image_size=42,
    patch_size=14,
    vocab_size=512 + len(MERGES) + 2,
    context_length=48,
    embedding_size=20,
)


def tiny_state(seed: int = 0) -> Any:
    """Random parameters of a `Clip` of these sizes; norms are near one."""

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path)
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        values = rng.standard_normal(leaf.shape, np.float32) / leaf.shape[-1] ** 0.5
        return jnp.asarray(values + ("scale" in name))

    return jax.tree.map_with_path(draw, abstract_state(TINY))


def write_vocabulary(directory: Path) -> Path:
    """merges.txt in `directory`; returns it."""
    file = directory / "merges.txt"
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES), ""]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def write_tiny_clip(directory: Path, seed: int = 0) -> Path:
    """A tiny random CLIP as `convert_clip` writes it, float32; returns `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(clip_config_to_json(TINY, "float32")))
    tensors = checkpoint_tensors({"clip": tiny_state(seed)}, HF)
    write_safetensors(directory / "model.safetensors", tensors)
    write_vocabulary(directory)
    return directory
