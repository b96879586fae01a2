"""The tokenizer of the shapes world: a small byte-level BPE in the files Janus is released with.

Ids: the eight special tokens, the 256 byte symbols, the merges, then the four plan tokens. Every
word of the world (with its leading space) and every coordinate 0..999 is one token; any
other text is split into smaller pieces, down to bytes, and decodes unchanged.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from gotr1_jax.io.files import atomic_write
from gotr1_jax.plan.boxes import SCALE
from gotr1_jax.shapes.dataset import sample_example
from gotr1_jax.shapes.vocabulary import (
    COLORS,
    IMAGE_SIZE,
    NUMBER_WORDS,
    PLURALS,
    RELATIONS,
    SHAPES,
    SIZES,
)
from gotr1_jax.tokenizers.janus import GOTR1_TEMPLATE, PLAN_TOKENS, SPECIAL_STRINGS

BOS = SPECIAL_STRINGS["bos"]
SPECIAL_TOKENS: tuple[str, ...] = (*SPECIAL_STRINGS.values(), "<|User|>", "<|Assistant|>")
_CORPUS_EXAMPLES = 2000
# Never reached: merging ends when every piece of the corpus is one token.
_VOCAB_LIMIT = 4096


def train_tokenizer(
    out_dir: str | os.PathLike[str], *, image_size: int = IMAGE_SIZE, num_image_tokens: int = 64
) -> Tokenizer:
    """Train the tokenizer and write its five files to `out_dir`, created if missing.

    `image_size` (pixels) and `num_image_tokens` (per input image) affect only
    the processor's files.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCAB_LIMIT,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in PLAN_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / "tokenizer.json", tokenizer.to_str(pretty=True))
    for name, content in _settings(image_size, num_image_tokens).items():
        atomic_write(out / name, json.dumps(content, ensure_ascii=False, indent=1))
    return tokenizer


def _corpus() -> Iterator[str]:
    """Training texts, each piece of which becomes one token; plans are split at the plan tokens."""
    for lead in ("", " "):
        words = [*SIZES, *COLORS, *SHAPES, *PLURALS.values(), *NUMBER_WORDS.values()]
        for word in [*words, "a", "and", *RELATIONS]:
            yield lead + word
    for number in range(SCALE):
        yield str(number)
    rng = np.random.default_rng(0)
    for _ in range(_CORPUS_EXAMPLES):
        example = sample_example(rng, "train")
        yield GOTR1_TEMPLATE.format(caption=example.caption)
        text = example.plan
        for token in PLAN_TOKENS:
            text = text.replace(token, "\0")
        yield from filter(None, text.split("\0"))


def _settings(image_size: int, num_image_tokens: int) -> dict[str, dict[str, object]]:
    names: dict[str, object] = {f"{k}_token": SPECIAL_STRINGS[k] for k in ("bos", "eos", "pad")}
    return {
        "special_tokens_map.json": names,
        "tokenizer_config.json": {
            **names,
            "tokenizer_class": "LlamaTokenizerFast",
            "add_bos_token": True,
            "model_max_length": 16384,
            "clean_up_tokenization_spaces": False,
        },
        "processor_config.json": {
            "processor_class": "VLChatProcessor",
            "add_special_token": False,
            "ignore_id": -100,
            "image_tag": "<image_placeholder>",
            "mask_prompt": False,
            "num_image_tokens": num_image_tokens,
            "sft_format": "deepseek",
        },
        "preprocessor_config.json": {
            "image_processor_type": "VLMImageProcessor",
            "processor_class": "VLChatProcessor",
            "image_size": image_size,
            "min_size": 14,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "background_color": [127, 127, 127],
        },
    }
