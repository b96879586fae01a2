"""PickScore and CLIPScore against `transformers.CLIPModel`, float32, tiny, odd and random."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_clip import TINY, write_tiny_clip, write_vocabulary
from torch_clip import shake, torch_pixels, unit
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from gotr1_jax.config import from_dict
from gotr1_jax.convert.clip import (
    clip_config_to_json,
    convert_clip,
    load_clip,
    parse_clip_config,
)
from gotr1_jax.errors import InputError
from gotr1_jax.images.clip import crop_pixels
from gotr1_jax.models.config import ClipConfig, ClipTowerConfig
from gotr1_jax.plan import parse_plan
from gotr1_jax.rewards import clip
from gotr1_jax.rewards.base import JudgeRequest, term_meanings
from gotr1_jax.rewards.clip import ClipJudge
from gotr1_jax.rewards.clipscore import ClipScoreJudge
from gotr1_jax.rewards.factory import make_judge
from gotr1_jax.rewards.hps import HpsJudge
from gotr1_jax.rewards.judge_config import JudgeConfig
from gotr1_jax.rewards.pickscore import PickScoreJudge
from gotr1_jax.rewards.terms import TermConfig

CAPTIONS = ("a red cube", "the blue ball", "a red cube", "to the left " * 20, "")

ODD = ClipConfig(
    vision=ClipTowerConfig(21, 29, 2, 3, 1e-5, "quick_gelu"),
    text=ClipTowerConfig(15, 31, 3, 5, 1e-4, "quick_gelu"),
    image_size=35,
    patch_size=7,
    vocab_size=TINY.vocab_size,
    context_length=19,
    embedding_size=13,
)
MIXED = dataclasses.replace(ODD, vision=dataclasses.replace(ODD.vision, activation="gelu"))


def save_port(folder: Path, sizes: ClipConfig, end: int, pickled: bool) -> CLIPModel:
    """A random CLIPModel in `folder`, as transformers writes it; returns it."""
    config = clip_config_to_json(sizes, "float32")
    config["text_config"]["eos_token_id"] = end
    port = shake(CLIPModel(CLIPConfig(**config)), seed=3)
    with torch.no_grad():
        port.logit_scale.fill_(math.log(97.3))
    port.save_pretrained(folder)
    if pickled:
        (folder / "model.safetensors").unlink()
        torch.save(port.state_dict(), folder / "pytorch_model.bin")
    write_vocabulary(folder)
    return port


def requests() -> list[JudgeRequest]:
    rng = np.random.default_rng(1)
    shapes = [(42, 42, 3), (30, 61, 3), (99, 20, 3), (64, 64, 3), (7, 5, 3)]
    images = [rng.integers(0, 256, shape, np.uint8) for shape in shapes]
    return [JudgeRequest(c, parse_plan(""), image) for c, image in zip(CAPTIONS, images)]


def cosines(port: CLIPModel, judge: ClipJudge, sizes: ClipConfig, prefix: str) -> np.ndarray:
    """Of each request, from the port, its own preprocessing and ids padded as it pads them."""
    side = sizes.image_size
    processor = CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    out = []
    for request in requests():
        pixels = processor(request.image, return_tensors="pt")["pixel_values"]
        (ids,) = judge._tokenizer.encode([prefix + request.caption])
        end = int(ids.argmax())
        ids[end:] = sizes.vocab_size - 1
        with torch.no_grad():
            image = unit(port.get_image_features(pixels).pooler_output)
            text = unit(port.get_text_features(torch.from_numpy(ids[None])).pooler_output)
        out.append(float((image * text).sum()))
    return np.array(out)


@pytest.mark.parametrize(
    "sizes, end, pickled",
    [(ODD, 2, True), (MIXED, ODD.vocab_size - 1, False)],
    ids=["quick gelu, pickle, legacy end", "one of each"],
)
def test_scores_are_those_of_transformers(
    sizes: ClipConfig, end: int, pickled: bool, tmp_path: Path
) -> None:
    port = save_port(tmp_path, sizes, end, pickled)
    checkpoint = load_clip(tmp_path)
    assert checkpoint.config == sizes
    assert checkpoint.logit_scale == pytest.approx(math.log(97.3), abs=1e-6)
    asked, tokenizer = requests(), checkpoint.tokenizer()
    pick = PickScoreJudge(checkpoint, tokenizer, 2)
    golden = 97.3 * cosines(port, pick, sizes, "")
    ours = [result.scores["pickscore"] for result in pick.judge(asked)]
    np.testing.assert_allclose(ours, golden, atol=1e-3)  # 1e-5 of a cosine
    assert np.ptp(golden) > 10
    fit = ClipScoreJudge(checkpoint, tokenizer, 2, terms=("fit",))
    golden = 2.5 * np.maximum(cosines(port, fit, sizes, "A photo depicts "), 0)
    ours = [result.scores["fit"] for result in fit.judge(asked)]
    np.testing.assert_allclose(ours, golden, atol=1e-5)
    assert fit.terms == ("fit",) and set(fit.meanings) == {"fit"}


def test_a_cosine_by_hand(tmp_path: Path) -> None:
    save_port(tmp_path, ODD, 2, False)
    checkpoint = load_clip(tmp_path)
    pick, fit, hps = (
        judge(checkpoint, checkpoint.tokenizer())
        for judge in (PickScoreJudge, ClipScoreJudge, HpsJudge)
    )
    assert pick.score(-0.1) == pytest.approx(-9.73) and pick.score(0.2) == pytest.approx(19.46)
    assert (fit.score(-0.1), fit.score(0.3)) == (0, 0.75)
    assert (hps.score(-0.1), hps.score(0.3)) == (0, 0.3)


def test_whole_logits(tmp_path: Path) -> None:
    """The port's own logits_per_image, with its own scale."""
    port = save_port(tmp_path, ODD, 2, False)
    checkpoint = load_clip(tmp_path)
    judge = PickScoreJudge(checkpoint, checkpoint.tokenizer(), 2)
    image = requests()[1].image
    ids = checkpoint.tokenizer().encode(["a red cube"])
    pixels = torch_pixels(crop_pixels(image, 35)[None])
    with torch.no_grad():
        golden = port(input_ids=torch.from_numpy(ids), pixel_values=pixels).logits_per_image
    (result,) = judge.judge([JudgeRequest("a red cube", parse_plan(""), image)])
    assert result.scores["pickscore"] == pytest.approx(golden.item(), abs=1e-3)


@pytest.mark.parametrize(
    "height, width",
    [
        (224, 224),
        (384, 384),
        (64, 64),
        (100, 300),
        (301, 200),
        (225, 224),
        (1, 50),
        (3, 2),
        (97, 1013),
    ],
)
def test_pixels_of_the_middle(height: int, width: int) -> None:
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    golden = CLIPImageProcessor()(image, return_tensors="np", input_data_format="channels_last")
    ours = crop_pixels(image)
    np.testing.assert_allclose(ours, golden["pixel_values"][0].transpose(1, 2, 0), atol=1e-5)


def test_a_long_thin_image_does_not_become_a_huge_one() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 100_000, 3), dtype=np.uint8)
    middle = image[:, 50_000 - 32 : 50_000 + 32]
    np.testing.assert_array_equal(crop_pixels(image), crop_pixels(middle))


def test_pixels_of_the_middle_refuse_what_is_no_image() -> None:
    with pytest.raises(ValueError, match="not an image"):
        crop_pixels(np.zeros((4, 4), np.uint8))


def test_a_converted_checkpoint_scores_the_same(tmp_path: Path) -> None:
    save_port(tmp_path / "port", ODD, 2, True)
    out = convert_clip(tmp_path / "port", tmp_path / "out", dtype="float32")
    before, after = (
        PickScoreJudge.from_path(path, dtype=np.float32, batch_rows=2).judge(requests())
        for path in (tmp_path / "port", out)
    )
    assert [r.scores for r in before] == [r.scores for r in after]
    config = json.loads((out / "config.json").read_text())
    assert config["text_config"]["hidden_act"] == "quick_gelu"


@pytest.mark.parametrize("value", [None, float("nan"), 40.0])
def test_a_logit_scale_that_is_none(value: Any, tmp_path: Path) -> None:
    folder = write_tiny_clip(tmp_path)
    if value is not None:
        from safetensors.numpy import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        tensors["logit_scale"] = np.array(value, np.float32)
        save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match="logit_scale") as error:
        PickScoreJudge.from_path(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    if value is None:  # the other two do without
        assert HpsJudge.from_path(folder).terms == ("hps",)
        assert ClipScoreJudge.from_path(folder).terms == ("clipscore",)


def test_the_config_of_openais_large_model() -> None:
    """As the first versions of transformers wrote it: every default, and each section twice."""
    notes = {
        "_name_or_path": "", "add_cross_attention": False, "attention_dropout": 0.0,
        "bad_words_ids": None, "bos_token_id": 0, "chunk_size_feed_forward": 0, "dropout": 0.0,
        "encoder_no_repeat_ngram_size": 0, "eos_token_id": 2, "hidden_act": "quick_gelu",
        "id2label": {"0": "LABEL_0"}, "initializer_factor": 1.0, "is_encoder_decoder": False,
        "layer_norm_eps": 1e-05, "max_length": 20, "pad_token_id": 1, "pruned_heads": {},
        "sep_token_id": None, "tf_legacy_loss": False, "tie_word_embeddings": True,
        "torch_dtype": None, "torchscript": False, "typical_p": 1.0, "use_bfloat16": False,
    }  # fmt: skip
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
            "num_hidden_layers": 12, "projection_dim": 768}  # fmt: skip
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
              "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768}  # fmt: skip
    tokens = {"vocab_size": 49408, "max_position_embeddings": 77, "model_type": "clip_text_model"}
    config: dict[str, Any] = {
        "_name_or_path": "clip-vit-large-patch14/", "architectures": ["CLIPModel"],
        "initializer_factor": 1.0, "logit_scale_init_value": 2.6592, "model_type": "clip",
        "projection_dim": 768, "torch_dtype": "float32", "transformers_version": None,
        "text_config": {**notes, **text, **tokens}, "text_config_dict": text,
        "vision_config": {**notes, **vision, "image_size": 224, "num_channels": 3},
        "vision_config_dict": vision,
    }  # fmt: skip
    parsed = parse_clip_config(config, "config.json")
    assert parsed == ClipConfig(
        vision=ClipTowerConfig(1024, 4096, 24, 16, 1e-5, "quick_gelu"),
        text=ClipTowerConfig(768, 3072, 12, 12, 1e-5, "quick_gelu"),
        embedding_size=768,
    )
    # PickScore_v1 has exact GELU and ViT-H/14's sizes, like HPS.
    for part in ("text", "vision"):
        for section in (f"{part}_config", f"{part}_config_dict"):
            config[section]["hidden_act"] = "gelu"
    half = parse_clip_config(config, "config.json")
    assert half.vision.activation == half.text.activation == "gelu"


def test_terms_of_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """reward.terms.NAME.pickscore and clipscore: named by the user, scaled and clipped."""
    save_port(tmp_path, ODD, 2, False)
    source = {"checkpoint": str(tmp_path), "batch_rows": 2}
    terms = {
        "liked": from_dict(TermConfig, {"pickscore": source, "scale": 0.04, "clip": [0, 1]}),
        "loved": from_dict(TermConfig, {"pickscore": source}),
        "fits": from_dict(TermConfig, {"clipscore": source}),
    }
    loads: list[Path] = []
    load = clip.load_clip
    monkeypatch.setattr(clip, "load_clip", lambda *args: loads.append(args[0]) or load(*args))
    judge = make_judge(JudgeConfig("none"), tmp_path / "cache", terms=terms)
    assert judge.terms == ("liked", "loved", "fits") and len(loads) == 2
    assert not (tmp_path / "cache").exists()
    assert all(term_meanings(judge).values())
    results = judge.judge(requests())
    alone = make_judge(from_dict(JudgeConfig, {"kind": "pickscore", "pickscore": source}))
    assert alone.terms == ("pickscore",)
    scores = [r.scores["liked"] for r in results]
    assert scores == [r.scores["pickscore"] for r in alone.judge(requests())]
    assert scores == [r.scores["loved"] for r in results]
    values = terms["liked"].value(np.array(scores))
    np.testing.assert_allclose(values, np.clip(0.04 * np.array(scores), 0, 1))
    # The mistake that a wrong folder is: an OpenAI's CLIP is no HPS.
    with pytest.raises(InputError, match="is no hps: vision_config.hidden_act is 'quick_gelu'"):
        make_judge(from_dict(JudgeConfig, {"kind": "hps", "hps": source}))
    with pytest.raises(InputError, match="nowhere"):
        settings = {"kind": "clipscore", "clipscore": {"checkpoint": "nowhere"}}
        make_judge(from_dict(JudgeConfig, settings))
