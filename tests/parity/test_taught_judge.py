"""A new judge in `transformers`, in float32: its own processor and chat template, and its greedy
answers token for token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_judge import TINY_JUDGE, TINY_JUDGE3
from tiny_qwen import tiny_qwen_state

from gotr1_jax.convert.qwen_vl import load_qwen, save_qwen
from gotr1_jax.judge_sft.answers import ANSWER_PIECES
from gotr1_jax.judge_sft.config import JudgeShapesConfig, NewJudgeConfig
from gotr1_jax.judge_sft.new_model import new_preprocessing, write_new_files
from gotr1_jax.judge_sft.shapes_source import JudgedShapes
from gotr1_jax.rewards.multimodal.questions import MULTIMODAL_TERMS, QuestionsConfig, make_questions
from gotr1_jax.tokenizers.qwen import QwenTokenizer
from gotr1_jax.vlm_engine.base import Question
from gotr1_jax.vlm_engine.config import QwenEngineConfig
from gotr1_jax.vlm_engine.engine import QwenEngine

SHOWN = QuestionsConfig(canvas=112, score_tokens=12, boxes_tokens=16, verdict_tokens=24)
SHIPPED = Path(__file__).resolve().parents[2] / "gotr1_jax" / "assets" / "shapes_judge"


def write_random(folder: Path, judge: NewJudgeConfig) -> Path:
    """A judge of random weights, whose answers do not repeat one token."""
    files = folder.with_name("files")
    files.mkdir()
    config = JudgeShapesConfig(questions=SHOWN)
    source = JudgedShapes(config, new_preprocessing(judge), seed=2)
    write_new_files(files, (source.text(i) for i in range(12)), ANSWER_PIECES, judge)
    sizes = judge.sizes(QwenTokenizer.from_dir(files).vocab_size)
    return save_qwen(folder, sizes, tiny_qwen_state(sizes), files, "float32")


def asked_questions() -> list[Question]:
    source = JudgedShapes(JudgeShapesConfig(), new_preprocessing(TINY_JUDGE), seed=3)
    rng = np.random.default_rng(4)
    asked = []
    for layout in ("canvas", "text"):
        shown = QuestionsConfig(**{**vars(SHOWN), "layout": layout})
        by_term = make_questions(source.draw_request(rng), MULTIMODAL_TERMS, shown)
        asked += [q for questions in by_term.values() for q in questions]
    return asked


def their_inputs(folder: Path, question: Question) -> dict[str, Any]:
    """A question through the tokenizer, chat template and image processor of `transformers`."""
    import torch
    from transformers import AutoTokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

    tokenizer = AutoTokenizer.from_pretrained(folder)
    content = [{"type": "text", "text": question.instruction}]
    content += [{"type": "image"}] * len(question.images)
    content += [{"type": "text", "text": question.text}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    inputs: dict[str, Any] = {}
    pad = "<|image_pad|>"
    if question.images:
        images = [Image.fromarray(image.pixels) for image in question.images]
        inputs = dict(Qwen2VLImageProcessorPil.from_pretrained(folder)(images, return_tensors="pt"))
        for grid in inputs["image_grid_thw"]:
            text = text.replace(pad, "<hole>" * (int(grid.prod()) // 4), 1)
        text = text.replace("<hole>", pad)
    tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    ids = tokens["input_ids"]
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if question.images:
        inputs["mm_token_type_ids"] = (ids == tokenizer.convert_tokens_to_ids(pad)).int()
    return inputs


@pytest.mark.parametrize("which", ["qwen2_5_vl", "qwen3_vl", "shipped"])
def test_answers_equal_transformers(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForImageTextToText

    if which == "shipped" and not SHIPPED.is_dir():
        pytest.skip("no judge is shipped")
    torch.set_num_threads(1)
    folder = SHIPPED
    if which != "shipped":
        judge = TINY_JUDGE3 if which == "qwen3_vl" else TINY_JUDGE
        folder = write_random(tmp_path / "model", judge)
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()
    engine = QwenEngine.from_config(QwenEngineConfig(str(folder), "float32", rows=4, tokens=8192))
    monkeypatch.setattr(engine._tokenizer, "decode", lambda ids: list(map(int, ids)))
    ids = load_qwen(folder).tokenizer.ids

    questions = asked_questions()
    ours = [list(answer.text) for answer in engine.answer(questions)]
    for question, own in zip(questions, ours):
        inputs = their_inputs(folder, question)
        made = theirs.generate(
            **inputs, do_sample=False, max_new_tokens=question.max_answer_tokens
        )  # fmt: skip
        out = made[0, inputs["input_ids"].shape[1] :].tolist()
        ends = (ids.message_end, ids.text_end)
        assert own == out[: len(own)] and all(token in ends for token in out[len(own) :])
    assert len({str(own) for own in ours}) > len(ours) // 2, "answers that are the same test little"
