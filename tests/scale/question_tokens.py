"""Tokens of the questions of configs/shapes_judge.yaml, with the tokenizer made for them by
configs/shapes_judge_tower.yaml.

    python tests/scale/question_tokens.py [--samples 300]

Prints for each kind of question the mean number of tokens with images and answer, that of the
answer in parentheses, and the tokens with a tokenizer of the same size that has no phrases.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from gotr1_jax.config import load_config
from gotr1_jax.judge_sft.batch import TaughtText, tokenize_turn
from gotr1_jax.judge_sft.config import JudgeSftConfig
from gotr1_jax.judge_sft.dataset import open_source
from gotr1_jax.judge_sft.model import prepare_judge
from gotr1_jax.tokenizers.qwen import QwenTokenizer
from gotr1_jax.tokenizers.train_qwen import train_qwen_tokenizer

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "shapes_judge_tower.yaml"


def without_phrases(examples: Iterable[TaughtText], vocab_limit: int) -> QwenTokenizer:
    """A tokenizer of the words of these examples."""
    turns = [turn for example in examples for turn in example.turns]
    texts = [text for turn in turns for text in (turn.instruction, turn.text, turn.answer)]
    return QwenTokenizer(train_qwen_tokenizer(texts, (), vocab_limit).to_str())


def count(examples: Iterable[TaughtText], tokenizer: QwenTokenizer) -> list[tuple[int, int]]:
    """Of each question the tokens, and those of its answer."""
    found = [tokenize_turn(t, e.grids, tokenizer) for e in examples for t in e.turns]
    return [(len(turn.ids_S), len(turn.ids_S) - turn.start) for turn in found]


def main() -> None:
    """Print the table as Markdown, and the sums over a sample."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=300)
    number = parser.parse_args().samples
    config = load_config(
        JudgeSftConfig, CONFIG, ["--data.shapes.vq", "null", "--objective", "answers"]
    )
    assert config.model is not None
    shapes, thousandths = config.data.shapes, config.model.is_qwen3
    with tempfile.TemporaryDirectory() as scratch:
        initial, source = prepare_judge(config, Path(scratch))
        examples = [source.text(i) for i in range(number)]
    tokenizers = initial.tokenizer, without_phrases(examples, config.model.vocab_limit)
    print("| question | tokens, new tokenizer (answer) | in words |\n|-|-|-|")
    for term in shapes.terms:
        for layout in shapes.layouts if term == "spa" else shapes.layouts[:1]:
            part = replace(shapes, terms=(term,), layouts=(layout,), inventory=False)
            data = replace(config.data, shapes=part)
            asked = open_source(replace(config, data=data), initial.preprocessing, thousandths)
            own, words = (count(map(asked.text, range(number)), t) for t in tokenizers)
            name = f"{term}, {layout}" if term == "spa" else term
            means = [statistics.mean(x) for x in (*zip(*own), next(zip(*words)))]
            print("| {} | {:.0f} ({:.0f}) | {:.0f} |".format(name, *means))
    sums = [sum(n for n, _ in count(examples, t)) / number for t in tokenizers]
    print("\na sample with all its questions: {:.0f} tokens, in words {:.0f}".format(*sums))


if __name__ == "__main__":
    main()
