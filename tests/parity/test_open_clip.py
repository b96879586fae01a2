"""CLIP against open_clip itself, where it is installed.

    pip install --no-deps open_clip_torch

is enough: the torchvision and ftfy that it asks for are not used here. (Other tests hold the same
without it, against its architecture written out in torch.)
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tiny_clip import TINY
from torch_clip import hps_file, shake, torch_pixels, unit

from gotr1_jax.convert.clip import OPEN_CLIP, abstract_state, load_clip
from gotr1_jax.convert.rules import expected_tensors
from gotr1_jax.convert.tree import tree_shapes
from gotr1_jax.models.config import VIT_H_14, ClipConfig
from gotr1_jax.tokenizers.clip import ClipTokenizer

STANDINS = (
    "ftfy",
    "torchvision",
    "torchvision.ops",
    "torchvision.ops.misc",
    "torchvision.transforms",
    "torchvision.transforms.functional",
)


class Standin(types.ModuleType):
    """A module in which every name is an empty class, except what text needs of ftfy."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "fix_text":
            return lambda text: text
        return type(name, (), {"BICUBIC": 3})


@pytest.fixture(scope="module")
def open_clip() -> Any:
    import transformers  # noqa: F401  # it asks for torchvision too, and must not meet ours

    with pytest.MonkeyPatch.context() as patch:
        for name in STANDINS:
            patch.setitem(sys.modules, name, Standin(name))
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, sys.modules[name])
        module = pytest.importorskip("open_clip", reason="pip install --no-deps open_clip_torch")
        yield module


def build(open_clip: Any, cfg: ClipConfig) -> Any:
    vision, text = cfg.vision, cfg.text
    return open_clip.CLIP(
        embed_dim=cfg.embedding_size,
        vision_cfg={
            "image_size": cfg.image_size,
            "patch_size": cfg.patch_size,
            "layers": vision.num_layers,
            "width": vision.width,
            "head_width": vision.width // vision.num_heads,
            "mlp_ratio": vision.mlp_size / vision.width,
        },
        text_cfg={
            "context_length": cfg.context_length,
            "vocab_size": cfg.vocab_size,
            "layers": text.num_layers,
            "width": text.width,
            "heads": text.num_heads,
            "mlp_ratio": text.mlp_size / text.width,
        },
    )


def test_vectors(open_clip: Any, tmp_path: Path) -> None:
    model = shake(build(open_clip, TINY), seed=5)
    clip = load_clip(hps_file(tmp_path / "hps.pt", model), hps_config=TINY).module()
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((3, TINY.image_size, TINY.image_size, 3), np.float32)
    ids = rng.integers(0, TINY.vocab_size - 2, (4, TINY.context_length)).astype(np.int32)
    for row, end in zip(ids, (1, 5, 20, TINY.context_length - 1)):
        row[end:] = 0
        row[end] = TINY.vocab_size - 1
    with torch.no_grad():
        images = unit(model.encode_image(torch_pixels(pixels)))
        captions = unit(model.encode_text(torch.from_numpy(ids).long()))
    np.testing.assert_allclose(clip.encode_images(jnp.asarray(pixels)), images, atol=1e-5)
    np.testing.assert_allclose(clip.encode_captions(jnp.asarray(ids)), captions, atol=1e-5)


def test_full_size_names_and_shapes(open_clip: Any) -> None:
    with torch.device("meta"):
        theirs = {n: tuple(t.shape) for n, t in build(open_clip, VIT_H_14).state_dict().items()}
    known = {n: shape for n, shape in theirs.items() if not OPEN_CLIP.unused.match(n)}
    leaves = tree_shapes("clip", abstract_state(VIT_H_14))
    assert expected_tensors(leaves, OPEN_CLIP) == known


def test_tokenizer_on_real_captions(open_clip: Any, shared: Path) -> None:
    """With the vocabulary that open_clip carries: the one of HPS v2.1."""
    folder = Path(open_clip.__file__).parent
    ours = ClipTokenizer.from_path(folder)
    theirs = open_clip.SimpleTokenizer()
    assert ours.vocab_size == theirs.vocab_size == 49408
    captions = [
        line
        for file in sorted((shared / "prompts").rglob("*.txt"))
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    captions += ["", "a" * 300, "word " * 100, "they've 12 x &amp; y!!!'s 中文 🎨 naïve"]
    assert len(captions) > 100
    golden = theirs(captions).numpy()
    wrong = [captions[i] for i in np.flatnonzero((ours.encode(captions) != golden).any(axis=1))]
    assert [text for text in wrong if text.isascii()] == []
