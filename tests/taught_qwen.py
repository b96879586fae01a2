"""A small random Qwen2.5-VL that was taught one thing: every answer it writes is one phrase.

Its pictures, captions and plans still move the distributions of its scores.
"""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
from tiny_qwen import TINY_QWEN, tiny_qwen_state, write_qwen_files
from tokenizers import AddedToken, Tokenizer

from gotr1_jax.convert.qwen2_5_vl import save_qwen

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
