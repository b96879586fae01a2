"""Models that score benchmarks, tiny and random, against what `transformers` makes of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from tiny_evaluators import WORDS, write_blip, write_clip, write_mask2former, write_owl

from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.detections import (
    Detection,
    decode_mask,
    encode_mask,
    read_detections,
)
from gotr1_jax.evaluation.queries import ModelQuery
from gotr1_jax.evaluation.torch_models import (
    COLORS,
    BlipVqa,
    ClipColor,
    ClipMatch,
    Mask2Former,
    Owl,
    clean_question,
)
from gotr1_jax.vlm_engine.base import ImageInput, make_image_input


def image(seed: int, height: int = 48, width: int = 48) -> ImageInput:
    rng = np.random.default_rng(seed)
    return make_image_input(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blip(tmp_path_factory.mktemp("blip"))


def test_blip_takes_the_first_step_yes_against_no(blip: Path) -> None:
    seen = image(0)
    questions = ["A green bench?", "Is there a bench?"]
    got = BlipVqa(str(blip)).answer([ModelQuery("yes", seen, q) for q in questions])
    model = hf.BlipForQuestionAnswering.from_pretrained(blip).eval()
    pixels = hf.BlipImageProcessorPil.from_pretrained(blip)(
        Image.fromarray(seen.pixels), return_tensors="pt"
    )["pixel_values"]
    bos = model.config.text_config.bos_token_id
    for share, words in zip(got, ("a green bench ?", "is there a bench ?")):
        # [ENC] first, [SEP] last; decoding starts at [DEC].
        ids = [bos + 1, *(5 + WORDS.index(w) for w in words.split()), 3]
        with torch.no_grad():
            hidden = model.vision_model(pixel_values=pixels)[0]
            question = model.text_encoder(
                input_ids=torch.tensor([ids]), encoder_hidden_states=hidden
            )[0]
            logits = model.text_decoder(
                input_ids=torch.tensor([[bos]]), encoder_hidden_states=question
            ).logits[0, 0]
        yes, no = (math.exp(logits[5 + WORDS.index(w)]) for w in ("yes", "no"))
        assert share == pytest.approx(yes / (yes + no), abs=1e-5)
    assert abs(got[0] - got[1]) > 0.01
    other = BlipVqa(str(blip)).answer([ModelQuery("yes", image(1), questions[0])])
    assert abs(got[0] - other[0]) > 1e-3


def test_questions_are_cleaned_as_blip_was_trained() -> None:
    assert clean_question('The "red" hat #1: (a) big; one~?') == "the red hat 1 a big one?"
    assert clean_question(" ".join(["w"] * 60)) == " ".join(["w"] * 50)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


def clip_vectors(folder: Path, images: list[Image.Image], texts: list[str]) -> tuple[Any, Any]:
    model = hf.CLIPModel.from_pretrained(folder).eval()
    pixels = hf.CLIPImageProcessorPil.from_pretrained(folder)(images, return_tensors="pt")
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        seen = [model(pixel_values=p[None], **tokenizer("x", return_tensors="pt")).image_embeds[0]
                for p in pixels["pixel_values"]]  # fmt: skip
        first = pixels["pixel_values"][:1]
        read = [model(pixel_values=first, **tokenizer(t, return_tensors="pt")).text_embeds[0]
                for t in texts]  # fmt: skip
    return torch.stack(seen), torch.stack(read)


def test_clip_gives_the_cosine(clip: Path) -> None:
    seen = image(2, 40, 64)
    texts = ["a bench", "a photo of a long green bench"]
    got = ClipMatch(str(clip)).answer([ModelQuery("match", seen, text) for text in texts])
    pictured, read = clip_vectors(clip, [Image.fromarray(seen.pixels)], texts)
    expected = torch.nn.functional.cosine_similarity(pictured, read)
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)


def test_colors_go_by_the_mean_of_three_texts_and_a_gray_ground(clip: Path) -> None:
    seen = image(3)
    mask = np.zeros((48, 48), bool)
    mask[10:30, 8:40] = np.random.default_rng(0).random((20, 32)) > 0.4
    places = [
        Detection(8, 10, 40, 30, 0.9, encode_mask(mask)),
        Detection(0.4, 0.6, 20.5, 21.5, 0.8),
    ]
    got = ClipColor(str(clip)).answer(
        [ModelQuery("color", seen, "bench", "red", p) for p in places]
    )
    gray = np.where(mask[..., None], seen.pixels, np.uint8(0x99))
    crops = [
        Image.fromarray(gray).crop((8, 10, 40, 30)),
        Image.fromarray(seen.pixels).crop((0, 1, 20, 22)),
    ]
    forms = ("a photo of a {} bench", "a photo of a {}-colored bench", "a photo of a {} object")
    pictured, read = clip_vectors(clip, crops, [f.format(c) for c in COLORS for f in forms])
    mean = read.reshape(10, 3, -1).mean(1)
    expected = (pictured @ (mean / mean.norm(dim=1, keepdim=True)).T).argmax(1)
    assert got == [COLORS[i] for i in expected]


def test_masks_survive_their_runs() -> None:
    mask = np.random.default_rng(5).random((7, 9)) > 0.5
    for each in (mask, ~mask, np.zeros((7, 9), bool), np.ones((7, 9), bool)):
        assert (decode_mask(encode_mask(each), 7, 9) == each).all()
    with pytest.raises(InputError, match="63 pixels"):
        decode_mask(encode_mask(mask), 9, 9)


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mask2former(tmp_path_factory.mktemp("mask2former"), ["bench", "keyboard", "dog"])


@pytest.mark.parametrize("size", [(48, 48), (40, 64)])
def test_mask2former_scores_class_times_mask(mask2former: Path, size: tuple[int, int]) -> None:
    seen = image(7, *size)
    names = ["bench", "computer keyboard", "dog"]
    got = Mask2Former(str(mask2former)).answer([ModelQuery("find", seen, name) for name in names])
    model = hf.Mask2FormerForUniversalSegmentation.from_pretrained(mask2former).eval()
    processor = hf.Mask2FormerImageProcessorPil.from_pretrained(mask2former)
    inputs = processor(Image.fromarray(seen.pixels), return_tensors="pt")
    with torch.no_grad():
        out = model(pixel_values=inputs["pixel_values"])
    shares = out.class_queries_logits[0].softmax(-1)[:, :3]
    masks = torch.nn.functional.interpolate(out.masks_queries_logits, size=size, mode="bilinear")[0]
    number = 0
    for label, answer in enumerate(got):
        expected = []
        for query in range(5):
            on = masks[query] > 0
            if on.any():
                score = float(shares[query, label] * masks[query].sigmoid()[on].mean())
                if score > 0.3:
                    expected.append((score, on.numpy()))
        expected.sort(key=lambda pair: -pair[0])
        found = read_detections(answer)
        assert [f.score for f in found] == pytest.approx([score for score, _ in expected], abs=1e-5)
        for f, (_, on) in zip(found, expected):
            assert (decode_mask(f.mask_runs, *size) == on).all()
            rows, columns = np.nonzero(on)
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert f[:4] == tuple(map(float, box))
        number += len(found)
    assert number


def test_a_class_that_a_detector_does_not_know(mask2former: Path) -> None:
    with pytest.raises(InputError, match="no class 'toaster'"):
        Mask2Former(str(mask2former)).answer([ModelQuery("find", image(0), "toaster")])


@pytest.fixture(scope="module")
def owl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_owl(tmp_path_factory.mktemp("owl"))


def test_owl_finds_each_name_in_an_image_padded_to_a_square(owl: Path) -> None:
    seen = image(9, 30, 60)
    got = Owl(str(owl)).answer([ModelQuery("find", seen, name) for name in ("cat", "dog")])
    model = hf.Owlv2ForObjectDetection.from_pretrained(owl).eval()
    processor = hf.Owlv2ImageProcessorPil.from_pretrained(owl)
    tokenizer = hf.AutoTokenizer.from_pretrained(owl)
    pixels = processor(Image.fromarray(seen.pixels), return_tensors="pt")["pixel_values"]
    for name, answer in zip(("cat", "dog"), got):
        words = tokenizer([f"a photo of a {name}"], padding="max_length", max_length=16,
                          return_tensors="pt")  # fmt: skip
        with torch.no_grad():
            out = model(pixel_values=pixels, **words)
        (expected,) = processor.post_process_object_detection(
            out, threshold=0.2, target_sizes=[(60, 60)]
        )
        order = torch.argsort(expected["scores"], descending=True)
        boxes = expected["boxes"][order].clamp(min=0)
        boxes = torch.minimum(boxes, torch.tensor([60.0, 30.0, 60.0, 30.0]))
        found = read_detections(answer)
        assert found and len(found) == len(boxes)
        np.testing.assert_allclose([f.score for f in found], expected["scores"][order], atol=1e-5)
        np.testing.assert_allclose([f[:4] for f in found], boxes, atol=1e-3)


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be loaded from") as error:
        ClipMatch(str(tmp_path)).answer([ModelQuery("match", image(0), "a")])
    assert "\n" not in str(error.value)
