"""Teaching a judge's tower to see: labels of units, the loss, the update."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from tiny_judge import TINY_JUDGE, TINY_JUDGE3

from gotr1_jax.judge_sft.batch import BatchShape, JudgeBatch, make_batch
from gotr1_jax.judge_sft.config import JudgeShapesConfig, NewJudgeConfig
from gotr1_jax.judge_sft.detector import ObjectDetector, detection_sums, make_detector_step
from gotr1_jax.judge_sft.new_model import new_preprocessing
from gotr1_jax.judge_sft.objects import UnitLabels, label_units
from gotr1_jax.judge_sft.shapes_source import JudgedShapes
from gotr1_jax.models.qwen_vl import QwenVL
from gotr1_jax.plan import Box
from gotr1_jax.rewards.multimodal.questions import QuestionsConfig
from gotr1_jax.shapes.judge import parse_name
from gotr1_jax.shapes.vocabulary import COLORS, SHAPES, SIZES
from gotr1_jax.tokenizers.qwen import QwenTokenizer
from gotr1_jax.tokenizers.train_qwen import train_qwen_tokenizer
from gotr1_jax.trainer.state import new_state


def test_units_have_the_objects_whose_centers_they_hold() -> None:
    wide = [("small red star", Box(0, 0, 300, 500)), ("blue moon", Box(800, 600, 1000, 900))]
    same = [("large red square", Box(0, 0, 1000, 1000)), ("small cyan heart", Box(0, 0, 998, 998))]
    edge = [("small red star", Box(990, 990, 1000, 1000)), ("a dog", Box(0, 0, 10, 10))]
    labels = label_units([[((2, 3), wide)], [((1, 1), same), ((2, 2), edge)]], 7)
    assert labels.centers_EU.tolist() == [[1, 0, 0, 0, 0, 1, -1], [1, 0, 0, 0, 1, -1, -1]]
    red, blue, cyan = (tuple(COLORS).index(name) for name in ("red", "blue", "cyan"))
    star, moon, heart = (SHAPES.index(name) for name in ("star", "moon", "heart"))
    small = SIZES.index("small")
    assert labels.kinds_EU3[0, 0].tolist() == [red, star, small]
    assert labels.kinds_EU3[0, 5].tolist() == [blue, moon, -1]  # its size is not said
    assert labels.kinds_EU3[1, 0].tolist() == [cyan, heart, small]  # the smaller of two
    assert labels.kinds_EU3[1, 4].tolist() == [red, star, small]
    assert labels.kinds_EU3[0, 1].tolist() == [-1, -1, -1]
    np.testing.assert_allclose(labels.boxes_EU4[0, 5], [0.8, 0.6, 0.999, 0.9])
    assert not labels.boxes_EU4[0, 1].any()


def test_boxes_count_as_they_are_drawn() -> None:
    """Those of a policy may leave the image, and no label may leave it with them."""
    large, wild = Box(500, 500, 5000, 5000), Box(-(10**9), 0, 5, 5)
    inverted, outside = Box(900, 900, 100, 100), Box(2000, 2000, 3000, 3000)
    objects = [("red star", box) for box in (large, wild, inverted, outside)]
    labels = label_units([[((1, 1), []), ((2, 2), objects)]], 6)
    assert labels.centers_EU.tolist() == [[0, 1, 0, 0, 1, -1]]
    np.testing.assert_allclose(labels.boxes_EU4[0, 1], [0, 0, 0.005, 0.005])
    np.testing.assert_allclose(labels.boxes_EU4[0, 4], [0.5, 0.5, 0.999, 0.999])


def labels_of_one() -> UnitLabels:
    objects = [("small red star", Box(100, 200, 300, 400)), ("blue moon", Box(600, 0, 1000, 200))]
    return label_units([[((2, 2), objects)]], 6)


def test_sums_are_the_definitions() -> None:
    labels, rng = labels_of_one(), np.random.default_rng(0)
    outputs = [rng.normal(size=(1, 6, n)).astype(np.float32) for n in (1, 6, 6, 3, 4)]
    sums = {k: float(v) for k, v in detection_sums(outputs, labels).items()}
    center = outputs[0][0, :4, 0]  # the last two units are padding
    has = np.array([1, 1, 0, 0])
    nats = np.log1p(np.exp(center)) - has * center
    assert sums["center"] == pytest.approx(nats.sum(), rel=1e-5)
    assert sums["right_units"] == ((center > 0) == has).sum()
    for i, name in enumerate(("color", "shape", "size")):
        logits, kinds = outputs[1 + i][0, :2], labels.kinds_EU3[0, :2, i]
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        known = [k for k in range(2) if kinds[k] >= 0]
        assert len(known) == (1 if name == "size" else 2)
        assert sums[name] == pytest.approx(-sum(logp[k, kinds[k]] for k in known), rel=1e-5)
        assert sums[f"right_{name}"] == sum(logits[k].argmax() == kinds[k] for k in known)
    error = np.abs(outputs[4][0, :2] - [[0.1, 0.2, 0.3, 0.4], [0.6, 0.0, 0.999, 0.2]]).mean(-1)
    assert sums["box"] == pytest.approx(error.sum(), rel=1e-5)


def make(judge: NewJudgeConfig) -> tuple[QwenTokenizer, JudgeBatch]:
    config = JudgeShapesConfig(questions=QuestionsConfig(canvas=112))
    settings = new_preprocessing(judge)
    source = JudgedShapes(config, settings, seed=1, objects=True)
    texts = [turn.instruction for turn in source.text(0).turns]
    tokenizer = QwenTokenizer(train_qwen_tokenizer(texts, (), 2048).to_str())
    shape = BatchShape(1, 1, 8, 4, source.patches())
    examples = [source[i] for i in range(4)]
    return tokenizer, make_batch(examples, tokenizer, settings.geometry, shape)


def test_examples_have_image_and_sketch_with_their_objects() -> None:
    config = JudgeShapesConfig(questions=QuestionsConfig(canvas=112))
    source = JudgedShapes(config, new_preprocessing(TINY_JUDGE3), seed=1, objects=True)
    for i in range(8):
        example = source[i]
        assert not example.turns and source.text(i).turns  # of which a tokenizer is made
        assert len(example.images) == len(example.objects) == 2
        request = source.draw_request(np.random.default_rng((0x6A756467, 1, i)))
        assert example.objects[1] == tuple(request.plan.boxes)
        assert all(parse_name(name) for name, _ in example.objects[0])
    text = JudgeShapesConfig(layouts=("text",))
    assert len(JudgedShapes(text, new_preprocessing(TINY_JUDGE3), 1, objects=True)[0].images) == 1


@pytest.mark.parametrize("judge", [TINY_JUDGE, TINY_JUDGE3], ids=["qwen2_5_vl", "qwen3_vl"])
def test_the_tower_learns_and_the_text_model_stays(judge: NewJudgeConfig) -> None:
    tokenizer, batch = make(judge)
    model = QwenVL(judge.sizes(-(-tokenizer.vocab_size // 64) * 64), rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(ObjectDetector(model, rngs=nnx.Rngs(1)))
    optimizer = optax.adam(3e-3)
    start = jax.tree.map(np.array, params)
    whole, halves = (make_detector_step(graphdef, optimizer, micro) for micro in (4, 2))
    create = jax.jit(partial(new_state, optimizer=optimizer))
    (one, metrics), (two, others) = (
        step(create(params), nnx.State({}), batch) for step in (whole, halves)
    )
    assert {k: float(v) for k, v in metrics.items()} == pytest.approx(
        {k: float(v) for k, v in others.items()}, rel=1e-4
    )
    # Where one object alone has a size, one of the three is wholly right: the others do not count.
    labels = batch.labels
    assert labels is not None
    right = []
    for size in range(len(SIZES)):
        kinds = np.where(np.arange(3) == 2, -1, labels.kinds_EU3)
        kinds[(*np.argwhere(labels.centers_EU > 0)[0], 2)] = size
        with_one = replace(batch, labels=replace(labels, kinds_EU3=kinds))
        right.append(float(whole(create(params), nnx.State({}), with_one)[1]["right/size"]))
    assert sorted(right) == [0.0, 0.0, 1.0]
    near = partial(np.testing.assert_allclose, atol=1e-2)  # Adam turns what is near zero
    jax.tree.map(near, jax.tree.map(np.asarray, one.params), jax.tree.map(np.asarray, two.params))
    losses = [float(metrics["loss"])]
    for _ in range(60):
        one, metrics = whole(one, nnx.State({}), batch)
        losses.append(float(metrics["loss"]))
    # Four images can be learned by heart; a loss that saw padding or another image could not.
    assert losses[-1] < 0.25 * losses[0] and float(metrics["right/units"]) > 0.85
    same = partial(jax.tree.map, np.testing.assert_array_equal)
    same(jax.tree.map(np.asarray, one.params["judge"]["text"]), start["judge"]["text"])
