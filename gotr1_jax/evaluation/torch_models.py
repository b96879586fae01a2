"""The models that benchmarks are scored with, from `transformers` (extra `eval`).

Torch is imported inside functions only. Image processors use PIL, not torchvision. A model is
loaded at its first query.
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

from gotr1_jax.convert.folders import describe_weights
from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.detections import Detection, crop_object, encode_mask
from gotr1_jax.evaluation.queries import ModelQuery
from gotr1_jax.generate.config import fingerprint
from gotr1_jax.vlm_engine.base import ImageInput

COLORS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"
)  # fmt: skip
_COLOR_TEXTS = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}",
                "a photo of a {color} object")  # fmt: skip
# GenEval's class names that differ from COCO's.
_COCO_NAMES = {"computer keyboard": "keyboard", "computer mouse": "mouse", "tv remote": "remote"}
_MIN_SCORE = 0.3  # GenEval's lower threshold
_MIN_OWL_SCORE = 0.2
_MAX_DETECTIONS = 16
_QUERY_TOKENS = 16  # of OWLv2's texts
_MAX_QUESTION_TOKENS = 35  # as BLIP was trained


def check_torch() -> None:
    """InputError where torch is not installed."""
    if find_spec("torch") is None:
        raise InputError(
            "scoring by models needs torch: pip install 'gotr1_jax[eval]', or use --scorer judge"
        )


class _TorchModel:
    """A model of `transformers`, with its image processor and tokenizer; one image at a time."""

    images_per_call = 1
    name: str
    # Names in `transformers`: the model's class, that of its image processor, and any tokenizer.
    classes: tuple[str, ...]

    def __init__(self, source: str) -> None:
        """source: hub id or directory of the checkpoint."""
        self.source = source

    @cached_property
    def identity(self) -> str:
        """The model and, of a directory, its weights."""
        path = Path(self.source)
        return f"{self.name} {fingerprint(path)[:16] if path.is_dir() else self.source}"

    def answer(self, queries: Sequence[ModelQuery]) -> list[Any]:
        """Answers to queries about one image."""
        import torch

        with torch.inference_mode():
            return self._answer(queries[0].image, queries)

    def _answer(self, image: ImageInput, queries: Sequence[ModelQuery]) -> list[Any]:
        raise NotImplementedError

    @cached_property
    def _device(self) -> str:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def _parts(self) -> list[Any]:
        """Instances of `classes`, the model in evaluation mode on the device."""
        import transformers

        model, *rest = [self._load(getattr(transformers, name)) for name in self.classes]
        return [model.to(self._device).eval(), *rest]

    def _load(self, kind: Any) -> Any:
        path = Path(self.source)
        complete = any(path.glob("*model*.safetensors*")) or any(path.glob("*model*.bin*"))
        if path.is_dir() and (what := describe_weights(path, complete)):
            raise InputError(f"{self.name} cannot be loaded from {self.source}: it {what}")
        is_model = hasattr(kind, "base_model_prefix")
        try:
            if not is_model:
                return kind.from_pretrained(self.source)
            model, info = kind.from_pretrained(self.source, output_loading_info=True)
        except Exception as error:  # each of the formats has errors of its own
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"{self.name} cannot be loaded from {self.source} as {kind.__name__}: {reason}"
            ) from error
        # The library draws at random what a file lacks.
        for fault in ("missing_keys", "mismatched_keys"):
            if names := sorted(map(str, info.get(fault) or ())):
                raise InputError(
                    f"{self.name} cannot be loaded from {self.source} as {kind.__name__}: "
                    f"{len(names)} {fault.replace('_keys', '')} tensors: {', '.join(names[:4])}"
                )
        return model

    def _pixels(self, images: Sequence[Image.Image] | ImageInput) -> Any:
        """The model's input `pixel_values` of some images, or of one."""
        if isinstance(images, ImageInput):
            images = [Image.fromarray(images.pixels)]
        return self._parts[1](images=list(images), return_tensors="pt")["pixel_values"].to(
            self._device
        )


class BlipVqa(_TorchModel):
    """The probability of "yes": the first step of BLIP's answer, yes against no.

    T2I-CompBench's BLIPvqa_eval reads images at 480 pixels, the port at the size in its
    preprocessor_config.json (384).
    """

    name = "BLIP-VQA"
    classes = ("BlipForQuestionAnswering", "BlipImageProcessorPil", "AutoTokenizer")

    @cached_property
    def _yes_no(self) -> list[int]:
        ids = self._parts[2].convert_tokens_to_ids(["yes", "no"])
        if None in ids or self._parts[2].unk_token_id in ids:
            raise InputError(f"the tokenizer of {self.source} has no token yes or no")
        return ids

    def _answer(self, image: ImageInput, queries: Sequence[ModelQuery]) -> list[float]:
        model, _, tokenizer = self._parts
        features = model.vision_model(pixel_values=self._pixels(image)).last_hidden_state
        texts = [clean_question(query.text) for query in queries]
        rows = tokenizer(texts, truncation=True, max_length=_MAX_QUESTION_TOKENS)["input_ids"]
        yes = [0.0] * len(queries)
        # One length at a time: in the port, padding changes the answer.
        for length in sorted({len(row) for row in rows}):
            indices = [i for i, row in enumerate(rows) if len(row) == length]
            for i, value in zip(indices, self._first_step(features, [rows[i] for i in indices])):
                yes[i] = value
        return yes

    def _first_step(self, features: Any, rows: Sequence[Sequence[int]]) -> list[float]:
        """Probabilities of yes against no, for questions (token ids) of one length."""
        import torch

        model = self._parts[0]
        bos = model.config.text_config.bos_token_id
        ids = torch.tensor(rows, device=self._device)
        ids[:, 0] = bos + 1  # [ENC], as BLIP was trained; [DEC] is the id before it
        question = model.text_encoder(
            input_ids=ids, encoder_hidden_states=features.expand(len(rows), -1, -1)
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


class _Clip(_TorchModel):
    """CLIP's unit vectors."""

    name = "CLIP"
    classes = ("CLIPModel", "CLIPImageProcessorPil", "AutoTokenizer")

    def _encode(
        self, images: Sequence[Image.Image] | ImageInput, texts: Sequence[str]
    ) -> tuple[Any, Any]:
        """Unit vectors of images and of texts."""
        model, _, tokenizer = self._parts
        tokens = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        out = model(pixel_values=self._pixels(images), **tokens.to(self._device))
        return out.image_embeds, out.text_embeds


class ClipMatch(_Clip):
    """The cosine of an image and a text (T2I-CompBench's CLIPScore_eval, ViT-B/32)."""

    def _answer(self, image: ImageInput, queries: Sequence[ModelQuery]) -> list[float]:
        vectors, text_vectors = self._encode(image, [query.text for query in queries])
        return (text_vectors @ vectors[0]).float().tolist()


class ClipColor(_Clip):
    """GenEval's zero-shot color of an object on a gray background (CLIP ViT-L/14).

    A color's vector is the mean of the unit vectors of three texts; the nearest one is taken.
    """

    def _answer(self, image: ImageInput, queries: Sequence[ModelQuery]) -> list[str]:
        answers: dict[str, str] = {}
        for name in dict.fromkeys(query.text for query in queries):
            group = [query for query in queries if query.text == name]
            crops = [crop_object(image, query.target) for query in group if query.target]
            texts = [t.format(color=c, name=name) for c in COLORS for t in _COLOR_TEXTS]
            vectors, text_vectors = self._encode(crops, texts)
            mean = text_vectors.reshape(len(COLORS), len(_COLOR_TEXTS), -1).mean(dim=1)
            nearest = (vectors @ (mean / mean.norm(dim=-1, keepdim=True)).T).argmax(dim=-1)
            answers |= {query.key: COLORS[i] for query, i in zip(group, nearest.tolist())}
        return [answers[query.key] for query in queries]


class Mask2Former(_TorchModel):
    """Objects of COCO's classes with masks.

    A detection's score is its class's probability times the mean probability of its mask, as
    in Mask2Former's own code and mmdet's; its box is that of the mask.
    """

    name = "Mask2Former"
    classes = ("Mask2FormerForUniversalSegmentation", "Mask2FormerImageProcessorPil")

    def _answer(self, image: ImageInput, queries: Sequence[ModelQuery]) -> list[list[list[Any]]]:
        import torch

        class_ids = [self._class_id(query.text) for query in queries]
        out = self._parts[0](pixel_values=self._pixels(image))
        probs = out.class_queries_logits[0].float().softmax(dim=-1)[:, :-1]
        best = probs.flatten().topk(min(100, probs.numel()))
        kept = [
            (prob, *divmod(index, probs.shape[1]))
            for prob, index in zip(best.values.tolist(), best.indices.tolist())
            if prob > _MIN_SCORE
        ]
        masks = torch.nn.functional.interpolate(
            out.masks_queries_logits.float(), size=image.size, mode="bilinear"
        )[0]
        return [
            [list(d) for d in self._detections(masks, [k[:2] for k in kept if k[2] == class_id])]
            for class_id in class_ids
        ]

    def _detections(self, masks: Any, kept: Sequence[tuple[float, int]]) -> list[Detection]:
        """kept: class probability and mask index of each candidate."""
        detections = []
        for prob, index in kept:
            on = masks[index] > 0
            if not on.any():
                continue
            score = prob * float(masks[index].sigmoid()[on].mean())
            rows, columns = np.nonzero(on.cpu().numpy())
            if score > _MIN_SCORE:
                box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                detections.append(Detection.from_box(box, score, encode_mask(on.cpu().numpy())))
        return sorted(detections, key=lambda d: -d.score)[:_MAX_DETECTIONS]

    def _class_id(self, name: str) -> int:
        known = {label: index for index, label in self._parts[0].config.id2label.items()}
        label = name if name in known else _COCO_NAMES.get(name, name)
        if label not in known:
            raise InputError(
                f"the detector {self.source} has no class {name!r}; use one trained on COCO"
            )
        return int(known[label])


class Owl(_TorchModel):
    """Objects of any name (OWLv2)."""

    name = "OWLv2"
    classes = ("Owlv2ForObjectDetection", "Owlv2ImageProcessorPil", "AutoTokenizer")

    def _answer(self, image: ImageInput, queries: Sequence[ModelQuery]) -> list[list[list[Any]]]:
        model, _, tokenizer = self._parts
        tokens = tokenizer(
            [f"a photo of a {query.text}" for query in queries], padding="max_length",
            truncation=True, max_length=_QUERY_TOKENS, return_tensors="pt",
        )  # fmt: skip
        out = model(pixel_values=self._pixels(image), **tokens.to(self._device))
        scores = out.logits[0].float().sigmoid().cpu().numpy()
        # Boxes are fractions of the image padded to a square, right and below.
        height, width = image.size
        cx, cy, w, h = (out.pred_boxes[0].float().cpu().numpy() * max(height, width)).T
        boxes = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=1)
        boxes = boxes.clip(0, [width, height, width, height])
        answers = []
        for column in scores.T:
            best = np.argsort(-column, kind="stable")[:_MAX_DETECTIONS]
            kept = [i for i in best if column[i] > _MIN_OWL_SCORE]
            answers.append([list(Detection.from_box(boxes[i], column[i])) for i in kept])
        return answers


class DepthAnything(_TorchModel):
    """Relative depth, 0 to 1 over an image, larger is nearer (Depth-Anything V1 and V2)."""

    name = "Depth-Anything"
    classes = ("DepthAnythingForDepthEstimation", "DPTImageProcessorPil")

    def _answer(self, image: ImageInput, queries: Sequence[ModelQuery]) -> list[float]:
        import torch

        model = self._parts[0]
        if getattr(model.config, "depth_estimation_type", "relative") != "relative":
            raise InputError(
                f"{self.source} gives depth in metres, in which near is small; use a relative "
                "model, such as depth-anything/Depth-Anything-V2-Small-hf"
            )
        depth = model(pixel_values=self._pixels(image)).predicted_depth[None].float()
        depth = torch.nn.functional.interpolate(
            depth, size=image.size, mode="bilinear", align_corners=True
        )[0, 0]
        low, high = depth.min(), depth.max()
        map_HW = ((depth - low) / (high - low).clamp(min=1e-9)).cpu().numpy()
        return [nearer(map_HW, query.target, query.other) for query in queries]


def nearer(map_HW: np.ndarray, a: Detection | None, b: Detection | None) -> float:
    """Mean depth in box `a` less that in `b`; 0 where a box holds no pixel of the map."""
    means = []
    for box in (a, b):
        assert box is not None
        x1, y1, x2, y2 = (max(0, int(side)) for side in box[:4])
        part = map_HW[y1:y2, x1:x2]
        if not part.size:
            return 0.0
        means.append(float(part.mean()))
    return means[0] - means[1]
