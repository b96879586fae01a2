"""The tokenizer of the shapes world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gotr1_jax.shapes.dataset import sample_example
from gotr1_jax.shapes.tokenizer import train_tokenizer
from gotr1_jax.tokenizers.janus import GOTR1_TEMPLATE, TextTokenizer


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(out)
    return out


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: Path) -> TextTokenizer:
    return TextTokenizer.from_dir(tokenizer_dir)


def test_tokenizer_has_the_released_files_and_specials(
    tokenizer_dir: Path, tokenizer: TextTokenizer
) -> None:
    assert {path.name for path in tokenizer_dir.iterdir()} == {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "processor_config.json",
        "preprocessor_config.json",
    }
    s = tokenizer.specials
    assert [s.bos, s.eos, s.pad, s.boi, s.eoi, s.image] == [0, 1, 2, 3, 4, 5]
    marks = "<|box_start|><|box_end|><|obj_start|><|obj_end|>"
    assert tokenizer.encode_plan(marks) == [tokenizer.vocab_size - k for k in (4, 3, 2, 1)]
    # Every number 0..999 is a token of its own.
    assert 1024 < tokenizer.vocab_size <= 1536


def test_tokenizer_is_the_same_every_time(tokenizer_dir: Path, tmp_path: Path) -> None:
    train_tokenizer(tmp_path)
    for path in tokenizer_dir.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_every_word_and_number_is_one_token(tokenizer: TextTokenizer) -> None:
    for number in range(1000):
        assert len(tokenizer.encode_plan(f"({number},{number}),(")) == 5
    rng = np.random.default_rng(10)
    for _ in range(150):
        example = sample_example(rng, "all")
        caption = tokenizer.encode_prompt(example.caption, GOTR1_TEMPLATE)
        # BOS, 16 pieces of the template before the caption and 4 after it.
        assert len(caption) == 1 + 16 + len(example.caption.split()) + 4
        objects = example.scene.objects
        # Of an object: four marks, three words, one blank, nine of the box. Between two: the words
        # that join them, and a blank.
        relation = example.scene.caption.relation
        words = [len(relation.split())] if relation else []
        words += [1] * (len(objects) - 1 - len(words))
        expected = 17 * len(objects) + sum(n + 1 for n in words)
        assert len(tokenizer.encode_plan(example.plan)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "a red circle left of a blue square",
        "na\u00efve \U0001f389\U0001f469\u200d\U0001f467 \u05e9\u05dc\u05d5\u05dd "
        "\u0645\u0631\u062d\u0628\u0627 \u4e00",
        "  two  spaces\tand\r\n lines \x00\x7f",
    ],
)
def test_any_text_comes_back(tokenizer: TextTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode_plan(text)) == text
