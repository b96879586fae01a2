"""A small random Qwen2.5-VL that was taught one thing: every answer it writes is one phrase.

Its images, captions and plans still move the distributions of its scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
from tiny_clip import write_tiny_clip
from tiny_qwen import TINY_QWEN, tiny_qwen_state, write_qwen_files
from tokenizers import AddedToken, Tokenizer

from gotr1_jax.convert.qwen_vl import save_qwen

FOUND = "[20, 20, 50, 55]"
"""Where everything is, in pixels of a processed image."""

_LOUD = 50.0  # an embedding so large that what the layers add to it does not count


def write_taught_qwen(directory: Path, phrase: str) -> Path:
    """A checkpoint in float32 whose greedy answers are `phrase`; returns `directory`."""
    files = write_qwen_files(directory.with_name(directory.name + "_files"))
    path = str(files / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.add_tokens([AddedToken(phrase, special=False)])
    tokenizer.save(path)
    state = tiny_qwen_state()
    table, head = state["text"]["embed"]["table"], state["text"]["lm_head"]["kernel"]
    # A chat ends with a line end, behind which the assistant speaks.
    words = [tokenizer.token_to_id(word) for word in ("Ċ", phrase, "<|im_end|>")]
    for before, after in zip(words, words[1:]):
        row = table.get_value()[before]
        table.set_value(table.get_value().at[before].set(_LOUD * row))
        loud = row / jnp.linalg.norm(row)
        head.set_value(head.get_value().at[:, after].add(_LOUD * loud))
    return save_qwen(directory, TINY_QWEN, state, files, "float32")


def judge_values(root: Path) -> dict[str, Any]:
    """Plain values of a judge of all five terms by tiny models, which are written under `root`.

    It finds everything at `FOUND`; sem, spa and pi are expected scores.
    """
    sizes = {
        "checkpoint": str(write_taught_qwen(root / "qwen", FOUND)), "dtype": "float32", "rows": 8,
        "tokens": 8192, "max_pixels": 196 * 28 * 28, "patches": 1024, "image_tokens": 1024,
    }  # fmt: skip
    clip = write_tiny_clip(root / "clip", seed=2)  # whose cosines are positive
    return {
        "kind": "qwen_vl",
        "questions": {"reading": "expected", "boxes_tokens": 8, "canvas": 112},
        "qwen_vl": sizes,
        "also": [{"kind": "hps", "hps": {"checkpoint": str(clip), "batch_rows": 4}}],
    }
