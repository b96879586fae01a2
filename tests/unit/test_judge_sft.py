"""A judge's training: its tokenizer, batches and loss, with numbers worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image
from record_files import image as png
from tiny_judge import TINY_JUDGE, TINY_JUDGE3
from tiny_qwen import TINY_QWEN3

from gotr1_jax.data.config import QuestionRecordsConfig
from gotr1_jax.data.question_records import QuestionRecord, QuestionRecords
from gotr1_jax.data.records import Unusable
from gotr1_jax.errors import ConfigError, InputError
from gotr1_jax.images.qwen import Preprocessing, read_image
from gotr1_jax.images.qwen_pack import RowShape
from gotr1_jax.judge_sft.batch import (
    BatchShape,
    TaughtExample,
    TaughtTurn,
    TokenizedTurn,
    assign_turns,
    make_batch,
    tokenize_turn,
)
from gotr1_jax.judge_sft.config import JudgeDataConfig
from gotr1_jax.judge_sft.dataset import TaughtRecords, fit_source, needed_rows
from gotr1_jax.judge_sft.losses import answer_loss, target_weights
from gotr1_jax.judge_sft.new_model import new_preprocessing, write_new_files
from gotr1_jax.judge_sft.update import answer_logits, make_judge_step
from gotr1_jax.models.qwen_vl import QwenVL
from gotr1_jax.tokenizers.qwen import ImageTokens, QwenTokenizer
from gotr1_jax.tokenizers.train_qwen import shared_phrases, train_qwen_tokenizer
from gotr1_jax.trainer.state import new_state

PREPROCESSING = new_preprocessing(TINY_JUDGE)


def noise(index: int, side: int, settings: Preprocessing) -> Any:
    values = np.random.default_rng(index).integers(0, 256, (side, side, 3), np.uint8)
    return read_image(Image.fromarray(values), settings)


def make_examples(settings: Preprocessing) -> tuple[TaughtExample, TaughtExample]:
    """Two examples: one with an image of 1 unit and one of 4 units, one with text alone."""
    unit = settings.geometry.unit_size
    return (
        TaughtExample(
            "a",
            (noise(0, unit, settings), noise(1, 2 * unit, settings)),
            (
                TaughtTurn("Which? ", (1,), "The second.", "blue"),
                TaughtTurn("Both? ", (1, 0), "In turn.", "a longer answer", system="Be short."),
                TaughtTurn("None? ", (), "Text.", "no"),
            ),
        ),
        TaughtExample("b", (), (TaughtTurn("", (), "One and one?", "two"),)),
    )


EXAMPLES = make_examples(PREPROCESSING)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> QwenTokenizer:
    folder = tmp_path_factory.mktemp("files")
    write_new_files(folder, [e.text for e in EXAMPLES], ("two",), TINY_JUDGE)
    return QwenTokenizer.from_dir(folder)


def test_phrases_are_what_many_texts_share() -> None:
    long, line = "Look at the image.\nAnswer with a number.\n", "Caption of this one:\n"
    texts = [long, long, line + "a", line + "b", "a short one", "a short one"]
    # Whole texts first; lines of these stand in no list of their own; nothing below 16 characters.
    assert shared_phrases(texts, 2) == [long, line]
    assert shared_phrases(texts, 3) == []
    # What looks like a control token stays text, here and in `transformers`.
    assert shared_phrases(["<look at the image>", "[a list of all things]\n"] * 3, 2) == []


def test_tokenizer_has_numbers_phrases_and_any_text() -> None:
    phrases = ["Look at the image.\n", '], "label": "']
    texts = ["Look at the image.\nWhere is the red circle?", '[{"bbox_2d": [1, 22, 333, 4]'] * 3
    made = train_qwen_tokenizer(texts, phrases, 2048)
    tokenizer = QwenTokenizer(made.to_str())
    tokenizer._text.check_round_trip()
    assert all(len(tokenizer.encode(str(n))) == 1 for n in range(1000))
    assert [len(tokenizer.encode(p)) for p in phrases] == [1, 1]
    # A blank and its word are one; a comma and its blank; a number never takes either.
    shown = [tokenizer.decode([i]) for i in tokenizer.encode(" red circle 7, 22")]
    assert shown == [" red", " circle", " ", "7", ", ", "22"]
    # Known ids stay where they are however long the phrases are.
    assert tokenizer.vocab_size == made.get_vocab_size() <= 2048
    assert train_qwen_tokenizer(texts, phrases, 2048).to_str() == made.to_str()


def test_turns_are_the_chats_that_the_engine_asks(tokenizer: QwenTokenizer) -> None:
    turn = EXAMPLES[0].turns[0]
    tokens = tokenize_turn(turn, [(1, 1), (2, 2)], tokenizer)
    chat = tokenizer.encode_chat(["Which? ", ImageTokens(4), "The second."])
    assert tokens.ids_S.tolist() == [*chat, *tokenizer.encode("blue"), tokenizer.ids.message_end]
    assert tokens.start == len(chat)


def sized(*sizes: int) -> list[TokenizedTurn]:
    return [TokenizedTurn(np.zeros(size, np.int32), size - 2) for size in sizes]


def test_turns_share_rows_the_longest_first() -> None:
    shape = BatchShape(4, rows=2, tokens=10, answer_tokens=3, patches=None)
    assert assign_turns(sized(3, 7, 2, 6), shape) == [(0, 7), (0, 0), (1, 6), (1, 0)]
    # 11 is over a row, and of 6, 6, 5 the last finds no room.
    assert assign_turns(sized(11, 6, 6, 5), shape) == [None, (0, 0), (1, 0), None]
    assert assign_turns(sized(6), replace(shape, answer_tokens=1)) == [None]
    hundred = [sized(6, 4)] * 99
    assert needed_rows(hundred, shape) == 1
    # A turn of 200 may be left out, two not.
    assert needed_rows([*hundred, sized(6, 6)], shape) == 1
    assert needed_rows([*hundred, sized(6, 6), sized(6, 6), sized(6, 6)], shape) == 2


def test_batches_by_hand(tokenizer: QwenTokenizer) -> None:
    shape = BatchShape(3, rows=2, tokens=72, answer_tokens=24, patches=RowShape(20, 2))
    batch = make_batch(EXAMPLES, tokenizer, PREPROCESSING.geometry, shape)
    grids = [(1, 1), (2, 2)]
    turns = [tokenize_turn(t, grids, tokenizer) for t in EXAMPLES[0].turns]
    places = assign_turns(turns, shape)
    for q, (turn, place) in enumerate(zip(turns, places)):
        assert place is not None
        row, first = place
        here = np.s_[0, row, first : first + len(turn.ids_S)]
        np.testing.assert_array_equal(batch.ids_EKS[here], turn.ids_S)
        assert (batch.sequences_EKS[here] == q + 1).all()
        start = row * 72 + first + turn.start
        length = len(turn.ids_S) - turn.start
        assert (batch.starts_EQ[0, q], batch.lengths_EQ[0, q]) == (start, length)
        units = batch.places_EKS[here]
        assert units[units >= 0].tolist() == [[1, 2, 3, 4], [1, 2, 3, 4, 0], []][q]
        if q == 2:  # text counts on in all three
            ramp = np.arange(len(turn.ids_S))
            np.testing.assert_array_equal(batch.positions_EK3S[0, row, 1, here[2]], ramp)
    assert (batch.sequences_EKS > 0).sum() == sum(
        len(tokenize_turn(t, grids, tokenizer).ids_S) for e in EXAMPLES for t in e.turns
    )
    assert batch.lengths_EQ[1].tolist()[1:] == [0, 0]
    assert batch.patches is not None and batch.patches.images_RN[1].max() == 0
    with pytest.raises(InputError, match="images of a are larger"):
        make_batch(
            EXAMPLES, tokenizer, PREPROCESSING.geometry, replace(shape, patches=RowShape(8, 2))
        )


def test_loss_by_hand() -> None:
    # Rows of three and one targets; p of the targets is 1/2, 1/4, 1/8 and 1/2.
    p = jnp.array([[0.5, 0.25, 0.125], [0.5, 0.9, 0.9]])
    logits = jnp.log(jnp.stack([p, 1 - p], -1))
    targets = jnp.zeros((2, 3), jnp.int32)
    lengths = jnp.array([3, 1])
    tokens = target_weights(lengths, 3, "tokens")
    loss, sums = answer_loss(logits, targets, tokens, tokens.sum())
    assert float(loss) == pytest.approx((1 + 2 + 3 + 1) * np.log(2) / 4)
    assert float(sums.nats) == pytest.approx(7 * np.log(2))
    # 1/2 ties, and the first of equals counts: right in both rows, the second is right whole.
    assert (float(sums.right_tokens), float(sums.right_answers)) == (2, 1)
    answers = target_weights(lengths, 3, "answers")
    loss, _ = answer_loss(logits, targets, answers, answers.sum())
    assert float(loss) == pytest.approx((2 + 1) * np.log(2) / 2)
    # Nothing to learn: no loss, no NaN in its gradient.
    none = target_weights(jnp.array([0, 0]), 3, "tokens")
    value, grad = jax.value_and_grad(lambda x: answer_loss(x, targets, none, none.sum())[0])(logits)
    assert float(value) == 0 and not np.asarray(grad).any()


@pytest.fixture(scope="module")
def model(tokenizer: QwenTokenizer) -> QwenVL:
    return QwenVL(TINY_JUDGE.sizes(tokenizer.vocab_size), rngs=nnx.Rngs(0))


def test_packed_rows_are_as_alone_and_micro_batches_add_up(
    tokenizer: QwenTokenizer, model: QwenVL
) -> None:
    packed = BatchShape(3, rows=2, tokens=72, answer_tokens=24, patches=RowShape(20, 2))
    apart = replace(packed, rows=3, tokens=64)
    geometry = PREPROCESSING.geometry
    graphdef, params = nnx.split(model)
    run = jax.jit(lambda params, batch: answer_logits(nnx.merge(graphdef, params), batch, 24))
    logits = []
    for shape in (packed, apart):
        batch = make_batch(EXAMPLES, tokenizer, geometry, shape)
        values, targets, lengths = run(params, batch)
        mask = np.arange(24) < np.asarray(lengths)[:, None]
        logits.append(np.asarray(values)[mask])
        first = targets[3, : lengths[3] - 1]
        assert tokenizer.decode(first) == "two"
    assert len(logits[0]) == sum(
        len(tokenizer.encode(t.answer)) + 1 for e in EXAMPLES for t in e.turns
    )
    np.testing.assert_allclose(logits[0], logits[1], atol=2e-5)

    batch = make_batch(EXAMPLES, tokenizer, geometry, packed)
    results = []
    for micro in (2, 1):
        optimizer = optax.sgd(1.0)
        step = make_judge_step(graphdef, optimizer, 24, "tokens", micro)
        state = jax.jit(partial(new_state, optimizer=optimizer))(params)
        results.append(step(state, nnx.State({}), batch))
    (one, metrics), (two, others) = results
    assert float(metrics["loss"]) == pytest.approx(float(others["loss"]), rel=1e-5)
    near = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5)  # noqa: E731
    jax.tree.map(near, one.params, two.params)
    # By hand: the mean over all tokens of answers is what the logits above say.
    assert float(metrics["loss"]) == pytest.approx(float(metrics["nats/answer"]), rel=1e-6)


def test_a_qwen3_learns_from_packed_rows(tokenizer: QwenTokenizer) -> None:
    text = replace(TINY_QWEN3.text, vocab_size=tokenizer.vocab_size)
    config = replace(TINY_QWEN3, text=text)
    geometry = config.vision.geometry
    examples = make_examples(Preprocessing(geometry, 32 * 32, 1 << 20, (0.5,) * 3, (0.5,) * 3))
    packed = BatchShape(3, rows=2, tokens=72, answer_tokens=24, patches=RowShape(20, 0))
    graphdef, params = nnx.split(QwenVL(config, rngs=nnx.Rngs(0)))

    def mean(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        values, _, lengths = answer_logits(nnx.merge(graphdef, params), batch, 24)
        chosen = jnp.where((jnp.arange(24) < lengths[:, None])[..., None], values, 0)
        return jnp.square(chosen).mean(), chosen

    one, other = (
        make_batch(examples, tokenizer, geometry, shape)
        for shape in (packed, replace(packed, rows=3, tokens=64))
    )
    gradient, logits = jax.jit(jax.grad(mean, has_aux=True))(params, one)
    np.testing.assert_allclose(logits, jax.jit(mean)(params, other)[1], atol=2e-5)
    # It reaches every part of the tower, DeepStack's mergers too.
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient["vision"]))


def write_records(folder: Path, *records: dict[str, Any]) -> Path:
    for i in range(3):
        (folder / f"{i}.png").write_bytes(png(i))
    lines = "\n".join(map(json.dumps, records))
    (folder / "records.jsonl").write_text(lines + "\n", encoding="utf-8")
    return folder / "records.jsonl"


def test_records_of_images_questions_and_answers(tmp_path: Path) -> None:
    path = write_records(
        tmp_path,
        {"image": "0.png", "question": " Red? ", "answer": "yes"},
        {
            "image": ["1.png", "2.png"],
            "question": "Same?",
            "answer": "no",
            "instruction": "Compare.",
        },
        {"question": "One and one?", "answer": "two", "system": "You add."},
        {"image": "0.png", "question": "Red?", "answer": " "},
        {"image": ["0.png", 5], "question": "Red?", "answer": "yes"},
    )
    records = QuestionRecords([path], QuestionRecordsConfig())
    one, two, three, *rest = records.read(0, len(records))
    assert isinstance(one, QuestionRecord) and isinstance(two, QuestionRecord)
    assert isinstance(three, QuestionRecord)
    assert (one.question, one.answer, one.instruction, one.system) == ("Red?", "yes", "", None)
    assert len(one.load_images()) == 1 and len(two.load_images()) == 2 and not three.images
    assert two.instruction == "Compare.\n" and three.system == "You add."
    reasons = [r.reason for r in rest if isinstance(r, Unusable)]
    assert "line" in reasons[0] or "row" in reasons[0]
    assert "no text under 'answer'" in reasons[0] and "no readable image" in reasons[1]
    with pytest.raises(InputError, match="no column 'reply' .*data.records.answer.*its columns"):
        QuestionRecords([path], QuestionRecordsConfig(answer="reply"))
    (tmp_path / "text.jsonl").write_text('{"question": "x", "answer": "y"}\n')
    with pytest.raises(InputError, match="no column 'image' .*null if no record has one"):
        QuestionRecords([tmp_path / "text.jsonl"], QuestionRecordsConfig())
    assert len(QuestionRecords([tmp_path / "text.jsonl"], QuestionRecordsConfig(image=None))) == 1


def test_records_that_do_not_fit(tmp_path: Path, tokenizer: QwenTokenizer) -> None:
    good = {"image": "0.png", "question": "Red?", "answer": "yes"}
    path = write_records(
        tmp_path, *[good] * 3, {**good, "image": "none.png"}, {**good, "question": "long " * 99}
    )
    data = JudgeDataConfig(source=str(path), max_tokens=64, max_answer_tokens=8)
    with pytest.raises(InputError, match="1 of 5 records cannot be used.*unusable_limit.*none.png"):
        TaughtRecords(data, PREPROCESSING)
    data = replace(data, records=replace(data.records, unusable_limit=0.2))
    source = TaughtRecords(data, PREPROCESSING)
    with pytest.raises(InputError, match="1 of 4 questions are too long.*over data.max_tokens 64"):
        fit_source(data, source, tokenizer, PREPROCESSING)
    kept, shape = fit_source(replace(data, too_long_limit=0.3), source, tokenizer, PREPROCESSING)
    # 70 by 64 px, 2.5 and 2.3 units, become 2 by 2 units of 4 patches.
    assert len(kept) == 3 and shape == BatchShape(1, 1, 64, 8, RowShape(16, 1))
    # The lengths were taken without the pixels, and are those of the images.
    assert kept.text(2) == kept[2].text and kept[2].images[0].grid == (2, 2)
    with pytest.raises(InputError, match="too long.*an answer of .* over data.max_answer_tokens 1"):
        fit_source(replace(data, max_answer_tokens=1), source, tokenizer, PREPROCESSING)


def test_a_new_judge_has_nothing_of_the_other_family() -> None:
    sizes = TINY_JUDGE3.sizes(2048)
    assert sizes.is_qwen3 and sizes.text.mrope_interleaved and sizes.text.qk_norm
    assert sizes.text.mrope_section == (4, 2, 2) and sizes.vision.vector_size == 3 * 32
    for judge, key, value in (
        (TINY_JUDGE, "deepstack", (0,)),
        (TINY_JUDGE3, "full_attention", (1,)),
    ):
        with pytest.raises(ConfigError, match=key):
            replace(judge, vision=replace(judge.vision, **{key: value}))
