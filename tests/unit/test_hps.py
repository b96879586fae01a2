"""HPS as a judge: its images, its vocabulary, its batches, and what it says of bad files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tiny_clip import MERGES, TINY, write_tiny_clip, write_vocabulary

from gotr1_jax.convert import clip as convert
from gotr1_jax.convert.clip import ClipCheckpoint, convert_clip, load_clip
from gotr1_jax.errors import InputError
from gotr1_jax.images.clip import MEAN, STD, clip_pixels
from gotr1_jax.io.digests import model_digest
from gotr1_jax.models.clip import Clip
from gotr1_jax.parallel.mesh import make_mesh
from gotr1_jax.plan import parse_plan
from gotr1_jax.rewards.base import JudgeRequest
from gotr1_jax.rewards.hps import HpsJudge
from gotr1_jax.tokenizers.clip import ClipTokenizer

CAPTIONS = ("a red cube", "the blue ball", "a red cube", "to the left of the ball", "a red cube")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def checkpoint(directory: Path) -> ClipCheckpoint:
    return load_clip(directory)


def requests(count: int = 5) -> list[JudgeRequest]:
    rng = np.random.default_rng(1)
    shapes = [(42, 42, 3), (30, 60, 3), (99, 20, 3), (64, 64, 3), (7, 5, 3)]
    images = [rng.integers(0, 256, shapes[i % 5], np.uint8) for i in range(count)]
    return [JudgeRequest(CAPTIONS[i % 5], parse_plan(""), x) for i, x in enumerate(images)]


def scores(judge: HpsJudge, asked: list[JudgeRequest]) -> np.ndarray:
    return np.array([result.scores["hps"] for result in judge.judge(asked)])


@pytest.fixture(scope="module")
def golden(checkpoint: ClipCheckpoint) -> np.ndarray:
    """Cosines row by row, straight from the model."""
    clip, tokenizer = checkpoint.module(), checkpoint.tokenizer()
    out = []
    for request in requests():
        pixels = clip_pixels(np.asarray(request.image), TINY.image_size)
        raw_image = clip.encode_images(jnp.asarray(pixels[None]))[0]
        out.append(raw_image @ clip.encode_captions(tokenizer.encode([request.caption]))[0])
    return np.array(out)


# --- images ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "height, width",
    [(224, 224), (384, 384), (64, 64), (100, 300), (301, 200), (224, 101), (1, 500), (3, 2)],
)
def test_pixels_against_the_reference_steps(height: int, width: int) -> None:
    """To tensor, antialiased bicubic, zeros around it, normalised, as HPSv2 does it in torch."""
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1).float().div(255)
    scale = 224 / float(max(height, width))
    h, w = (max(round(side * scale), 1) for side in (height, width))
    small = torch.nn.functional.interpolate(
        tensor[None], (h, w), mode="bicubic", antialias=True, align_corners=False
    )[0]
    left, top = (224 - w) // 2, (224 - h) // 2
    square = torch.nn.functional.pad(small, (left, 224 - w - left, top, 224 - h - top))
    golden = (square - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    ours = clip_pixels(image)
    assert ours.dtype == np.float32 and ours.shape == (224, 224, 3)
    np.testing.assert_allclose(ours, golden.permute(1, 2, 0).numpy(), atol=1e-4)


def test_pixels_overshoot_at_edges() -> None:
    """Neither rounded nor clipped: beside an edge, bicubic goes beyond black and white."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = 255
    values = clip_pixels(image) * STD + MEAN
    assert values.min() < -0.05 and values.max() > 1.05


def test_pixels_by_hand() -> None:
    ours = clip_pixels(np.full((2, 4, 3), 255, np.uint8), size=8)
    black = (0 - np.array(MEAN)) / np.array(STD)
    white = (1 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(ours[[0, 1, 6, 7]], np.broadcast_to(black, (4, 8, 3)), rtol=1e-5)
    np.testing.assert_allclose(ours[2:6], np.broadcast_to(white, (4, 8, 3)), rtol=1e-5)


@pytest.mark.parametrize("shape, dtype", [((4, 4), "uint8"), ((4, 4, 3), "float32")])
def test_pixels_refuse_what_is_no_image(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(ValueError, match="not an image"):
        clip_pixels(np.zeros(shape, dtype))


# --- text -------------------------------------------------------------------------------------


def test_long_captions_are_cut_and_ended() -> None:
    tokenizer = ClipTokenizer(MERGES, 6)
    start, end = tokenizer.vocab_size - 2, tokenizer.vocab_size - 1
    the, cube = (tokenizer.vocabulary[word] for word in ("the</w>", "cube</w>"))
    ids = tokenizer.encode(["the CUBE", "the the cube cube", "the the cube cube the", ""])
    assert ids.dtype == np.int32
    assert ids.tolist() == [
        [start, the, cube, end, 0, 0],
        [start, the, the, cube, cube, end],
        [start, the, the, cube, cube, end],
        [start, end, 0, 0, 0, 0],
    ]


def test_captions_cannot_spell_control_tokens() -> None:
    tokenizer = ClipTokenizer(MERGES)
    row = tokenizer.encode(["the <|endoftext|> <end_of_text> <|startoftext|> cube"])[0].tolist()
    assert row.count(tokenizer.vocab_size - 1) == row.count(tokenizer.vocab_size - 2) == 1


def test_cleaning() -> None:
    tokenizer = ClipTokenizer(MERGES)
    pairs = [
        ("  The\tRED \n cube ", "the red cube"),
        ("don’t", "don't"),
        ("“cube”", '"cube"'),
        ("red &amp;amp; blue", "red & blue"),
        ("cafe\u0301", "café"),
        ("ﬁne Ｃｕｂｅ", "fine cube"),
    ]
    for odd, plain in pairs:
        assert tokenizer.encode([odd]).tolist() == tokenizer.encode([plain]).tolist(), odd


@pytest.mark.parametrize("name", ["merges.txt", "bpe_simple_vocab_16e6.txt.gz", "tokenizer.json"])
def test_every_vocabulary_file_is_the_same(tmp_path: Path, name: str) -> None:
    """More merges than the model has ids for, as OpenAI's file holds, are left out."""
    lines = ['"bpe#version: 0.2', *(" ".join(pair) for pair in MERGES), "b e", "no pair here", ""]
    text = "\n".join(lines)
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    elif name.endswith(".json"):
        (tmp_path / name).write_text(json.dumps({"model": {"merges": [*map(list, MERGES)]}}))
    else:
        (tmp_path / name).write_text(text)
    found = ClipTokenizer.from_path(tmp_path, TINY.vocab_size)
    assert found.vocab_size == TINY.vocab_size
    assert found.vocabulary == ClipTokenizer(MERGES).vocabulary
    assert (
        found.encode(["the cube"]).tolist() == ClipTokenizer(MERGES).encode(["the cube"]).tolist()
    )


# --- the judge --------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_rows", [1, 2, 5, 16])
def test_scores_are_the_models_cosines(
    checkpoint: ClipCheckpoint, golden: np.ndarray, batch_rows: int
) -> None:
    judge, asked = HpsJudge(checkpoint, checkpoint.tokenizer(), batch_rows), requests()
    assert golden.min() < 0 < golden.max()  # both sides of the clipping are met
    np.testing.assert_allclose(scores(judge, asked), golden.clip(min=0), atol=1e-6)
    assert judge.judge([]) == []
    for result, cosine in zip(judge.judge(asked), golden):
        assert set(result.scores) == set(judge.terms) == {"hps"}
        assert result.rationale == f"cosine {cosine:.4f}" and result.detections == ()


def test_one_shape_and_each_caption_once(
    checkpoint: ClipCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[Any]] = {"images": [], "captions": [], "texts": []}
    images, captions = Clip.encode_images, Clip.encode_captions
    encode = ClipTokenizer.encode

    def note(kind: str, method: Any, value: Any, *rest: Any) -> Any:
        seen[kind].append(value if kind == "texts" else value.shape)
        return method(*rest)

    # A compiled program calls the model's method once, when it is traced.
    monkeypatch.setattr(Clip, "encode_images", lambda s, x: note("images", images, x, s, x))
    monkeypatch.setattr(
        Clip, "encode_captions", lambda s, x, d: note("captions", captions, x, s, x, d)
    )
    monkeypatch.setattr(ClipTokenizer, "encode", lambda s, t: note("texts", encode, t[0], s, t))
    judge = HpsJudge(checkpoint, checkpoint.tokenizer(), batch_rows=3)  # nobody else's number
    judge.judge(requests(5))
    assert sorted(seen["texts"]) == sorted(set(CAPTIONS))
    judge.judge(requests(1))
    HpsJudge(checkpoint, checkpoint.tokenizer(), batch_rows=3).judge(requests(4))  # the same ones
    assert seen["images"] == [(3, TINY.image_size, TINY.image_size, 3)]
    assert seen["captions"] == [(3, TINY.context_length)]


def test_pixels_that_are_not_finite_score_nan(checkpoint: ClipCheckpoint) -> None:
    judge, asked = HpsJudge(checkpoint, checkpoint.tokenizer(), batch_rows=4), requests()
    good = scores(judge, asked)
    for bad in (np.nan, np.inf):
        image = asked[1].image.astype(np.float32)
        image[3, 4, 1] = bad
        with_bad = [asked[0], JudgeRequest(asked[1].caption, asked[1].plan, image), *asked[2:]]
        result = judge.judge(with_bad)
        assert np.isnan(result[1].scores["hps"]) and "not finite" in result[1].rationale
        others = [r.scores["hps"] for i, r in enumerate(result) if i != 1]
        np.testing.assert_array_equal(others, np.delete(good, 1))
    floats = [JudgeRequest(r.caption, r.plan, r.image + np.float32(0.3)) for r in asked]
    np.testing.assert_array_equal(scores(judge, floats), good)


def test_half_parameters_compute_in_float32(
    directory: Path, checkpoint: ClipCheckpoint, golden: np.ndarray
) -> None:
    """The same as a float32 model whose parameters were rounded."""
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), checkpoint.state)
    wide = ClipCheckpoint(checkpoint.config, rounded, checkpoint.dtype, checkpoint.source)
    judge = HpsJudge.from_path(directory, batch_rows=4)
    assert judge.identity == f"hps {directory} weights={model_digest(directory, None)}"
    half = scores(judge, requests())
    np.testing.assert_allclose(
        half, scores(HpsJudge(wide, checkpoint.tokenizer(), 4), requests()), atol=1e-6
    )
    assert 1e-5 < np.abs(half - golden.clip(min=0)).max() < 0.02


def test_weights_that_overflow_score_nan(checkpoint: ClipCheckpoint) -> None:
    broken = jax.tree.map(lambda x: x * np.nan, checkpoint.state)
    bad = ClipCheckpoint(checkpoint.config, broken, checkpoint.dtype, checkpoint.source)
    judge = HpsJudge(bad, checkpoint.tokenizer(), batch_rows=4)
    assert np.isnan(scores(judge, requests(3))).all()


@pytest.mark.parametrize("axes", [(8, 1, 1), (2, 2, 2), (1, 4, 1)])
def test_a_mesh_gives_the_same_scores(directory: Path, axes: tuple[int, int, int]) -> None:
    single = HpsJudge.from_path(directory, dtype=jnp.float32, batch_rows=4)
    mesh = make_mesh(*axes, devices=jax.devices()[: int(np.prod(axes))])
    split = HpsJudge.from_path(directory, dtype=jnp.float32, batch_rows=3, mesh=mesh)
    np.testing.assert_allclose(scores(split, requests()), scores(single, requests()), atol=1e-6)


def test_parameters_are_split_over_the_mesh(directory: Path) -> None:
    mesh = make_mesh(1, 4, 2)
    shardings = convert_shardings(mesh)
    state = load_clip(directory, shardings=shardings).state
    kernel = state["vision"]["blocks"]["q"]["kernel"][...]
    assert kernel.addressable_shards[0].data.shape == (3, 32 // 4, 32 // 2)
    whole = load_clip(directory).state
    jax.tree.map(np.testing.assert_array_equal, state, whole)


def convert_shardings(mesh: Any) -> Any:
    from gotr1_jax.parallel.sharding import state_shardings

    return state_shardings(convert.abstract_state(TINY), mesh)


# --- files that are wrong ---------------------------------------------------------------------


def save_pt(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def broken_source(kind: str, tmp_path: Path, directory: Path) -> Path:
    """What a user could give by mistake."""
    target = tmp_path / "HPS_v2.1_compressed.pt"
    write_vocabulary(tmp_path)
    if kind == "absent":
        return target
    if kind == "a page":
        target.write_text("<html>not found</html>")
    elif kind == "empty":
        target.touch()
    elif kind == "no section":
        save_pt(target, {"visual.proj": torch.zeros(2, 2)})
    elif kind == "section of numbers":
        save_pt(target, {"state_dict": {"visual.proj": 3}})
    elif kind == "another model":
        save_pt(target, {"state_dict": {"encoder.weight": torch.zeros(2, 2)}})
    elif kind == "truncated":
        save_pt(target, {"state_dict": {"visual.proj": torch.zeros(1000, 2)}})
        data = target.read_bytes()
        target.write_bytes(data[: len(data) // 2])
    elif kind == "empty directory":
        (tmp_path / "none").mkdir()
        return tmp_path / "none"
    else:
        copy = tmp_path / "copy"
        copy.mkdir()
        for file in directory.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        config = json.loads((copy / "config.json").read_text())
        if kind == "other activation":
            config["vision_config"]["hidden_act"] = "relu"
        elif kind == "other type":
            config["model_type"] = "siglip"
        elif kind == "other width":
            config["text_config"]["intermediate_size"] = 41
        elif kind == "size of text":
            config["vision_config"]["patch_size"] = "14"
        elif kind == "heads":
            config["vision_config"]["num_attention_heads"] = 5
        elif kind == "other end":
            config["text_config"]["eos_token_id"] = 7
        (copy / "config.json").write_text(json.dumps(config))
        return copy
    return target


@pytest.mark.parametrize(
    "kind, says",
    [
        ("absent", "there is no such file; give HPS_v2.1_compressed.pt"),
        ("a page", "truncated or corrupt"),
        ("empty", "truncated or corrupt"),
        ("no section", "it holds no state_dict"),
        ("section of numbers", "no state dictionary"),
        ("another model", r"do not fit HPS v2.1, a CLIP ViT-H/14: 1 unknown: encoder.weight"),
        ("truncated", "truncated or corrupt"),
        ("empty directory", "it holds no config.json"),
        ("other activation", "vision_config.hidden_act 'relu' is not gelu or quick_gelu"),
        ("other type", "'siglip'"),
        ("other width", "do not fit its config.json: 6 misshapen"),
        ("size of text", "vision_config.patch_size is '14'"),
        ("heads", "width 32 is not a multiple of 5 heads"),
        ("other end", "eos_token_id 7"),
    ],
)
def test_wrong_weights(kind: str, says: str, tmp_path: Path, directory: Path) -> None:
    source = broken_source(kind, tmp_path, directory)
    for call in (load_clip, lambda s: convert_clip(s, tmp_path / "out")):
        with pytest.raises(InputError, match=says) as caught:
            call(source)
        assert "\n" not in str(caught.value) and str(source) in str(caught.value)
    assert not (tmp_path / "out").exists()


def broken_vocabulary(kind: str, tmp_path: Path) -> Path:
    good = write_vocabulary(tmp_path)
    lines = good.read_text().splitlines()
    good.unlink()
    packed = gzip.compress("\n".join(lines).encode())
    if kind == "too short":
        good.write_text("\n".join(lines[:-3]))
    elif kind == "an image":
        good.write_bytes(b"\x89PNG\xff\xfe")
    elif kind == "no pairs":
        good.write_text("\n".join(["words are here"] * 99))
    elif kind == "not built up":
        good.write_text("\n".join([*lines[:2], "zz yy", *lines[2:]]))
    elif kind == "twice":
        good.write_text("\n".join([lines[1], *lines[1:]]))
    elif kind == "truncated":
        (tmp_path / "bpe_simple_vocab_16e6.txt.gz").write_bytes(packed[:-30])
    elif kind == "json":
        (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    return tmp_path


@pytest.mark.parametrize(
    "kind, says",
    [
        ("absent", "no CLIP vocabulary in .*merges.txt.*bpe_simple_vocab_16e6.txt.gz"),
        ("too short", "holds 29 merges, but a vocabulary of 546 has 32"),
        ("an image", "not UTF-8"),
        ("no pairs", "'words are here' is not a merge of two"),
        ("not built up", "not a vocabulary of CLIP"),
        ("twice", "a token occurs twice"),
        ("truncated", "truncated or not a gzip"),
        ("json", "not a tokenizer with merges"),
    ],
)
def test_wrong_vocabulary(kind: str, says: str, tmp_path: Path, directory: Path) -> None:
    place = broken_vocabulary(kind, tmp_path)
    with pytest.raises(InputError, match=says) as caught:
        HpsJudge.from_path(directory, place)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=says):
        convert_clip(directory, tmp_path / "out", place)


def test_conversion_spares_what_is_something_else(tmp_path: Path, directory: Path) -> None:
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        convert_clip(directory, tmp_path)
    assert (tmp_path / "letters.txt").read_text() == "mine"
