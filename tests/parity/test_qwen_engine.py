"""The judge's engine against `transformers` with the same weights, in float32.

`transformers` answers one question at a time; the engine all at once, in whatever batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_qwen import TINY_QWEN, TINY_QWEN3, write_tiny_qwen

from gotr1_jax.convert.qwen_vl import load_qwen
from gotr1_jax.images.qwen import read_image
from gotr1_jax.tokenizers.qwen import ImageTokens
from gotr1_jax.vlm_engine.base import FirstWords, Question, Scale, make_image_input
from gotr1_jax.vlm_engine.config import QwenEngineConfig
from gotr1_jax.vlm_engine.engine import QwenEngine

PREFIX = '{"score": '
TEN, FROM_ONE = Scale(0, 10, PREFIX), Scale(1, 10, PREFIX)
# (height, width): windows are 112 px, so that some divide into whole ones and some do not.
SIZES = ((112, 112), (168, 140), (84, 224), (28, 56))


@dataclass(frozen=True)
class Pair:
    """A tiny checkpoint in the engine and in `transformers`."""

    directory: Path
    theirs: Any

    def engine(self, **sizes: int) -> QwenEngine:
        config = QwenEngineConfig(
            str(self.directory), "float32", max_pixels=64 * 28 * 28, patches=256,
            image_tokens=128, **{"rows": 4, "tokens": 4096} | sizes,
        )  # fmt: skip
        return QwenEngine.from_config(config)


@pytest.fixture(scope="module", params=[TINY_QWEN, TINY_QWEN3], ids=["2.5", "3"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForImageTextToText

    torch.set_num_threads(1)
    directory = write_tiny_qwen(tmp_path_factory.mktemp("judge") / "model", request.param)
    theirs = AutoModelForImageTextToText.from_pretrained(directory, dtype="float32")
    return Pair(directory, theirs.eval())


def questions() -> list[Question]:
    """Shared beginnings, images of several sizes, two at once, text only, some asked alone."""
    rng = np.random.default_rng(2)
    a, b, c, d = (make_image_input(rng.integers(0, 256, (*s, 3), np.uint8)) for s in SIZES)
    score, caption = "Score the image.\n", "A cat left of a dog."
    return [
        Question("score", (a,), score, caption, 40, TEN),
        Question("score", (b,), score, caption, 24, TEN),
        Question("boxes", (a,), "Find: ", "cat", 12),
        Question("boxes", (a,), "Find: ", "a very small dog", 33),
        Question("boxes", (a,), "Find: ", "dog", 40),
        Question("score", (c,), score, f"{caption} This one.", 17, FROM_ONE),
        # Text behind text: the instruction's end may be part of another token.
        Question("score", (), "Plan of it: ", "[cat] 1, 2, 3, 4", 40, TEN),
        Question("score", (), "Plan of it: ", "[dog] and a longer plan than that", 9, TEN),
        Question("verdict", (c, d), "Which is it? ", caption, 26),
        Question("verdict", (c, a), "Which is it? ", caption, 26),
        Question("score", (d,), "", "x", 1, FROM_ONE),
    ]


def their_inputs(pair: Pair, engine: QwenEngine, question: Question, ending: str) -> dict[str, Any]:
    import torch

    checkpoint = load_qwen(pair.directory)
    images = [
        read_image(Image.fromarray(p.pixels), checkpoint.preprocessing) for p in question.images
    ]
    shown = (ImageTokens(p.units) for p in images)
    message: list[str | ImageTokens] = [question.instruction, *shown, question.text]
    ids = checkpoint.tokenizer.encode_chat(message) + checkpoint.tokenizer.encode(ending)
    rows = torch.tensor([ids])
    inputs = {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
    if images:
        joined = np.concatenate([p.patches_NE for p in images])
        doubled = np.repeat(joined.reshape(len(joined), 3, 1, -1), 2, axis=2)
        inputs["pixel_values"] = torch.from_numpy(doubled.reshape(len(joined), -1))
        grids = [[1, 2 * p.grid[0], 2 * p.grid[1]] for p in images]
        inputs["image_grid_thw"] = torch.tensor(grids)
        inputs["mm_token_type_ids"] = (rows == checkpoint.tokenizer.ids.image).int()
    return inputs


def their_answers(pair: Pair, engine: QwenEngine, asked: list[Question]) -> list[str]:
    ids = load_qwen(pair.directory).tokenizer.ids
    answers = []
    for question in asked:
        inputs = their_inputs(pair, engine, question, "")
        out = pair.theirs.generate(
            **inputs, do_sample=False, max_new_tokens=question.max_answer_tokens,
            eos_token_id=[ids.message_end, ids.text_end], pad_token_id=0,
        )  # fmt: skip
        answers.append(str(out[0, inputs["input_ids"].shape[1] :].tolist()))
    return answers


def show_ids(engine: QwenEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers hold token ids: bytes that are no text would hide differences."""
    monkeypatch.setattr(engine._tokenizer, "decode", lambda ids: str(list(ids)))


def test_answers_equal_transformers(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = questions()
    engine = pair.engine()
    show_ids(engine, monkeypatch)
    theirs = their_answers(pair, engine, asked)
    ours = engine.answer(asked)
    assert [a.text for a in ours] == theirs
    assert all(a.finite and not a.error for a in ours)
    ends = [str(load_qwen(pair.directory).tokenizer.ids.message_end) + "]"]
    assert [a.truncated for a in ours] == [not a.text.endswith(tuple(ends)) for a in ours]
    assert engine.counts.images == 4
    assert len(set(theirs)) == len(theirs), "answers that are the same test little"


@pytest.mark.parametrize("pair", [TINY_QWEN], ids=["2.5"], indirect=True)
def test_answers_are_the_same_in_any_batch(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = questions()
    engine = pair.engine()
    show_ids(engine, monkeypatch)
    ours = engine.answer(asked)
    alone = [engine.answer([q])[0] for q in asked[:3]]
    assert alone == ours[:3]
    small = pair.engine(rows=2, tokens=1024)
    show_ids(small, monkeypatch)
    backwards = small.answer(asked[::-1] + asked[:1])
    assert backwards == ours[::-1] + ours[:1]


def test_expected_scores_equal_a_computation_by_hand(pair: Pair) -> None:
    import torch

    engine = pair.engine()
    asked = [q for q in questions() if q.kind == "score"]
    tokenizer = load_qwen(pair.directory).tokenizer
    digit = [tokenizer.encode(str(n))[0] for n in range(10)]
    by_hand = []
    for question in asked:
        after = []
        for ending in (PREFIX, PREFIX + "1"):
            with torch.no_grad():
                logits = pair.theirs(**their_inputs(pair, engine, question, ending)).logits
            after.append(logits[0, -1].double().softmax(-1).numpy())
        p = {n: float(after[0][digit[n]]) for n in range(10)}
        p[10] = p[1] * float(after[1][digit[0]])
        p[1] -= p[10]
        assert question.scale is not None
        scale = range(question.scale.low, 11)
        by_hand.append(sum(n * p[n] for n in scale) / sum(p[n] for n in scale))
    np.testing.assert_allclose(engine.expected_scores(asked), by_hand, atol=1e-4)
    assert np.ptp(by_hand) > 0.5
    assert engine.expected_scores(asked[:1]) == pytest.approx(by_hand[:1], abs=1e-4)


def test_the_probability_of_the_right_word_equals_a_computation_by_hand(pair: Pair) -> None:
    import torch

    engine = pair.engine()
    tokenizer = load_qwen(pair.directory).tokenizer
    images = [q.images for q in questions() if q.images][:2]
    words = FirstWords(("Yes", "yes", " Yes", " yes"))
    first = sorted({tokenizer.encode(form)[0] for form in words.right})
    asked = [
        Question("word", shown, "", f"Is it a {name}? Answer in one word.", 8, words=words)
        for shown in images
        for name in ("cat", "dog")
    ]
    by_hand = []
    for question in asked:
        with torch.no_grad():
            logits = pair.theirs(**their_inputs(pair, engine, question, "")).logits
        by_hand.append(float(logits[0, -1].double().softmax(-1)[first].sum()))
    np.testing.assert_allclose(engine.expected_scores(asked), by_hand, atol=1e-5)
    assert np.ptp(by_hand) > 1e-4 and len(first) > 1
