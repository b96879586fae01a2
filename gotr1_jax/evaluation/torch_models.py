"""Detectors and models of images and text from `transformers`, for scoring (extra `eval`).

The only module outside `convert` that needs torch, and only inside its functions. Image
processors are those on PIL: torchvision is not needed. A model is loaded when it is first asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.asks import Detection, ModelQuery, mask_runs
from gotr1_jax.evaluation.crops import crop_object
from gotr1_jax.generate.config import fingerprint
from gotr1_jax.vlm_engine.base import ImageInput

COLORS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"
)  # fmt: skip
_COLOR_TEXTS = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}",
                "a photo of a {color} object")  # fmt: skip
# GenEval's names of classes that COCO names otherwise.
_COCO_NAMES = {"computer keyboard": "keyboard", "computer mouse": "mouse", "tv remote": "remote"}
_LEAST_SCORE = 0.3  # of a detection that is kept: GenEval's lower threshold
_LEAST_OWL_SCORE = 0.2
_MOST_FOUND = 16
_QUERY_TOKENS = 16  # of OWLv2's texts
_LONGEST_QUESTION = 35  # tokens, as BLIP was trained


def need_torch() -> None:
    """InputError where torch is not installed."""
    if find_spec("torch") is None:
        raise InputError(
            "scoring by models needs torch: pip install 'gotr1_jax[eval]', or use --scorer judge"
        )


class _Model:
    """What all models have: where they come from, their device, one image at a time."""

    images = 1
    name: str

    def __init__(self, source: str) -> None:
        """source: hub id or directory of the checkpoint."""
        self.source = source

    @cached_property
    def identity(self) -> str:
        """The model and, of a directory, its weights."""
        path = Path(self.source)
        return f"{self.name} {fingerprint(path)[:16] if path.is_dir() else self.source}"

    def answer(self, asks: Sequence[ModelQuery]) -> list[Any]:
        """Answers to questions about one image."""
        import torch

        with torch.inference_mode():
            return self._answer(asks[0].image, asks)

    def _answer(self, image: ImageInput, asks: Sequence[ModelQuery]) -> list[Any]:
        raise NotImplementedError

    @cached_property
    def _device(self) -> str:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def _load(self, kind: Any) -> Any:
        """Anything that `transformers` loads by `from_pretrained`."""
        try:
            return kind.from_pretrained(self.source)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(
                f"{self.name} cannot be loaded from {self.source} as {kind.__name__}: "
                f"{str(error).splitlines()[0]}"
            ) from error

    def _load_model(self, kind: Any) -> Any:
        return self._load(kind).to(self._device).eval()

    def _pixels(self, processor: Any, raw_images: Sequence[Image.Image]) -> Any:
        return processor(images=list(raw_images), return_tensors="pt")["pixel_values"].to(
            self._device
        )


class BlipVqa(_Model):
    """The probability of "yes": the first step of BLIP's answer, yes against no.

    T2I-CompBench's BLIPvqa_eval does so at 480 pixels; the port works at the size that its
    preprocessor_config.json says (384).
    """

    name = "BLIP-VQA"

    @cached_property
    def _parts(self) -> tuple[Any, Any, Any]:
        from transformers import AutoTokenizer, BlipForQuestionAnswering, BlipImageProcessorPil

        model = self._load_model(BlipForQuestionAnswering)
        return model, self._load(BlipImageProcessorPil), self._load(AutoTokenizer)

    @cached_property
    def _yes_no(self) -> list[int]:
        ids = self._parts[2].convert_tokens_to_ids(["yes", "no"])
        if None in ids or self._parts[2].unk_token_id in ids:
            raise InputError(f"the tokenizer of {self.source} has no token yes or no")
        return ids

    def _answer(self, raw_image: ImageInput, asks: Sequence[ModelQuery]) -> list[float]:
        model, processor, tokenizer = self._parts
        image = self._pixels(processor, [Image.fromarray(raw_image.pixels)])
        seen = model.vision_model(pixel_values=image).last_hidden_state
        texts = [clean_question(ask.text) for ask in asks]
        rows = tokenizer(texts, truncation=True, max_length=_LONGEST_QUESTION)["input_ids"]
        shares = [0.0] * len(asks)
        # Of one length at a time: the port lets padding change the answer.
        for length in sorted({len(row) for row in rows}):
            places = [i for i, row in enumerate(rows) if len(row) == length]
            for i, share in zip(places, self._first_step(seen, [rows[i] for i in places])):
                shares[i] = share
        return shares

    def _first_step(self, seen: Any, rows: Sequence[Sequence[int]]) -> list[float]:
        """Yes against no for questions (token ids) of one length about one image."""
        import torch

        model = self._parts[0]
        bos = model.config.text_config.bos_token_id
        ids = torch.tensor(rows, device=self._device)
        ids[:, 0] = bos + 1  # [ENC], as BLIP was trained; [DEC] is the id before it
        question = model.text_encoder(
            input_ids=ids, encoder_hidden_states=seen.expand(len(rows), -1, -1)
        ).last_hidden_state
        first = model.text_decoder(
            input_ids=torch.full((len(rows), 1), bos, device=self._device),
            encoder_hidden_states=question,
        ).logits[:, 0]
        return torch.softmax(first[:, self._yes_no].float(), dim=-1)[:, 0].tolist()


def clean_question(question: str) -> str:
    """A question as BLIP was trained on: lower case, some punctuation left out, 50 words."""
    text = re.sub(r'[.!"()*#:;~]', "", question.lower()).rstrip(" ")
    return " ".join(text.split(" ")[:50])


class _Clip(_Model):
    """CLIP's unit vectors."""

    name = "CLIP"

    @cached_property
    def _parts(self) -> tuple[Any, Any, Any]:
        from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

        return (
            self._load_model(CLIPModel),
            self._load(CLIPImageProcessorPil),
            self._load(AutoTokenizer),
        )

    def _encode(self, images: Sequence[Image.Image], texts: Sequence[str]) -> tuple[Any, Any]:
        """Unit vectors of images and of texts."""
        model, processor, tokenizer = self._parts
        words = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(
            self._device
        )
        out = model(pixel_values=self._pixels(processor, images), **words)
        return out.image_embeds, out.text_embeds


class ClipMatch(_Clip):
    """The cosine of an image and a text (T2I-CompBench's CLIPScore_eval, ViT-B/32)."""

    def _answer(self, image: ImageInput, asks: Sequence[ModelQuery]) -> list[float]:
        seen, read = self._encode([Image.fromarray(image.pixels)], [ask.text for ask in asks])
        return (read @ seen[0]).float().tolist()


class ClipColor(_Clip):
    """GenEval's zero-shot color of an object on a gray ground (CLIP ViT-L/14).

    A color's vector is the mean of the unit vectors of three texts; the nearest one is taken.
    """

    def _answer(self, image: ImageInput, asks: Sequence[ModelQuery]) -> list[str]:
        answers: dict[str, str] = {}
        for name in dict.fromkeys(ask.text for ask in asks):
            group = [ask for ask in asks if ask.text == name]
            crops = [crop_object(image, ask.place) for ask in group if ask.place is not None]
            texts = [t.format(color=c, name=name) for c in COLORS for t in _COLOR_TEXTS]
            seen, read = self._encode(crops, texts)
            mean = read.reshape(len(COLORS), len(_COLOR_TEXTS), -1).mean(dim=1)
            nearest = (seen @ (mean / mean.norm(dim=-1, keepdim=True)).T).argmax(dim=-1)
            answers |= {ask.key: COLORS[i] for ask, i in zip(group, nearest.tolist())}
        return [answers[ask.key] for ask in asks]


class Mask2Former(_Model):
    """Objects of COCO's classes with masks.

    A detection's score is its class's probability times the mean probability of its mask, as
    Mask2Former's own code (and mmdet's) has it; its box is that of the mask.
    """

    name = "Mask2Former"

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        from transformers import (
            Mask2FormerForUniversalSegmentation,
            Mask2FormerImageProcessorPil,
        )

        model = self._load_model(Mask2FormerForUniversalSegmentation)
        return model, self._load(Mask2FormerImageProcessorPil)

    def _answer(self, image: ImageInput, asks: Sequence[ModelQuery]) -> list[list[list[Any]]]:
        import torch

        model, processor = self._parts
        classes = [self._class(ask.text) for ask in asks]
        out = model(pixel_values=self._pixels(processor, [Image.fromarray(image.pixels)]))
        shares = out.class_queries_logits[0].float().softmax(dim=-1)[:, :-1]
        best = shares.flatten().topk(min(100, shares.numel()))
        kept = [
            (score, place // shares.shape[1], place % shares.shape[1])
            for score, place in zip(best.values.tolist(), best.indices.tolist())
            if score > _LEAST_SCORE
        ]
        masks = torch.nn.functional.interpolate(
            out.masks_queries_logits.float(), size=image.size, mode="bilinear"
        )[0]
        return [
            [list(f) for f in self._found(masks, [k[:2] for k in kept if k[2] == wanted])]
            for wanted in classes
        ]

    def _found(self, masks: Any, kept: Sequence[tuple[float, int]]) -> list[Detection]:
        found = []
        for share, query in kept:
            on = masks[query] > 0
            if not on.any():
                continue
            score = share * float(masks[query].sigmoid()[on].mean())
            rows, columns = np.nonzero(on.cpu().numpy())
            if score > _LEAST_SCORE:
                box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                found.append(Detection.of(box, score, mask_runs(on.cpu().numpy())))
        return sorted(found, key=lambda f: -f.score)[:_MOST_FOUND]

    def _class(self, name: str) -> int:
        known = {label: index for index, label in self._parts[0].config.id2label.items()}
        label = name if name in known else _COCO_NAMES.get(name, name)
        if label not in known:
            raise InputError(
                f"the detector {self.source} has no class {name!r}; use one trained on COCO"
            )
        return int(known[label])


class Owl(_Model):
    """Objects of any name (OWLv2)."""

    name = "OWLv2"

    @cached_property
    def _parts(self) -> tuple[Any, Any, Any]:
        from transformers import AutoTokenizer, Owlv2ForObjectDetection, Owlv2ImageProcessorPil

        model = self._load_model(Owlv2ForObjectDetection)
        return model, self._load(Owlv2ImageProcessorPil), self._load(AutoTokenizer)

    def _answer(self, image: ImageInput, asks: Sequence[ModelQuery]) -> list[list[list[Any]]]:
        model, processor, tokenizer = self._parts
        words = tokenizer(
            [f"a photo of a {ask.text}" for ask in asks], padding="max_length", truncation=True,
            max_length=_QUERY_TOKENS, return_tensors="pt",
        ).to(self._device)  # fmt: skip
        pixels = self._pixels(processor, [Image.fromarray(image.pixels)])
        out = model(pixel_values=pixels, **words)
        scores = out.logits[0].float().sigmoid().cpu().numpy()
        # Boxes are fractions of the image padded to a square, right and below.
        height, width = image.size
        cx, cy, w, h = (out.pred_boxes[0].float().cpu().numpy() * max(height, width)).T
        boxes = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=1)
        boxes = boxes.clip(0, [width, height, width, height])
        answers = []
        for column in scores.T:
            best = np.argsort(-column, kind="stable")[:_MOST_FOUND]
            answers.append(
                [
                    list(Detection.of(boxes[i], column[i]))
                    for i in best
                    if column[i] > _LEAST_OWL_SCORE
                ]
            )
        return answers
