"""The judge's engine by itself: bounded, sharing, on a mesh, and with numbers that are none."""

from __future__ import annotations

import gc
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from tiny_qwen import TINY_QWEN, write_tiny_qwen

from gotr1_jax.config import from_dict
from gotr1_jax.convert.qwen_vl import load_qwen
from gotr1_jax.errors import InputError
from gotr1_jax.parallel.mesh import make_mesh
from gotr1_jax.plan import parse_plan
from gotr1_jax.rewards.base import JudgeRequest
from gotr1_jax.rewards.factory import make_judge
from gotr1_jax.rewards.judge_config import JudgeConfig
from gotr1_jax.rewards.multimodal.questions import QuestionsConfig
from gotr1_jax.vlm_engine.base import ImageInput, Question, Scale, make_image_input
from gotr1_jax.vlm_engine.config import QwenEngineConfig
from gotr1_jax.vlm_engine.engine import QwenEngine

SCALE = Scale(0, 10, '{"score": ')
POISON = "§"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # What is compiled grows with the layers, and there are many shapes here.
    text, vision = replace(TINY_QWEN.text, num_layers=1), TINY_QWEN.vision
    vision = replace(vision, num_layers=2, full_attention=(1,))
    config = replace(TINY_QWEN, text=text, vision=vision)
    return write_tiny_qwen(tmp_path_factory.mktemp("engine") / "model", config)


def make_engine(directory: Path, mesh: Mesh | None = None, **sizes: Any) -> QwenEngine:
    usual: dict[str, Any] = {
        "dtype": "float32", "rows": 4, "tokens": 2048, "max_pixels": 16 * 28 * 28, "patches": 128,
        "image_tokens": 64,
    }  # fmt: skip
    engine = QwenEngine.from_config(QwenEngineConfig(str(directory), **usual | sizes), mesh)
    # Token ids instead of text: bytes that are no text would hide differences.
    engine._tokenizer.decode = lambda ids: str(list(ids))  # type: ignore[method-assign]
    return engine


def image(seed: int, size: tuple[int, int] = (84, 84)) -> ImageInput:
    return make_image_input(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


def about(seed: int, text: str, limit: int = 6, ask: str = "Judge a cat. ") -> Question:
    return Question("score", (image(seed),), ask, text, limit, SCALE)


def test_memory_is_bounded_whatever_the_number_of_questions(directory: Path) -> None:
    """Ten times the questions: the same programs, no larger batch, images once each."""
    engine = make_engine(directory)
    programs: Any = engine._text.programs
    few = [about(i // 2, f"Score {i % 2}.") for i in range(16)]
    first = engine.answer(few)
    largest, shapes = engine.counts.most_tokens, programs.prefill_questions._cache_size()
    assert largest <= 2048
    assert engine.counts.images == 8
    many = [about(i // 2, f"Score {i % 2}.") for i in range(160)]
    again = engine.answer(many)
    assert again[:16] == first
    assert engine.counts.most_tokens == largest
    assert engine.counts.images == 8 + 80
    assert programs.prefill_questions._cache_size() <= shapes + 2, "the last batch may be smaller"
    # Vectors of images: 9 tokens each take 16 places, a batch has no more than 64 of them.
    batches = list(engine._split_by_images(many))
    assert max(len({p.key for q in batch for p in q.images}) for batch in batches) == 4
    units, rows = engine._encode(batches[0], [()] * len(batches[0]))
    assert units.shape[0] <= 2 * 64 and len(rows) == 8


def test_neither_programs_nor_arrays_grow_with_the_questions(directory: Path) -> None:
    """A mixture that fills a batch, 3 times and 9 times: the same programs, no more held."""
    engine = make_engine(directory)
    others = jax.live_arrays()  # of other tests; held, so that they neither go nor lend their id
    known = {id(x) for x in others}
    held: list[int] = []
    bucket = engine._text.programs.decode_bucket

    def measured(*arguments: Any) -> Any:
        state = bucket(*arguments)
        live = (x for x in jax.live_arrays() if id(x) not in known)
        held.append(sum(x.nbytes for x in live))
        return state

    engine._text.programs = replace(engine._text.programs, decode_bucket=measured)

    def mixture(number: int) -> list[Question]:
        sizes = ((56, 56), (84, 112), (112, 84), (84, 84))
        images = [image(number, size) for size in sizes]
        shown = [(p,) for p in images] + [(images[0], images[1])]
        return [
            Question("score", p, "Judge. ", f"{'word ' * n}{number:03}?", 4 + 8 * (n % 2), SCALE)
            for p in shown
            for n in (1, 6)
        ]

    def compiled() -> dict[str, int]:
        tower, text = vars(engine._vision), vars(engine._text.programs)
        found = {**tower, **text, "decode_bucket": bucket._default}.items()
        return {name: f._cache_size() for name, f in found if hasattr(f, "_cache_size")}

    seen = []
    for numbers in (range(3), range(100, 109)):
        asked = [question for number in numbers for question in mixture(number)]
        gc.collect()
        held.clear()
        engine.answer(asked)
        engine.expected_scores(asked)
        seen.append((len(held), max(held), compiled()))
    (few_calls, few_bytes, few), (many_calls, many_bytes, many) = seen
    assert many_calls == 3 * few_calls
    assert many_bytes <= few_bytes
    expected = {"encode_batch", "prefill_questions", "decode_bucket", "score_logps"}
    assert many == few and expected <= set(few)


def test_prefixes_are_read_once(directory: Path) -> None:
    engine = make_engine(directory)
    asked = [about(0, f"Is there a thing number {i}?") for i in range(4)]
    engine.answer(asked)
    head, prefix = engine.counts.shared_tokens, engine.counts.prefix_tokens
    own = engine.counts.question_tokens
    sizes = [row.size for row in engine._encode(asked, [()] * 4)[1]]
    assert head + prefix + own < 0.55 * sum(sizes)
    assert head + prefix + own / 4 == pytest.approx(np.mean(sizes))
    assert own <= 4 * len(" 0?<|im_end|>assistant")
    # An instruction is read once for all images, and kept; an image is no part of it.
    more = [about(n, "Is it there?") for n in (1, 2, 3)]
    engine.answer(more)
    assert engine.counts.shared_tokens == head > len("Judge a cat. ")
    assert engine.counts.prefix_tokens == prefix, "three images begin with nothing in common"
    engine.answer([about(1, "Is it there?", ask="Another one. ")])
    assert engine.counts.shared_tokens > head


def test_images_that_are_held_are_not_encoded_again(directory: Path) -> None:
    engine = make_engine(directory)
    asked = [about(i, "Score.") for i in range(4)]
    first = engine.answer(asked)
    scores = engine.expected_scores(asked)
    reminded = [q.with_reminder("Once more.") for q in asked[1:3]]
    again = engine.answer(reminded)
    assert engine.counts.images == 4
    # Others take their place, and there is room for one batch only.
    engine.answer([about(9, "Score.")])
    assert engine.answer(asked) == first and engine.counts.images == 4 + 1 + 4
    fresh = make_engine(directory)
    assert fresh.answer(reminded) == again
    np.testing.assert_allclose(fresh.expected_scores(asked), scores, atol=1e-5)


def test_the_same_question_is_asked_once(directory: Path) -> None:
    engine = make_engine(directory)
    answers = engine.answer([about(0, "x"), about(1, "x"), about(0, "x")])
    assert answers[0] == answers[2] != answers[1]
    assert engine.counts.images == 2
    assert engine.answer([]) == [] and engine.expected_scores([]) == []


def test_rows_that_are_done_are_dropped(directory: Path) -> None:
    """One long answer among short ones: it goes on alone and is the same."""
    engine = make_engine(directory)
    short = [about(0, f"{i}?", limit=3) for i in range(3)]
    long = about(0, "9?", limit=90)
    together = engine.answer([*short, long])
    steps = len(eval(together[3].text)) - 1
    assert steps > 32, "this test needs an answer that is longer than the first bucket"
    assert engine.counts.decoded == 4 * 32 + (steps - 32)
    assert [a.truncated for a in together[:3]] == [True] * 3
    assert [len(eval(a.text)) for a in together[:3]] == [3] * 3
    assert make_engine(directory).answer([long]) == [together[3]]


def poisoned(directory: Path) -> QwenEngine:
    """An engine whose embedding has no number for one letter."""
    checkpoint = load_qwen(directory, jnp.float32)
    letter = checkpoint.tokenizer.encode(POISON)[-1]
    table = checkpoint.state["text"]["embed"]["table"]
    table.set_value(table.get_value().at[letter].set(jnp.nan))
    config = QwenEngineConfig(
        "poisoned", "float32", rows=4, tokens=2048, max_pixels=12544, patches=128,
        image_tokens=64,
    )  # fmt: skip
    return QwenEngine(checkpoint, config)


def test_numbers_that_are_none_spoil_their_row_only(directory: Path) -> None:
    asked = [about(0, "a?"), about(0, f"{POISON}?"), about(1, "b?"), about(1, "c", ask=POISON)]
    engine, healthy = poisoned(directory), make_engine(directory)
    engine._tokenizer.decode = lambda ids: str(list(ids))  # type: ignore[method-assign]
    answers = engine.answer(asked)
    assert [a.finite for a in answers] == [True, False, True, False]
    assert [a.truncated for a in answers] == [True, False, True, False]
    assert [answers[i] for i in (0, 2)] == healthy.answer([asked[0], asked[2]])
    scores = engine.expected_scores(asked)
    assert [math.isnan(s) for s in scores] == [False, True, False, True]
    kept = [scores[0], scores[2]]
    assert kept == pytest.approx(healthy.expected_scores([asked[0], asked[2]]), abs=1e-4)


def test_too_long_a_question_has_no_answer(directory: Path) -> None:
    engine = make_engine(directory)
    fine, long = about(0, "a?"), about(0, "word " * 500)
    answers = engine.answer([long, fine])
    assert "too many for judge.qwen_vl.tokens 2048" in answers[0].error
    assert not answers[1].error
    scores = engine.expected_scores([long, fine])
    assert math.isnan(scores[0]) and 0 < scores[1] < 10
    with pytest.raises(InputError, match="without a scale"):
        engine.expected_scores([replace(fine, scale=None)])


def test_two_images_in_one_question(directory: Path) -> None:
    """Their order counts, and the questions around a pair do not; there is room for two at once."""
    engine = make_engine(directory, image_tokens=32)
    one, other = image(0), image(1, (56, 112))
    pairs = [
        Question("score", images, "Which cat? ", "Score.", 6, Scale(1, 2, '{"score": '))
        for images in ((one, other), (other, one), (one, one))
    ]
    together = engine.expected_scores([*pairs, about(0, "Score 1."), about(2, "Score 2.")])
    alone = [engine.expected_scores([pair])[0] for pair in pairs]
    np.testing.assert_allclose(together[:3], alone, atol=1e-4)
    assert all(1 < score < 2 for score in alone) and len({round(s, 5) for s in alone}) == 3
    assert engine.answer(pairs) == [engine.answer([pair])[0] for pair in pairs]


def test_a_mesh_changes_nothing(directory: Path) -> None:
    asked = [about(i // 3, f"Score {i}.", limit=4 + 9 * (i == 5)) for i in range(7)]
    asked.append(Question("score", (), "Plan: ", "a cat", 5, SCALE))
    alone = make_engine(directory)
    mesh = make_mesh(2, 2, 2)
    spread = make_engine(directory, mesh, rows=8, tokens=8192)
    assert spread.answer(asked) == alone.answer(asked)
    scores = spread.expected_scores(asked), alone.expected_scores(asked)
    np.testing.assert_allclose(*scores, atol=1e-4)
    weights = spread._text._params.layers[0].qkv_KfhD
    assert weights.sharding.shard_shape(weights.shape)[0] == weights.shape[0] // 2


def test_bfloat16(directory: Path) -> None:
    low, high = make_engine(directory, dtype="bfloat16"), make_engine(directory)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(low._text._params))
    asked = [about(i, "Score.") for i in range(3)]
    assert all(a.finite and a.text for a in low.answer(asked))
    scores = low.expected_scores(asked), high.expected_scores(asked)
    np.testing.assert_allclose(*scores, atol=0.5)


def test_a_cache_in_int8_on_one_device_and_on_eight(directory: Path) -> None:
    """Shared text, prefixes, questions and answers of several lengths."""
    exact, mesh = make_engine(directory), make_mesh(2, 2, 2)
    low = make_engine(directory, cache_dtype="int8")
    asked = [about(i // 3, f"Score {i}.", limit=4 + 33 * (i == 5)) for i in range(7)]
    scores = low.expected_scores(asked)
    np.testing.assert_allclose(scores, exact.expected_scores(asked), atol=0.2)
    assert not np.allclose(scores, exact.expected_scores(asked), atol=1e-7)
    assert low.identity != exact.identity
    spread = make_engine(directory, mesh, rows=8, tokens=8192, cache_dtype="int8")
    assert spread.answer(asked) == low.answer(asked)
    np.testing.assert_allclose(spread.expected_scores(asked), scores, atol=1e-3)


def test_coordinates_refer_to_the_processed_image(directory: Path) -> None:
    engine = make_engine(directory)
    assert engine.image_size(100, 60) == (112, 56)
    assert engine.image_size(1000, 1000) == (112, 112)  # max_pixels
    assert "float32" in engine.identity and str(directory) in engine.identity


def test_other_weights_at_the_same_path_are_another_engine(directory: Path, tmp_path: Path) -> None:
    """One byte of the last tensor, in a file of the same size: kept answers are not its own."""
    path = shutil.copytree(directory, tmp_path / "model")
    first = make_engine(path).identity
    assert make_engine(path).identity == first
    file = sorted(path.glob("*.safetensors"))[-1]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert make_engine(path).identity != first


def test_a_hub_id_is_a_checkpoint(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gotr1_jax.convert.find.fetch_snapshot", lambda *_: directory)
    sizes = QwenEngineConfig("Qwen/A-Judge", "float32", max_pixels=16 * 28 * 28)
    engine = QwenEngine.from_config(sizes)
    assert engine.identity.startswith("qwen2_5_vl Qwen/A-Judge")


def test_a_configuration_makes_the_judge(directory: Path) -> None:
    with pytest.raises(InputError, match="give judge.qwen_vl.checkpoint"):
        JudgeConfig("qwen_vl")
    nowhere = QwenEngineConfig(str(directory / "nowhere"))
    with pytest.raises(InputError, match="no checkpoint at"):
        make_judge(JudgeConfig("qwen_vl", qwen_vl=nowhere))
    sizes = QwenEngineConfig(str(directory), "float32", rows=1, tokens=4096)
    expected = QuestionsConfig(reading="expected")
    judge = make_judge(JudgeConfig("qwen_vl", terms=("pi",), questions=expected, qwen_vl=sizes))
    request = JudgeRequest("a cat", parse_plan(""), image(0).pixels)
    (result,) = judge.judge([request])
    assert 0 < result.scores["pi"] < 1


def test_old_names_of_the_judge_are_read() -> None:
    old = {"kind": "qwen2_5_vl", "qwen2_5_vl": {"checkpoint": "a"}}
    new = JudgeConfig("qwen_vl", qwen_vl=QwenEngineConfig("a", rows=8))
    assert from_dict(JudgeConfig, old, overrides=[("qwen2_5_vl.rows", "8")]) == new
    words = [("kind", "qwen2_5_vl"), ("qwen2_5_vl", "{checkpoint: a, rows: 8}")]
    assert from_dict(JudgeConfig, {}, overrides=words) == new
    part = {"kind": "qwen2_5_vl", "qwen2_5_vl": {"checkpoint": "a", "rows": 8}}
    both = {"kind": "hps", "hps": {"checkpoint": "b"}, "also": [part]}
    assert from_dict(JudgeConfig, both).also == (new,)
