"""The shapes judge: detection on rendered images, and each term on constructed cases."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image
from placed import SIDES, place
from scipy.ndimage import gaussian_filter

from gotr1_jax.plan import Box, format_object, parse_plan
from gotr1_jax.rewards.base import JudgeRequest
from gotr1_jax.rewards.shapes import ShapesJudge
from gotr1_jax.shapes.captions import CaptionSpec, ObjectSpec, parse_caption
from gotr1_jax.shapes.dataset import sample_example
from gotr1_jax.shapes.detect import MAX_FOUND, find_objects
from gotr1_jax.shapes.judge import is_true_of, likeness, parse_name
from gotr1_jax.shapes.plans import write_plan
from gotr1_jax.shapes.render import render
from gotr1_jax.shapes.scenes import Scene, sample_scene
from gotr1_jax.shapes.vocabulary import BACKGROUND, COLORS, DEPTHS, IMAGE_SIZE, SHAPES, SIZES

LEFT, RIGHT, MIDDLE = (60, 300), (560, 300), (300, 300)


def _judge(caption: str, plan: Scene | str, raw_image: Scene | np.ndarray) -> dict[str, float]:
    text = plan if isinstance(plan, str) else write_plan(plan)
    image = raw_image if isinstance(raw_image, np.ndarray) else render(raw_image)
    (result,) = ShapesJudge().judge([JudgeRequest(caption, parse_plan(text), image)])
    assert set(result.scores) == {"sem", "spa", "ri", "pi"} and "\n" not in result.rationale
    return {k: float(v) for k, v in result.scores.items()}


def _is(scores: dict[str, float], sem: float, spa: float, ri: float, pi: float) -> None:
    ri_found = scores.pop("ri")
    assert scores == pytest.approx({"sem": sem, "spa": spa, "pi": pi}, nan_ok=True)
    # Boxes are measured to a fraction of a pixel.
    assert ri_found == pytest.approx(ri, abs=0.05, nan_ok=True)


PAIR = "a large red circle left of a small blue square"
TRUE_PAIR = place(("large red circle", LEFT), ("small blue square", (690, 380)))
SWAPPED = place(("large red circle", RIGHT), ("small blue square", (80, 380)))


def _fill(color: tuple[int, int, int]) -> np.ndarray:
    return np.broadcast_to(np.uint8(color), (IMAGE_SIZE, IMAGE_SIZE, 3)).copy()


# --- detection ---------------------------------------------------------------------------------


def _corners(box: Box) -> tuple[int, int, int, int]:
    return box.x1, box.y1, box.x2, box.y2


def _off(found: Box, true: Box) -> int:
    """The largest difference of two boxes, in thousandths."""
    return int(np.abs(np.subtract(_corners(found), _corners(true))).max())


@pytest.mark.parametrize(("color", "shape"), list(itertools.product(COLORS, SHAPES)))
def test_every_object_is_found_exactly(color: str, shape: str) -> None:
    """At any thousandth, to within a pixel (8 thousandths); in the middle by much less."""
    off = []
    for size in SIZES:
        last = 985 - SIDES[size]
        for corner in ((15, 15), (313, 471), (306, 468), (last, last)):
            scene = place((f"{size} {color} {shape}", corner))
            (found,) = find_objects(render(scene))
            assert found.name == f"{size} {color} {shape}" and found.fit == 1.0
            off.append(_off(found.box, scene.objects[0].box))
    assert max(off) <= 8 and np.mean(off) <= 4, off
    (larger,) = find_objects(render(scene, 384))
    assert larger.name == found.name and _off(larger.box, found.box) <= 8


def _names(scene: Scene) -> list[str]:
    return sorted(o.spec.name for o in scene.objects)


@pytest.mark.parametrize(
    ("blur", "noise", "off"), [(0.0, 0, 8), (0.8, 0, 12), (1.4, 0, 24), (0.7, 12, 16)]
)
def test_blurred_images_are_read_alike(blur: float, noise: float, off: int) -> None:
    rng, wrong, far = np.random.default_rng(0), 0, 0
    for _ in range(60):
        scene = sample_example(rng, "all").scene
        image = gaussian_filter(render(scene).astype(float), (blur, blur, 0))
        image = np.clip(image + rng.normal(0, 1, image.shape) * noise, 0, 255).astype(np.uint8)
        found = find_objects(image)
        wrong += sorted(f.name for f in found) != _names(scene)
        far += any(min(_off(f.box, o.box) for f in found) > off for o in scene.objects)
    assert wrong <= 2 and far <= 2


def test_of_400_true_examples_less_than_one_percent_is_judged_wrong() -> None:
    """A true image is true, an unfaithful one is not; every term of a true example is right."""
    wrong = low = 0
    rng = np.random.default_rng(1)
    depths = 0
    for _ in range(400):
        example = sample_example(rng, "all")
        spec, found = example.scene.caption, find_objects(render(example.scene))
        wrong += not is_true_of(spec, found)
        off = [min((_off(f.box, o.box) for f in found if f.name == o.spec.name), default=999)
               for o in example.scene.objects]  # fmt: skip
        low += max(off) > 10
        depths += spec.relation in DEPTHS
    assert wrong < 4 and low <= 6 and depths > 25


@pytest.mark.parametrize("shape", SHAPES)
def test_hidden_objects_are_known_by_what_shows(shape: str) -> None:
    """Each shape in front of another and behind it: both are found whole, with their order."""
    rng, wrong = np.random.default_rng(4), 0
    for other in SHAPES:
        for relation in DEPTHS:
            pair = (ObjectSpec(shape, "green", "medium"), ObjectSpec(other, "purple", "medium"))
            spec = CaptionSpec(pair, relation)
            scene = sample_scene(rng, spec)
            found = find_objects(render(scene))
            right = sorted(f.name for f in found) == _names(scene) and is_true_of(spec, found)
            right = right and all(
                any(f.name == o.spec.name and _off(f.box, o.box) <= 12 for f in found)
                for o in scene.objects
            )
            turned = CaptionSpec(pair, "behind" if relation == "in front of" else "in front of")
            wrong += not right or is_true_of(turned, found)
    assert wrong <= 1


def test_touching_objects_of_one_color_are_split() -> None:
    scene = place(("large red square", (60, 300)), ("large red square", (490, 300)))
    image = render(scene)
    image[58:62, 57:64] = COLORS["red"]
    found = sorted(find_objects(image), key=lambda f: f.box.x1)
    assert [f.name for f in found] == ["large red square"] * 2
    # Each keeps its half of the bridge.
    for one, true in zip(found, scene.objects):
        assert _off(one.box, true.box) <= 32


def test_images_without_objects() -> None:
    rng = np.random.default_rng(0)
    assert find_objects(_fill(BACKGROUND)) == [] == find_objects(_fill((255, 255, 255)))
    assert find_objects(rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.uint8)) == []
    specks = _fill(BACKGROUND)
    specks[::4, ::4] = COLORS["red"]
    specks[21, :] = COLORS["blue"]
    assert find_objects(specks) == []


def test_shapeless_images_have_no_kinds_and_an_end() -> None:
    assert [f.kind for f in find_objects(_fill(COLORS["red"]))] == [None]
    for grey in (0, 60, 120):
        assert [f.name for f in find_objects(_fill((grey, grey, grey)))] == ["patch"]
    rng = np.random.default_rng(0)
    waves = gaussian_filter(rng.normal(0, 900, (IMAGE_SIZE, IMAGE_SIZE, 3)), (6, 6, 0)) + 128
    assert len(find_objects(np.clip(waves, 0, 255).astype(np.uint8))) <= MAX_FOUND


def test_images_of_other_sizes() -> None:
    image = Image.fromarray(render(TRUE_PAIR)).resize((301, 200), Image.Resampling.BICUBIC)
    assert sorted(f.name for f in find_objects(np.asarray(image))) == _names(TRUE_PAIR)


# --- the four terms ----------------------------------------------------------------------------


def test_true_examples_are_right_in_every_term() -> None:
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(100):
        example = sample_example(rng, "all")
        scores = _judge(example.caption, example.plan, example.scene)
        assert scores["sem"] == scores["spa"] == 1.0
        wrong += scores["ri"] < 0.93 or scores["pi"] < 1.0
    assert wrong <= 1


def test_unfaithful_examples_are_faithful_to_themselves_only() -> None:
    rng = np.random.default_rng(2)
    for _ in range(60):
        example = sample_example(rng, "all", unfaithful_fraction=1.0)
        scores = _judge(example.caption, example.plan, example.scene)
        assert scores["ri"] > 0.8 and scores["pi"] < 0.9
        assert min(scores["sem"], scores["spa"]) < 0.9


def test_depth() -> None:
    caption = "a small red circle in front of a large blue square"
    over = place(("small red circle", (230, 380)), ("large blue square", (400, 300)))
    _is(_judge(caption, over, over), sem=1, spa=1, ri=1, pi=1)
    # In the wrong order: boxes do not say it, the image does, and so do the plan's words.
    under = Scene(over.caption, over.objects, hidden_first=True)
    assert _judge(caption, over, under)["pi"] < 0.7
    parts = write_plan(over).split(" and ")
    for words, sem in ((" in front of ", 1.0), (" behind ", 0.5), (" left of ", 0.5)):
        assert _judge(caption, words.join(parts), over)["sem"] == sem
    # Apart: neither plan nor image has the relation.
    apart = place(("small red circle", (60, 380)), ("large blue square", (400, 300)))
    _is(_judge(caption, apart, apart), sem=1, spa=0, ri=1, pi=0.25)
    # Only the pair may overlap: of the third, 0.2 is inside of the square.
    third = place(
        ("small red circle", (230, 380)), ("large blue square", (400, 300)),
        ("small green moon", (752, 400)),
    )  # fmt: skip
    spa = _judge(f"{caption} and a green moon", third, third)["spa"]
    assert spa == pytest.approx(1 - 45 / 225)


def test_swapped_side() -> None:
    _is(_judge(PAIR, SWAPPED, SWAPPED), sem=1, spa=0, ri=1, pi=0.25)
    # Planned right, painted wrong: the boxes no longer meet.
    _is(_judge(PAIR, TRUE_PAIR, SWAPPED), sem=1, spa=1, ri=0, pi=0.25)
    _is(_judge(PAIR, SWAPPED, TRUE_PAIR), sem=1, spa=0, ri=0, pi=1)


def test_relation_is_graded() -> None:
    # Side by side at the same height, pushed into one another: separation falls linearly.
    scores = []
    for x in (560, 400, 310, 220):
        plan = place(("large red circle", LEFT), ("large blue square", (x, 300)))
        scores.append(_judge("a red circle left of a blue square", plan, plan)["spa"])
    assert scores[0] == 1.0 and scores == sorted(scores, reverse=True) and scores[-1] < 0.3


def test_wrong_attributes() -> None:
    caption = "a small red circle"
    right = place(("small red circle", MIDDLE))
    for wrong, share in (
        ("small green circle", 1 / 4),
        ("small red square", 1 / 4),
        ("large red circle", 1 / 2),
        ("large red star", 1 / 8),
        ("small green square", 0),
        ("large green square", 0),
    ):
        scene = place((wrong, MIDDLE))
        _is(_judge(caption, scene, scene), sem=share, spa=1, ri=1, pi=share)
        assert _judge(caption, right, scene)["pi"] == pytest.approx(share)
    # An open size takes either; a size not said where one is wanted costs half.
    large = place(("large red circle", MIDDLE))
    _is(_judge("a red circle", large, large), sem=1, spa=1, ri=1, pi=1)
    open_size = format_object("red circle", Box(300, 300, 697, 697))
    _is(_judge("a large red circle", open_size, large), sem=1 / 2, spa=1, ri=1, pi=1)


def test_missing_object() -> None:
    one = place(("large red circle", LEFT))
    # Half the objects, and no relation without the second.
    _is(_judge(PAIR, one, one), sem=0.5, spa=0, ri=1, pi=0.5 * 0.25)
    _is(_judge(PAIR, TRUE_PAIR, one), sem=1, spa=1, ri=0.5, pi=0.5 * 0.25)
    _is(_judge("a red circle and a blue square", one, one), sem=0.5, spa=0.5, ri=1, pi=0.5)


def test_extra_object() -> None:
    three = place(
        ("large red circle", LEFT),
        ("small blue square", (690, 380)),
        ("small green star", (60, 720)),
    )
    _is(_judge(PAIR, three, three), sem=2 / 3, spa=2 / 3, ri=1, pi=2 / 3)
    _is(_judge(PAIR, TRUE_PAIR, three), sem=1, spa=1, ri=1, pi=2 / 3)
    stained = render(TRUE_PAIR)
    stained[96:122, 4:30] = (0, 0, 0)  # a stain counts like an object
    assert _judge(PAIR, TRUE_PAIR, stained)["pi"] == pytest.approx(2 / 3)


def test_counts() -> None:
    corners = ((60, 60), (400, 60), (60, 400), (400, 400))
    scenes = [place(*(("small red circle", c) for c in corners[:n])) for n in range(1, 5)]
    for n, scene in enumerate(scenes, start=1):
        ratio = min(n, 3) / max(n, 3)
        _is(_judge("three red circles", scene, scene), sem=ratio, spa=ratio, ri=1, pi=ratio)
    # Two of three planned circles are found.
    _is(_judge("three red circles", scenes[2], scenes[1]), sem=1, spa=1, ri=2 / 3, pi=2 / 3)


def test_overlap_of_plan_and_image_by_hand() -> None:
    image = place(("large red circle", (250, 250)))  # to (647, 647)
    shifted = format_object("large red circle", Box(450, 250, 847, 647))
    # 197 of 397 wide is shared: 197 / (397 + 397 - 197).
    assert _judge("a red circle", shifted, image)["ri"] == pytest.approx(197 / 597, abs=0.02)
    # The size is compared by overlap, not by name.
    small = format_object("small red circle", Box(250, 250, 475, 475))
    assert _judge("a red circle", small, image)["ri"] == pytest.approx(225**2 / 397**2, abs=0.02)
    assert _judge("a red circle", format_object("red star", Box(250, 250, 625, 625)), image)[
        "ri"
    ] == pytest.approx(0.0)


def test_repeated_names_are_matched_optimally() -> None:
    image = place(("small red circle", (120, 120)), ("small red circle", (620, 620)))
    backwards = place(("small red circle", (620, 620)), ("small red circle", (120, 120)))
    _is(_judge("two red circles", backwards, image), sem=1, spa=1, ri=1, pi=1)


def test_invalid_and_overlapping_boxes() -> None:
    caption, image = "two red circles", render(place())
    good, name = Box(0, 0, 375, 375), "small red circle"

    def spa(*boxes: Box) -> float:
        text = " and ".join(format_object(name, b) for b in boxes)
        return _judge(caption, text, image)["spa"]

    assert spa(good, Box(500, 500, 900, 900)) == 1.0
    assert spa(good, Box(900, 500, 500, 900)) == 0.5  # inverted
    assert spa(good, Box(500, 500, 900, 1000)) == 0.5  # outside
    assert spa(good, Box(500, 500, 500, 900)) == 0.5  # empty
    assert spa(good, good) == 0.0  # one hides the other
    assert spa(good, Box(250, 0, 750, 375)) == pytest.approx(2 / 3)  # a third of the first
    # No valid box at all, with a relation or without.
    assert spa(Box(9, 0, 5, 9), Box(9, 0, 5, 9)) == spa(Box(9, 0, 5, 9)) == 0.0
    # A relation needs valid boxes.
    text = format_object("red circle", good) + format_object("blue square", Box(9, 0, 5, 9))
    assert _judge("a red circle left of a blue square", text, image)["spa"] == 0.0


def test_words_against_the_caption() -> None:
    circle, square = write_plan(TRUE_PAIR).split(" and ")
    for words, sem in (
        (" left of ", 1.0),
        (" and ", 1.0),
        (" next to ", 1.0),
        (" right of ", 0.5),
        (" above ", 0.5),
    ):
        assert _judge(PAIR, circle + words + square, TRUE_PAIR)["sem"] == sem
    assert _judge(PAIR, square + " right of " + circle, TRUE_PAIR)["sem"] == 1.0
    assert _judge(PAIR, square + " left of " + circle, TRUE_PAIR)["sem"] == 0.5


def test_broken_plans_score_low() -> None:
    for text in (
        "",
        "gibberish \U0001f600",
        "(1,2),(3,4)",
        "<|obj_start|>" * 50,
        "<|obj_start|>large red circle",
        "large red circle<|obj_end|> <|box_start|>(1,2),(3,4)<|box_end|>",
    ):
        _is(_judge(PAIR, text, TRUE_PAIR), sem=0, spa=0, ri=0, pi=1)
    nameless = format_object("a fine thing", Box(62, 312, 438, 688))
    _is(_judge("a red circle", nameless, place()), sem=0, spa=1, ri=0, pi=0)
    # Names without boxes are no plan; markers that belong to nothing cost their share.
    unboxed = "<|obj_start|>red circle<|obj_end|>"
    _is(_judge("a red circle", unboxed, place()), sem=0, spa=0, ri=0, pi=0)
    littered = format_object("red circle", Box(0, 0, 9, 9)) + "<|box_end|>" * 4
    assert _judge("a red circle", littered, place())["sem"] == 0.5
    many = format_object("red circle", Box(0, 0, 9, 9)) * 10_000
    _is(_judge("a red circle", many, place()), sem=1e-4, spa=0, ri=0, pi=0)


def test_blank_and_noise_images() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.uint8)
    for image in (_fill(BACKGROUND), _fill((255, 255, 255)), noise):
        _is(_judge(PAIR, TRUE_PAIR, image), sem=1, spa=1, ri=0, pi=0)


def test_captions_of_another_world_cannot_be_judged() -> None:
    nan = float("nan")
    for caption in ("", "a vase of tulips", "a red circle inside a blue square"):
        assert parse_caption(caption) is None
        _is(_judge(caption, TRUE_PAIR, TRUE_PAIR), sem=nan, spa=nan, ri=1, pi=nan)
        vase = format_object("vase", Box(1, 2, 3, 4))
        _is(_judge(caption, vase, TRUE_PAIR), sem=nan, spa=nan, ri=nan, pi=nan)
        _is(_judge(caption, "", TRUE_PAIR), sem=nan, spa=nan, ri=nan, pi=nan)


def test_results_hold_what_was_found() -> None:
    request = JudgeRequest(PAIR, parse_plan(write_plan(TRUE_PAIR)), render(TRUE_PAIR))
    (result,) = ShapesJudge().judge([request])
    assert [name for name, _ in result.detections] == ["large red circle", "small blue square"]
    for (_, box), drawn in zip(result.detections, TRUE_PAIR.objects):
        assert _off(box, drawn.box) <= 4
    assert "left of: plan 1.00, image 1.00" in result.rationale


def test_names() -> None:
    assert parse_name(" Small  RED circle") == ObjectSpec("circle", "red", "small")
    for name in ("", "red", "circle", "red circles", "a red circle", "red circle and a red star"):
        assert parse_name(name) is None
    assert likeness(ObjectSpec("circle", "red"), None) == 0.0
