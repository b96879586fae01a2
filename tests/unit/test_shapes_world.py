"""The shapes world: captions, split, placement, images, plans and tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gotr1_jax.errors import InputError
from gotr1_jax.plan import parse_plan
from gotr1_jax.shapes import dataset
from gotr1_jax.shapes.captions import (
    CaptionSpec,
    ObjectSpec,
    contradict,
    is_heldout,
    parse_caption,
    sample_caption,
    write_caption,
)
from gotr1_jax.shapes.dataset import sample_example, shapes_captions
from gotr1_jax.shapes.plans import write_plan
from gotr1_jax.shapes.render import render, shape_mask
from gotr1_jax.shapes.scenes import Scene, SceneObject, relation_score, sample_scene
from gotr1_jax.shapes.tokenizer import coordinate_numbers, train_tokenizer
from gotr1_jax.shapes.vocabulary import (
    BACKGROUND,
    COLORS,
    HELDOUT_PAIRS,
    MIN_GAP,
    RELATIONS,
    SHAPES,
    SIZES,
)
from gotr1_jax.tokenizers.janus import GOTR1_TEMPLATE, TextTokenizer

RED = ObjectSpec("circle", "red")
BLUE = ObjectSpec("square", "blue", "small")
GREEN = ObjectSpec("cross", "green", "large")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (CaptionSpec((RED,)), "a red circle"),
        (CaptionSpec((BLUE, RED), "left of"), "a small blue square left of a red circle"),
        (
            CaptionSpec((RED, BLUE, GREEN), "next to"),
            "a red circle next to a small blue square and a large green cross",
        ),
        (CaptionSpec((GREEN,) * 3), "three large green crosses"),
        (CaptionSpec((RED, RED)), "two red circles"),
        (CaptionSpec((RED, RED, BLUE)), "two red circles and a small blue square"),
        (CaptionSpec((RED, BLUE, RED)), "a red circle and a small blue square and a red circle"),
        (CaptionSpec((RED, RED), "above"), "a red circle above a red circle"),
    ],
)
def test_caption_is_written_and_read_back(spec: CaptionSpec, text: str) -> None:
    assert write_caption(spec) == text
    assert parse_caption(text) == spec


def test_every_sampled_caption_is_read_back() -> None:
    rng = np.random.default_rng(1)
    specs = {sample_caption(rng, "all") for _ in range(3000)}
    assert all(parse_caption(write_caption(spec)) == spec for spec in specs)
    assert {spec.relation for spec in specs} == {None, *RELATIONS}
    assert {len(spec.objects) for spec in specs} == {1, 2, 3}
    kinds = {obj.kind for spec in specs for obj in spec.objects}
    assert len(kinds) == len(COLORS) * len(SHAPES) == 24
    assert {obj.size for spec in specs for obj in spec.objects} == {None, *SIZES}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "red circle",
        "a red circle.",
        "a red circles",
        "two red circle",
        "a red dog",
        "a red circle and a red circle",
        "a red circle left of",
        "a red circle left of a blue square above a green cross",
        "three red circles and a blue square",
        "two red circles left of a blue square",
        "a photo of a red circle",
        "a small large red circle",
        "a red circle left of a blue square and a \u05e9\u05dc\u05d5\u05dd \U0001f389",
    ],
)
def test_other_text_is_no_caption(text: str) -> None:
    assert parse_caption(text) is None


def test_splits_share_no_composition() -> None:
    rng = np.random.default_rng(2)
    train = {sample_caption(rng, "train") for _ in range(3000)}
    heldout = {sample_caption(rng, "heldout") for _ in range(1000)}
    assert not any(map(is_heldout, train))
    assert all(map(is_heldout, heldout))
    seen = {obj.kind for spec in train for obj in spec.objects}
    assert len(seen) == 22 and not seen & HELDOUT_PAIRS
    assert {color for color, _ in seen} == set(COLORS)
    assert {shape for _, shape in seen} == set(SHAPES)
    # Held-out captions are new through their composition, unseen ones through an object.
    assert not any(o.kind in HELDOUT_PAIRS for spec in heldout for o in spec.objects)
    for _ in range(100):
        spec = sample_caption(rng, "unseen")
        assert is_heldout(spec) and any(o.kind in HELDOUT_PAIRS for o in spec.objects)
    with pytest.raises(ValueError, match="unknown split 'test'"):
        sample_caption(rng, "test")


def test_one_composition_in_other_words_stays_in_its_split() -> None:
    rng = np.random.default_rng(3)
    mirrored = {"left of": "right of", "above": "below", "next to": "next to"}
    compared = heldout = 0
    while compared < 500:
        spec = sample_caption(rng, "all")
        if spec.relation not in mirrored or len(spec.objects) != 2:
            continue
        other = CaptionSpec(spec.objects[::-1], mirrored[spec.relation])
        resized = CaptionSpec(
            tuple(ObjectSpec(o.shape, o.color) for o in spec.objects), spec.relation
        )
        assert is_heldout(spec) == is_heldout(other) == is_heldout(resized)
        compared, heldout = compared + 1, heldout + is_heldout(spec)
    assert 50 < heldout < 250


LEFT, RIGHT = (0.1, 0.4, 0.3, 0.6), (0.5, 0.4, 0.7, 0.6)


def test_relation_scores_by_hand() -> None:
    assert relation_score("left of", LEFT, RIGHT) == 1
    assert relation_score("right of", RIGHT, LEFT) == 1
    assert relation_score("right of", LEFT, RIGHT) == 0
    assert relation_score("above", LEFT, RIGHT) == 0
    up, down = (0.4, 0.1, 0.6, 0.3), (0.4, 0.5, 0.6, 0.7)
    assert relation_score("above", up, down) == relation_score("below", down, up) == 1
    assert relation_score("left of", up, down) == 0
    # Gap 0.2, between 0.16 (full) and 0.42 (nothing): 0.22 / 0.26.
    assert relation_score("next to", RIGHT, LEFT) == pytest.approx(0.22 / 0.26)
    # Centres 0.115 apart where halves and gap ask for 0.1 + 0.1 + 0.03.
    near = (0.215, 0.4, 0.415, 0.6)
    assert relation_score("left of", LEFT, near) == pytest.approx(0.5)
    # 0.42 down for 0.4 across: tilt 1.05, halfway between 0.6 and 1.5.
    low = (0.5, 0.82, 0.7, 1.02)
    assert relation_score("left of", LEFT, low) == pytest.approx(0.5)
    assert relation_score("left of", LEFT, LEFT) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="unknown relation 'near'"):
        relation_score("near", LEFT, RIGHT)


def test_relation_scores_stay_within_0_and_1() -> None:
    rng = np.random.default_rng(4)
    corners = rng.uniform(0, 0.6, (2, 50, 2))
    a, b = (np.concatenate([c, c + rng.uniform(0.1, 0.4, (50, 2))], 1) for c in corners)
    for relation in RELATIONS:
        scores = [relation_score(relation, x, y) for x, y in zip(a.tolist(), b.tolist())]
        assert min(scores) >= 0 and max(scores) <= 1 and len(set(scores)) > 10


def test_scenes_obey_their_captions() -> None:
    rng = np.random.default_rng(5)
    for _ in range(600):
        spec = sample_caption(rng, "all")
        scene = sample_scene(rng, spec)
        assert scene.caption == spec
        for said, drawn in zip(spec.objects, scene.objects, strict=True):
            assert said.kind == drawn.spec.kind and said.size in (None, drawn.spec.size)
            x1, y1, x2, y2 = drawn.box
            assert x2 - x1 == y2 - y1 == {"small": 14, "large": 24}[drawn.spec.size or ""]
            assert min(x1, y1) >= 2 and max(x2, y2) <= 62 and x1 % 2 == y1 % 2 == 0
        for i, a in enumerate(scene.objects):
            for b in scene.objects[:i]:
                gaps = [max(a.box[k], b.box[k]) - min(a.box[2 + k], b.box[2 + k]) for k in (0, 1)]
                assert max(gaps) >= MIN_GAP
        if spec.relation is not None:
            a, b = scene.objects[:2]
            assert relation_score(spec.relation, a.relative_box, b.relative_box) == 1
            # A measuring error of one pixel is not punished.
            shaved = tuple(v + d / 64 for v, d in zip(b.relative_box, (1, 1, -1, -1)))
            assert relation_score(spec.relation, a.relative_box, shaved) > 0.99


def test_same_seed_same_example() -> None:
    one, two = (sample_example(np.random.default_rng((7, 9)), "train", 0.5) for _ in range(2))
    assert one == two
    assert one != sample_example(np.random.default_rng((7, 10)), "train", 0.5)


def test_boxes_are_the_extents_in_the_image() -> None:
    rng = np.random.default_rng(6)
    for _ in range(200):
        scene = sample_example(rng, "all", 0.5).scene
        image = render(scene).astype(int)
        assert image.shape == (64, 64, 3)
        painted = (image != BACKGROUND).any(-1)
        outside = painted.copy()
        for obj in scene.objects:
            x1, y1, x2, y2 = obj.box
            ys, xs = np.nonzero(painted[y1:y2, x1:x2])
            assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (0, 0, x2 - x1, y2 - y1)
            if obj.spec.shape != "triangle" or obj.spec.size == "large":
                centre = image[(y1 + y2) // 2, (x1 + x2) // 2]
                assert tuple(centre) == COLORS[obj.spec.color]
            outside[y1:y2, x1:x2] = False
        assert not outside.any()


def test_images_scale_with_their_size() -> None:
    scene = Scene(CaptionSpec((RED,)), (SceneObject(RED, (2, 4, 16, 18)),))
    painted = (render(scene, 96) != BACKGROUND).any(-1)
    ys, xs = np.nonzero(painted)
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (3, 6, 24, 27)
    with pytest.raises(ValueError, match="70 is not a multiple of 32"):
        render(scene, 70)


def test_shapes_differ_where_it_counts() -> None:
    masks = {shape: shape_mask(shape, 14, 14) for shape in SHAPES}
    assert masks["square"].min() == 1
    assert masks["circle"].mean() == pytest.approx(np.pi / 4, abs=0.02)
    assert masks["triangle"].mean() == pytest.approx(0.5, abs=0.04)
    assert masks["cross"].mean() == pytest.approx(5 / 9, abs=0.03)
    for i, a in enumerate(SHAPES):
        for b in SHAPES[:i]:
            union = np.maximum(masks[a], masks[b]).sum()
            assert np.minimum(masks[a], masks[b]).sum() / union < 0.8, (a, b)


def test_plan_by_hand() -> None:
    big = ObjectSpec("circle", "red", "large")
    # 2, 4, 26, 28 of 64 pixels are 31.25, 62.5, 406.25 and 437.5 per mille.
    objects = (SceneObject(big, (2, 4, 26, 28)), SceneObject(BLUE, (40, 10, 54, 24)))
    scene = Scene(CaptionSpec((RED, BLUE), "left of"), objects)
    assert write_plan(scene) == (
        "<|obj_start|>large red circle<|obj_end|> <|box_start|>(31,62),(406,438)<|box_end|> "
        "left of "
        "<|obj_start|>small blue square<|obj_end|> <|box_start|>(625,156),(844,375)<|box_end|>"
    )


def test_plans_are_true_of_the_image_and_sometimes_not_of_the_caption() -> None:
    rng = np.random.default_rng(8)
    faithful = wrong_side = wrong_color = 0
    for _ in range(1500):
        example = sample_example(rng, "train", 0.4)
        spec, objects = example.scene.caption, example.scene.objects
        assert example.caption == write_caption(spec)
        plan = parse_plan(example.plan)
        assert [o.name for o in plan.objects] == [o.spec.name for o in objects]
        for planned, drawn in zip(plan.objects, objects):
            assert planned.box is not None
            box = (planned.box.x1, planned.box.y1, planned.box.x2, planned.box.y2)
            assert box == pytest.approx([v * 1000 / 64 for v in drawn.box], abs=0.5)
        colors = [o.color for o in spec.objects] == [o.spec.color for o in objects]
        score = 1.0
        if spec.relation is not None:
            a, b = objects[:2]
            score = relation_score(spec.relation, a.relative_box, b.relative_box)
        assert example.faithful == (colors and score == 1)
        if not example.faithful:
            assert colors != (score == 1), "exactly one thing is wrong"
            assert colors <= (score < 0.2)
        faithful += example.faithful
        wrong_side += score < 1
        wrong_color += not colors
        assert not {o.spec.kind for o in objects} & HELDOUT_PAIRS
    assert faithful / 1500 == pytest.approx(0.6, abs=0.05)
    assert min(wrong_side, wrong_color) > 100
    assert all(sample_example(rng, "heldout").faithful for _ in range(100))


def test_contradictions_by_hand() -> None:
    rng = np.random.default_rng(9)
    spec = CaptionSpec((RED, BLUE), "above")
    assert contradict(rng, spec, "side") == CaptionSpec((RED, BLUE), "below")
    beside = CaptionSpec((RED, BLUE), "next to")
    assert contradict(rng, beside, "side").relation in ("above", "below")
    with pytest.raises(ValueError, match="no relation"):
        contradict(rng, CaptionSpec((RED,)), "side")
    assert contradict(rng, CaptionSpec((RED,)), "color").objects[0].color != "red"


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
    assert tokenizer.vocab_size <= 512


def test_tokenizer_is_the_same_every_time(tokenizer_dir: Path, tmp_path: Path) -> None:
    train_tokenizer(tmp_path)
    for path in tokenizer_dir.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_every_word_and_number_is_one_token(tokenizer: TextTokenizer) -> None:
    numbers = coordinate_numbers()
    assert len(numbers) == 31 and numbers[:3] == (31, 62, 94) and numbers[-1] == 969
    for number in numbers:
        assert len(tokenizer.encode_plan(f"({number},{number}),(")) == 5
    rng = np.random.default_rng(10)
    for _ in range(300):
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


def test_more_captions_than_there_are_end_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "_MAX_REPEATS", 10)
    with pytest.raises(InputError, match="cannot draw 10000000 different .* which has about"):
        shapes_captions("heldout", 10_000_000)
