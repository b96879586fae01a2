"""CLIP against `transformers.CLIPModel` and open_clip's architecture, float32, tiny and random."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from tiny_clip import MERGES, TINY, write_vocabulary
from torch_clip import TorchClip, hps_file, shake, torch_pixels, unit
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from gotr1_jax.convert.clip import (
    HF,
    OPEN_CLIP,
    abstract_state,
    clip_config_to_json,
    convert_clip,
    load_clip,
)
from gotr1_jax.convert.reader import open_tensors
from gotr1_jax.convert.rules import expected_tensors
from gotr1_jax.convert.tree import tree_shapes
from gotr1_jax.models.clip import Clip
from gotr1_jax.models.config import VIT_H_14
from gotr1_jax.models.siglip import run_blocks
from gotr1_jax.tokenizers.clip import ClipTokenizer, byte_alphabet, clean

CAPTIONS = (
    "a red cube to the left of the blue ball",
    "The  QUICK\tbrown fox's 12 things, they're   there…",
    "naïve café 中文 🎨 don't &amp; won't",
    "",
    "the " * 60,
)


@pytest.fixture(scope="module")
def port() -> CLIPModel:
    config = clip_config_to_json(TINY, "float32")
    text, vision = config["text_config"], config["vision_config"]
    both = CLIPConfig(
        text_config=CLIPTextConfig(**text).to_dict(),
        vision_config=CLIPVisionConfig(**vision).to_dict(),
        projection_dim=TINY.embedding_size,
    )
    both._attn_implementation = "eager"
    return shake(CLIPModel(both))


@pytest.fixture(scope="module")
def port_dir(port: CLIPModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("port")
    port.save_pretrained(out)
    write_vocabulary(out)
    return out


@pytest.fixture(scope="module")
def clip(port_dir: Path) -> Clip:
    checkpoint = load_clip(port_dir)
    assert checkpoint.config == TINY
    return checkpoint.module()


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((3, TINY.image_size, TINY.image_size, 3), np.float32)


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return ClipTokenizer(MERGES, TINY.context_length).encode(CAPTIONS)


def layers_of(blocks: Any, x: jax.Array, causal: bool) -> list[np.ndarray]:
    """The output of each stacked block in turn."""
    graphdef, stacked = nnx.split(blocks)
    out = []
    for layer in range(jax.tree.leaves(stacked)[0].shape[0]):
        x = nnx.merge(graphdef, jax.tree.map(lambda a, i=layer: a[i], stacked))(x, causal)
        out.append(np.asarray(x))
    return out


def test_vision_layer_by_layer(port: CLIPModel, clip: Clip, pixels: np.ndarray) -> None:
    with torch.no_grad():
        golden = port.vision_model(torch_pixels(pixels), output_hidden_states=True)
        projected = port.visual_projection(golden.pooler_output)
    x = clip.vision.embed(jnp.asarray(pixels))
    ours = [np.asarray(x), *layers_of(clip.vision.blocks, x, causal=False)]
    assert len(ours) == len(golden.hidden_states) == TINY.vision.num_layers + 1
    for layer, (mine, theirs) in enumerate(zip(ours, golden.hidden_states)):
        np.testing.assert_allclose(mine, theirs.numpy(), atol=3e-5, err_msg=f"layer {layer}")
    scanned = np.asarray(run_blocks(clip.vision.blocks, x))
    np.testing.assert_allclose(scanned, ours[-1], atol=3e-5)
    np.testing.assert_allclose(clip.vision(jnp.asarray(pixels)), projected.numpy(), atol=3e-5)


def test_text_layer_by_layer(port: CLIPModel, clip: Clip, ids: np.ndarray) -> None:
    with torch.no_grad():
        golden = port.text_model(torch.from_numpy(ids), output_hidden_states=True)
        projected = port.text_projection(golden.pooler_output)
    x = clip.text.embed(jnp.asarray(ids), jnp.float32)
    ours = [np.asarray(x), *layers_of(clip.text.blocks, x, causal=True)]
    for layer, (mine, theirs) in enumerate(zip(ours, golden.hidden_states)):
        np.testing.assert_allclose(mine, theirs.numpy(), atol=3e-5, err_msg=f"layer {layer}")
    vectors = clip.text(jnp.asarray(ids), jnp.float32)
    np.testing.assert_allclose(vectors, projected.numpy(), atol=3e-5)


def test_both_rules_find_the_end_token(port: CLIPModel, clip: Clip, ids: np.ndarray) -> None:
    """First position of the largest id (open_clip), first end id (transformers), our rows."""
    end = TINY.vocab_size - 1
    first_end = [row.tolist().index(end) for row in ids]
    assert ids.argmax(-1).tolist() == first_end
    assert first_end[3] == 1 and first_end[4] == TINY.context_length - 1
    # Ids behind the end are never seen: zeros, or end tokens as transformers pads.
    padded = np.where(np.arange(ids.shape[1]) > np.array(first_end)[:, None], end, ids)
    with torch.no_grad():
        golden = unit(port.get_text_features(torch.from_numpy(padded)).pooler_output)
    for rows in (ids, padded):
        ours = clip.encode_captions(jnp.asarray(rows))
        np.testing.assert_allclose(ours, golden, atol=1e-5)


def test_cosine(port: CLIPModel, clip: Clip, pixels: np.ndarray, ids: np.ndarray) -> None:
    with torch.no_grad():
        both = port(input_ids=torch.from_numpy(ids), pixel_values=torch_pixels(pixels))
        golden = both.logits_per_image / port.logit_scale.exp()
    images = clip.encode_images(jnp.asarray(pixels))
    ours = np.asarray(images @ clip.encode_captions(jnp.asarray(ids)).T)
    np.testing.assert_allclose(ours, golden.numpy(), atol=1e-5)
    assert ours.std() > 0.02


def test_bfloat16_is_near(clip: Clip, pixels: np.ndarray, ids: np.ndarray) -> None:
    half = clip.encode_images(jnp.asarray(pixels, jnp.bfloat16))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, clip.encode_images(jnp.asarray(pixels)), atol=0.05)
    half = clip.encode_captions(jnp.asarray(ids), jnp.bfloat16)
    np.testing.assert_allclose(half, clip.encode_captions(jnp.asarray(ids)), atol=0.05)


def test_released_file(tmp_path: Path, pixels: np.ndarray, ids: np.ndarray) -> None:
    model = shake(TorchClip(TINY), seed=1)
    file = hps_file(tmp_path / "HPS_v2.1_compressed.pt", model)
    clip = load_clip(file, hps_config=TINY).module()
    with torch.no_grad():
        images, captions = (
            model.visual(torch_pixels(pixels)),
            model.encode_text(torch.from_numpy(ids)),
        )
    ours = clip.encode_images(jnp.asarray(pixels)), clip.encode_captions(jnp.asarray(ids))
    np.testing.assert_allclose(ours[0], unit(images), atol=1e-5)
    np.testing.assert_allclose(ours[1], unit(captions), atol=1e-5)


def test_converted_file_is_a_clip_model(
    tmp_path: Path, pixels: np.ndarray, ids: np.ndarray
) -> None:
    """What we write, `transformers` and we read alike, tokenizer included."""
    model = shake(TorchClip(TINY), seed=2)
    file = hps_file(tmp_path / "hps.pt", model)
    vocabulary = write_vocabulary(tmp_path)
    out = convert_clip(file, tmp_path / "out", vocabulary, "float32", hps_config=TINY)
    port, info = CLIPModel.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        golden = unit(model.visual(torch_pixels(pixels)))
        theirs = unit(port.get_image_features(torch_pixels(pixels)).pooler_output)
    np.testing.assert_allclose(theirs, golden, atol=1e-5)
    converted, direct = load_clip(out), load_clip(file, hps_config=TINY)
    assert converted.config == TINY
    jax.tree.map(np.testing.assert_array_equal, converted.state, direct.state)
    np.testing.assert_array_equal(converted.tokenizer().encode(CAPTIONS), ids)
    again = convert_clip(out, tmp_path / "again", dtype="float32")
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    half = convert_clip(out, tmp_path / "half")
    dtypes = {t.name: t.dtype for t in open_tensors(half).values()}
    assert dtypes.pop("logit_scale") == "F32" and set(dtypes.values()) == {"BF16"}
    assert load_clip(half).logit_scale == direct.logit_scale == model.logit_scale.item()


def test_full_size_names_and_shapes() -> None:
    """Our tables name exactly the arrays of a ViT-H/14, in both formats."""
    leaves = tree_shapes("clip", abstract_state(VIT_H_14))
    with torch.device("meta"):
        ours = {n: tuple(t.shape) for n, t in TorchClip(VIT_H_14).state_dict().items()}
        config = clip_config_to_json(VIT_H_14, "float32")
        port = CLIPModel(
            CLIPConfig(
                text_config=config["text_config"],
                vision_config=config["vision_config"],
                projection_dim=1024,
            )
        )
    theirs = {n: tuple(t.shape) for n, t in port.state_dict().items()}
    for naming, golden in ((OPEN_CLIP, ours), (HF, theirs)):
        known = {n: shape for n, shape in golden.items() if not naming.unused.match(n)}
        assert expected_tensors(leaves, naming) == known
    assert sum(math.prod(shape) for shape in leaves.values()) == 986_109_440


def reference_words(caption: str) -> list[int]:
    """open_clip's algorithm, written out: pieces, bytes, merges by rank."""
    import regex

    ranks = {pair: i for i, pair in enumerate(MERGES)}
    letters = byte_alphabet()
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    order = [*printable, *(b for b in range(256) if b not in printable)]
    letter_of = dict(zip(order, letters))
    names = [*letters, *(f"{v}</w>" for v in letters), *("".join(pair) for pair in MERGES)]
    pieces = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    out: list[int] = []
    for piece in regex.findall(pieces, clean(caption)):
        word = [letter_of[b] for b in piece.encode()]
        word[-1] += "</w>"
        while len(word) > 1:
            rank, at = min((ranks.get(p, 10**9), i) for i, p in enumerate(zip(word, word[1:])))
            if rank == 10**9:
                break
            word[at : at + 2] = [word[at] + word[at + 1]]
        out += [names.index(part) for part in word]
    return out


@pytest.mark.parametrize("caption", [*CAPTIONS[:4], "!!! 3 they've i'm 'll x'd\u00a0y", "…—“q”"])
def test_tokenizer_against_the_written_out_algorithm(caption: str) -> None:
    tokenizer = ClipTokenizer(MERGES)
    words = reference_words(caption)
    row = tokenizer.encode([caption])[0]
    golden = [tokenizer.vocab_size - 2, *words, tokenizer.vocab_size - 1]
    assert row.tolist() == golden + [0] * (77 - len(golden))


@pytest.mark.parametrize("caption", [CAPTIONS[0], CAPTIONS[1], "naïve café 中文 🎨 don't, 1234"])
def test_tokenizer_against_transformers(tmp_path: Path, caption: str) -> None:
    ours = ClipTokenizer(MERGES)
    ours.save(tmp_path)
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    golden = theirs(caption)["input_ids"]
    assert ours.encode([caption])[0, : len(golden)].tolist() == golden
    theirs.save_pretrained(tmp_path / "fast")
    (tmp_path / "merges.txt").unlink()
    assert "merges" in json.loads((tmp_path / "fast" / "tokenizer.json").read_text())["model"]
    same = ClipTokenizer.from_path(tmp_path / "fast", ours.vocab_size)
    assert same.vocabulary == ours.vocabulary
