"""Tiny random models of the kinds that score benchmarks, written as `transformers` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf

WORDS = ["yes", "no", "a", "an", "the", "bench", "green", "?", "is", "there", "red"]
_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
          "intermediate_size": 24}  # fmt: skip
_VISION = {**_SIZES, "image_size": 32, "patch_size": 8}
_SQUARE: dict[str, Any] = {"size": {"height": 32, "width": 32}}


def write_blip(folder: Path) -> Path:
    """BLIP for questions; its words are five special ones, then WORDS, then [DEC] and [ENC]."""
    folder.mkdir(exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    hf.BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    bos = len(vocabulary)
    text = {**_SIZES, "vocab_size": bos + 2, "bos_token_id": bos, "encoder_hidden_size": 16,
            "pad_token_id": 0, "sep_token_id": 3, "eos_token_id": 3}  # fmt: skip
    torch.manual_seed(0)
    model = hf.BlipForQuestionAnswering(hf.BlipConfig(text_config=text, vision_config=_VISION))
    with torch.no_grad():  # so that answers hang on images and on questions
        for values in model.parameters():
            if values.ndim > 1:
                values.normal_(0, 0.3)
    model.save_pretrained(folder)
    hf.BlipImageProcessorPil(**_SQUARE).save_pretrained(folder)
    return folder


def write_clip(folder: Path) -> Path:
    """CLIP with the tokens of single letters."""
    folder.mkdir(exist_ok=True)
    size = _write_letters(folder)
    text = {**_SIZES, "vocab_size": size, "max_position_embeddings": 77,
            "bos_token_id": size - 2, "eos_token_id": size - 1}  # fmt: skip
    torch.manual_seed(1)
    config = hf.CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=12)
    hf.CLIPModel(config).save_pretrained(folder)
    crop: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": 32}
    hf.CLIPImageProcessorPil(**crop).save_pretrained(folder)
    return folder


def write_mask2former(folder: Path, names: Sequence[str]) -> Path:
    """Mask2Former of these classes, sure enough of itself to find something."""
    folder.mkdir(exist_ok=True)
    swin = hf.SwinConfig(image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1],
                         num_heads=[1, 1, 1, 1], window_size=4,
                         out_features=["stage1", "stage2", "stage3", "stage4"])  # fmt: skip
    config = hf.Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32,
        encoder_feedforward_dim=16, dim_feedforward=16, encoder_layers=1, decoder_layers=2,
        num_attention_heads=2, num_queries=5, id2label=dict(enumerate(names)),
        label2id={n: i for i, n in enumerate(names)},
    )  # fmt: skip
    torch.manual_seed(6)
    model = hf.Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        model.class_predictor.weight *= 40
    model.save_pretrained(folder)
    edges = {"shortest_edge": 64, "longest_edge": 96}
    hf.Mask2FormerImageProcessorPil(size=edges, size_divisor=32).save_pretrained(folder)
    return folder


def write_depth_anything(folder: Path, **settings: Any) -> Path:
    """Depth-Anything on a DINOv2 of four layers."""
    folder.mkdir(exist_ok=True)
    dino = hf.Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=28,
        patch_size=14, out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = hf.DepthAnythingConfig(
        backbone_config=dino, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8, head_hidden_size=8, head_in_index=-1, patch_size=14, **settings,
    )  # fmt: skip
    torch.manual_seed(3)
    hf.DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    hf.DPTImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def write_owl(folder: Path) -> Path:
    """OWLv2 with the tokens of single letters."""
    folder.mkdir(exist_ok=True)
    size = _write_letters(folder)
    text = {**_SIZES, "vocab_size": size, "max_position_embeddings": 16,
            "bos_token_id": size - 2, "eos_token_id": size - 1}  # fmt: skip
    torch.manual_seed(8)
    config = hf.Owlv2Config(text_config=text, vision_config=_VISION, projection_dim=16)
    hf.Owlv2ForObjectDetection(config).save_pretrained(folder)
    hf.Owlv2ImageProcessorPil(**_SQUARE).save_pretrained(folder)
    return folder


def _write_letters(folder: Path) -> int:
    """CLIP's byte-level letters without merges; returns the vocabulary's size."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = hf.CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[])
    tokenizer.save_pretrained(folder)
    return len(words)
