"""The shapes world: captions, split, placement, images and plans."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from gotr1_jax.errors import InputError
from gotr1_jax.plan import Box, parse_plan
from gotr1_jax.shapes import dataset
from gotr1_jax.shapes.captions import (
    CaptionSpec,
    ObjectSpec,
    contradict,
    is_heldout,
    parse_caption,
    sample_caption,
    split_of,
    write_caption,
)
from gotr1_jax.shapes.dataset import sample_example, shapes_captions
from gotr1_jax.shapes.plans import write_plan
from gotr1_jax.shapes.scenes import Scene, SceneObject, relation_score, sample_scene
from gotr1_jax.shapes.vocabulary import (
    BORDER,
    COLORS,
    DEPTHS,
    HELDOUT_PAIRS,
    IMAGE_SIZE,
    MAX_ASPECT,
    MIN_GAP,
    OPPOSITES,
    RELATIONS,
    SHAPES,
    SIDES,
    SIZE_RANGES,
    SIZES,
)

RED = ObjectSpec("circle", "red")
BLUE = ObjectSpec("square", "blue", "small")
GREEN = ObjectSpec("star", "green", "medium")
MOON = ObjectSpec("moon", "cyan")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (CaptionSpec((RED,)), "a red circle"),
        (CaptionSpec((BLUE, RED), "left of"), "a small blue square left of a red circle"),
        (
            CaptionSpec((RED, BLUE, GREEN), "next to"),
            "a red circle next to a small blue square and a medium green star",
        ),
        (CaptionSpec((GREEN,) * 3), "three medium green stars"),
        (CaptionSpec((RED, RED)), "two red circles"),
        (CaptionSpec((MOON,) * 4), "four cyan moons"),
        (CaptionSpec((MOON, BLUE), "behind"), "a cyan moon behind a small blue square"),
        (
            CaptionSpec((BLUE, MOON, RED, GREEN), "in front of"),
            "a small blue square in front of a cyan moon and a red circle and a medium green star",
        ),
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
    assert {len(spec.objects) for spec in specs} == {1, 2, 3, 4}
    kinds = {obj.kind for spec in specs for obj in spec.objects}
    assert len(kinds) == len(COLORS) * len(SHAPES) == 36
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
        "a red circle left of a blue square above a green star",
        "three red circles and two blue squares",
        "five red circles",
        "four red circles and a blue square",
        "a red cross",
        "a red circle in front a blue square",
        "a red circle in front of a blue square behind a green star",
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
    assert len(seen) == 33 and not seen & HELDOUT_PAIRS
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
    compared = heldout = 0
    while compared < 500:
        spec = sample_caption(rng, "all")
        if spec.relation is None or len(spec.objects) != 2:
            continue
        other = CaptionSpec(spec.objects[::-1], OPPOSITES.get(spec.relation, spec.relation))
        resized = CaptionSpec(
            tuple(ObjectSpec(o.shape, o.color) for o in spec.objects), spec.relation
        )
        more = CaptionSpec((*spec.objects, RED), spec.relation)
        assert split_of(spec) == split_of(other) == split_of(resized) == split_of(more)
        compared, heldout = compared + 1, heldout + is_heldout(spec)
    assert 50 < heldout < 250
    # Each relation, depth as well, has compositions of both kinds.
    drawn = {(sample_caption(rng, split).relation, split) for split in ("train", "heldout")
             for _ in range(200)}  # fmt: skip
    assert drawn == {(r, split) for r in (None, *RELATIONS) for split in ("train", "heldout")}


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
    # A corner of 0.05 x 0.06, of 0.2 x 0.2: 0.075, where 0.12 is asked for. A half is enough.
    corner, half = (0.25, 0.54, 0.45, 0.74), (0.2, 0.4, 0.4, 0.6)
    for depth in DEPTHS:
        assert relation_score(depth, LEFT, RIGHT) == 0
        assert relation_score(depth, LEFT, corner) == pytest.approx(0.075 / 0.12)
        assert relation_score(depth, LEFT, half) == 1
    # Of the box behind 0.875 is covered: halfway from 0.75 to 1.
    wide = (0.1, 0.4, 0.275, 0.6)
    behind = (0.1, 0.4, 0.3, 0.6)
    assert relation_score("in front of", wide, behind) == pytest.approx(0.5)
    assert relation_score("behind", behind, wide) == pytest.approx(0.5)
    assert relation_score("behind", wide, behind) == 0  # the narrower one is covered whole
    with pytest.raises(ValueError, match="unknown relation 'near'"):
        relation_score("near", LEFT, RIGHT)


def test_relation_scores_stay_within_0_and_1() -> None:
    rng = np.random.default_rng(4)
    corners = rng.uniform(0, 0.6, (2, 50, 2))
    a, b = (np.concatenate([c, c + rng.uniform(0.1, 0.4, (50, 2))], 1) for c in corners)
    for relation in RELATIONS:
        scores = [relation_score(relation, x, y) for x, y in zip(a.tolist(), b.tolist())]
        assert min(scores) >= 0 and max(scores) <= 1 and len(set(scores)) > 5


def test_scenes_obey_their_captions() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        spec = sample_caption(rng, "all")
        scene = sample_scene(rng, spec)
        assert scene.caption == spec and scene.hidden_first == (spec.relation == "behind")
        for said, drawn in zip(spec.objects, scene.objects, strict=True):
            assert said.kind == drawn.spec.kind and said.size in (None, drawn.spec.size)
            x1, y1, x2, y2 = corners(drawn)
            low, high = SIZE_RANGES[drawn.spec.size or ""]
            assert low - 1 <= ((x2 - x1) * (y2 - y1)) ** 0.5 <= high + 1
            assert max((x2 - x1) / (y2 - y1), (y2 - y1) / (x2 - x1)) <= MAX_ASPECT * 1.01
            assert min(x1, y1) >= BORDER and max(x2, y2) <= 1000 - BORDER
        for i, j in combinations(range(len(scene.objects)), 2):
            if spec.relation not in DEPTHS or (i, j) != (0, 1):
                a, b = corners(scene.objects[i]), corners(scene.objects[j])
                gaps = [max(a[k], b[k]) - min(a[2 + k], b[2 + k]) for k in (0, 1)]
                assert max(gaps) >= MIN_GAP
        if spec.relation is not None:
            a, b = scene.objects[:2]
            assert relation_score(spec.relation, a.relative_box, b.relative_box) == 1
            # A measuring error of a pixel is not punished.
            off = tuple(v + d / IMAGE_SIZE for v, d in zip(b.relative_box, (1, 1, -1, -1)))
            assert relation_score(spec.relation, a.relative_box, off) > 0.99 - 0.2 * (
                spec.relation in DEPTHS
            )


def corners(obj: SceneObject) -> tuple[int, int, int, int]:
    return obj.box.x1, obj.box.y1, obj.box.x2, obj.box.y2


def test_depth_between_equal_colors_is_refused_in_one_line() -> None:
    rng = np.random.default_rng(12)
    for relation in DEPTHS:
        spec = CaptionSpec((RED, ObjectSpec("star", "red")), relation)
        with pytest.raises(ValueError, match="which one is in front would not show") as error:
            sample_scene(rng, spec)
        assert "\n" not in str(error.value) and write_caption(spec) in str(error.value)
    # No sampled caption asks for it, nor any contradiction of one.
    for _ in range(2000):
        spec = sample_caption(rng, "all")
        if spec.relation in DEPTHS:
            changed = contradict(rng, spec, "color")
            for one in (spec, changed):
                assert one.objects[0].color != one.objects[1].color


def test_same_seed_same_example() -> None:
    one, two = (sample_example(np.random.default_rng((7, 9)), "train", 0.5) for _ in range(2))
    assert one == two
    assert one != sample_example(np.random.default_rng((7, 10)), "train", 0.5)


def test_plan_by_hand() -> None:
    big = ObjectSpec("circle", "red", "large")
    objects = (
        SceneObject(big, Box(31, 62, 406, 438)), SceneObject(BLUE, Box(625, 156, 844, 375)),
    )  # fmt: skip
    scene = Scene(CaptionSpec((RED, BLUE), "left of"), objects)
    assert write_plan(scene) == (
        "<|obj_start|>large red circle<|obj_end|> <|box_start|>(31,62),(406,438)<|box_end|> "
        "left of "
        "<|obj_start|>small blue square<|obj_end|> <|box_start|>(625,156),(844,375)<|box_end|>"
    )
    more = Scene(CaptionSpec((RED, BLUE, BLUE), "in front of"), (*objects, objects[1]))
    assert (
        write_plan(more)
        .replace("<|box_end|>", "")
        .split("<|box_start|>")[1]
        .startswith("(31,62),(406,438) in front of <|obj_start|>small blue square")
    )
    assert write_plan(more).count(" and ") == 1


def test_plans_are_true_of_the_image_and_sometimes_not_of_the_caption() -> None:
    rng = np.random.default_rng(8)
    faithful = wrong_side = wrong_color = 0
    for _ in range(500):
        example = sample_example(rng, "train", 0.4)
        spec, objects = example.scene.caption, example.scene.objects
        assert example.caption == write_caption(spec)
        plan = parse_plan(example.plan)
        assert [o.name for o in plan.objects] == [o.spec.name for o in objects]
        for planned, drawn in zip(plan.objects, objects):
            assert planned.box == drawn.box
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
    # More than 0.6: contradictions that would show a held-out composition are drawn anew.
    assert faithful / 500 == pytest.approx(0.65, abs=0.06)
    assert min(wrong_side, wrong_color) > 40
    assert all(sample_example(rng, "heldout").faithful for _ in range(50))


def test_contradictions_by_hand() -> None:
    rng = np.random.default_rng(9)
    spec = CaptionSpec((RED, BLUE), "above")
    assert contradict(rng, spec, "side") == CaptionSpec((RED, BLUE), "below")
    beside = CaptionSpec((RED, BLUE), "next to")
    assert contradict(rng, beside, "side").relation in ("above", "below")
    with pytest.raises(ValueError, match="no relation"):
        contradict(rng, CaptionSpec((RED,)), "side")
    assert contradict(rng, CaptionSpec((RED,)), "color").objects[0].color != "red"
    # A contradicted depth is a side: the boxes of the plan, and the image, are apart.
    deep = CaptionSpec((RED, BLUE), "behind")
    drawn = {contradict(rng, deep, "side").relation for _ in range(60)}
    assert drawn == set(SIDES)
    with pytest.raises(ValueError, match="unknown contradiction 'size'"):
        contradict(rng, deep, "size")


def test_contradicted_depth_leaves_no_overlap() -> None:
    rng, seen = np.random.default_rng(13), [0, 0]
    while min(seen) < 10:
        example = sample_example(rng, "train", 1.0)
        spec, objects = example.scene.caption, example.scene.objects
        if spec.relation in DEPTHS:
            a, b = objects[:2]
            shown = relation_score(spec.relation, a.relative_box, b.relative_box)
            recolored = [o.color for o in spec.objects] != [o.spec.color for o in objects]
            assert shown == recolored
            seen[recolored] += 1


def test_more_captions_than_there_are_end_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "_MAX_REPEATS", 10)
    few = [CaptionSpec((ObjectSpec("circle", color),)) for color in COLORS]
    monkeypatch.setattr(dataset, "sample_caption", lambda rng, _: few[int(rng.integers(6))])
    with pytest.raises(InputError, match="cannot draw 10000000 different .* has about [56];"):
        shapes_captions("heldout", 10_000_000)
