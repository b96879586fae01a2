"""The shapes judge: detection on rendered images, and each term on constructed cases."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from gotr1_jax.plan import Box, format_object, parse_plan
from gotr1_jax.rewards.base import JudgeRequest
from gotr1_jax.rewards.shapes import ShapesJudge
from gotr1_jax.shapes.captions import CaptionSpec, ObjectSpec, parse_caption
from gotr1_jax.shapes.dataset import sample_example
from gotr1_jax.shapes.detect import MAX_FOUND, find_objects
from gotr1_jax.shapes.judge import likeness, parse_name
from gotr1_jax.shapes.plans import write_plan
from gotr1_jax.shapes.render import render
from gotr1_jax.shapes.scenes import Scene, SceneObject
from gotr1_jax.shapes.vocabulary import BACKGROUND, COLORS, SHAPES, SIZE_PIXELS, SIZES

LEFT, RIGHT, MIDDLE = (4, 20), (36, 20), (20, 20)


def _scene(*placed: tuple[str, tuple[int, int]]) -> Scene:
    """A scene of named objects ("large red circle") at top-left corners in pixels."""
    objects = []
    for name, (x, y) in placed:
        size, color, shape = name.split()
        side = SIZE_PIXELS[size]
        spec = ObjectSpec(shape=shape, color=color, size=size)
        objects.append(SceneObject(spec, (x, y, x + side, y + side)))
    return Scene(CaptionSpec(tuple(o.spec for o in objects)), tuple(objects))


def _judge(caption: str, plan: Scene | str, raw_image: Scene | np.ndarray) -> dict[str, float]:
    text = plan if isinstance(plan, str) else write_plan(plan)
    image = raw_image if isinstance(raw_image, np.ndarray) else render(raw_image)
    (result,) = ShapesJudge().judge([JudgeRequest(caption, parse_plan(text), image)])
    assert set(result.scores) == {"sem", "spa", "ri", "pi"} and "\n" not in result.rationale
    return {k: float(v) for k, v in result.scores.items()}


def _is(scores: dict[str, float], sem: float, spa: float, ri: float, pi: float) -> None:
    assert scores == pytest.approx({"sem": sem, "spa": spa, "ri": ri, "pi": pi}, nan_ok=True)


PAIR = "a large red circle left of a small blue square"
TRUE_PAIR = _scene(("large red circle", LEFT), ("small blue square", (44, 24)))
SWAPPED = _scene(("large red circle", RIGHT), ("small blue square", (6, 24)))


def _fill(color: tuple[int, int, int]) -> np.ndarray:
    return np.broadcast_to(np.uint8(color), (64, 64, 3)).copy()


# --- detection ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("color", "shape"), list(itertools.product(COLORS, SHAPES)))
def test_every_object_is_found_exactly(color: str, shape: str) -> None:
    for size in SIZES:
        last = 62 - SIZE_PIXELS[size]
        for corner in ((2, 2), (20, 30), (last, last), (0, 64 - SIZE_PIXELS[size])):
            scene = _scene((f"{size} {color} {shape}", corner))
            for pixels in (64, 384):
                (found,) = find_objects(render(scene, pixels))
                assert (found.name, found.box) == (
                    f"{size} {color} {shape}",
                    scene.objects[0].box,
                )
                assert found.fit == 1.0


def _names(scene: Scene) -> list[str]:
    return sorted(o.spec.name for o in scene.objects)


@pytest.mark.parametrize(
    ("blur", "noise", "off"), [(0.0, 0, 0), (0.8, 0, 1), (1.4, 0, 2), (0.7, 12, 1)]
)
def test_blurred_images_are_read_alike(blur: float, noise: float, off: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        scene = sample_example(rng, "all").scene
        image = gaussian_filter(render(scene).astype(float), (blur, blur, 0))
        image = np.clip(image + rng.normal(0, 1, image.shape) * noise, 0, 255).astype(np.uint8)
        found = find_objects(image)
        assert sorted(f.name for f in found) == _names(scene)
        assert min(f.fit for f in found) > 0.7
        for obj in scene.objects:
            nearest = min(np.abs(np.subtract(f.box, obj.box)).max() for f in found)
            assert nearest <= off


def test_touching_objects_of_one_color_are_split() -> None:
    image = render(_scene(("large red square", (4, 20)), ("large red square", (32, 20))))
    image[30:32, 28:32] = COLORS["red"]
    found = sorted(find_objects(image), key=lambda f: f.box)
    assert [f.name for f in found] == ["large red square"] * 2
    # Each keeps its half of the bridge.
    assert [f.box for f in found] == [(4, 20, 30, 44), (30, 20, 56, 44)]


def test_images_without_objects() -> None:
    rng = np.random.default_rng(0)
    assert find_objects(_fill(BACKGROUND)) == [] == find_objects(_fill((255, 255, 255)))
    assert find_objects(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)) == []
    specks = _fill(BACKGROUND)
    specks[::4, ::4] = COLORS["red"]
    specks[10, :] = COLORS["blue"]
    assert find_objects(specks) == []


def test_shapeless_images_have_no_kinds_and_an_end() -> None:
    assert [f.kind for f in find_objects(_fill(COLORS["red"]))] == [None]
    for grey in (0, 60, 120):
        assert [f.name for f in find_objects(_fill((grey, grey, grey)))] == ["patch"]
    rng = np.random.default_rng(0)
    waves = gaussian_filter(rng.normal(0, 900, (64, 64, 3)), (3, 3, 0)) + 128
    assert len(find_objects(np.clip(waves, 0, 255).astype(np.uint8))) <= MAX_FOUND


def test_images_of_other_sizes() -> None:
    image = Image.fromarray(render(TRUE_PAIR)).resize((301, 200), Image.Resampling.BICUBIC)
    assert sorted(f.name for f in find_objects(np.asarray(image))) == _names(TRUE_PAIR)


# --- the four terms ----------------------------------------------------------------------------


def test_true_examples_are_right_in_every_term() -> None:
    rng = np.random.default_rng(1)
    for _ in range(150):
        example = sample_example(rng, "all")
        assert min(_judge(example.caption, example.plan, example.scene).values()) == 1.0


def test_unfaithful_examples_are_faithful_to_themselves_only() -> None:
    rng = np.random.default_rng(2)
    for _ in range(100):
        example = sample_example(rng, "all", unfaithful_fraction=1.0)
        scores = _judge(example.caption, example.plan, example.scene)
        assert scores["ri"] == 1.0 and scores["pi"] < 0.9
        assert min(scores["sem"], scores["spa"]) < 0.9


def test_swapped_side() -> None:
    _is(_judge(PAIR, SWAPPED, SWAPPED), sem=1, spa=0, ri=1, pi=0.25)
    # Planned right, painted wrong: the boxes no longer meet.
    _is(_judge(PAIR, TRUE_PAIR, SWAPPED), sem=1, spa=1, ri=0, pi=0.25)
    _is(_judge(PAIR, SWAPPED, TRUE_PAIR), sem=1, spa=0, ri=0, pi=1)


def test_relation_is_graded() -> None:
    # Side by side at the same height, pushed into one another: separation falls linearly.
    scores = []
    for x in (36, 26, 20, 14):
        plan = _scene(("large red circle", LEFT), ("large blue square", (x, 20)))
        scores.append(_judge("a red circle left of a blue square", plan, plan)["spa"])
    assert scores[0] == 1.0 and scores == sorted(scores, reverse=True) and scores[-1] < 0.3


def test_wrong_attributes() -> None:
    caption = "a small red circle"
    right = _scene(("small red circle", MIDDLE))
    for wrong, share in (
        ("small green circle", 1 / 4),
        ("small red square", 1 / 4),
        ("large red circle", 1 / 2),
        ("large red cross", 1 / 8),
        ("small green square", 0),
        ("large green square", 0),
    ):
        scene = _scene((wrong, MIDDLE))
        _is(_judge(caption, scene, scene), sem=share, spa=1, ri=1, pi=share)
        assert _judge(caption, right, scene)["pi"] == pytest.approx(share)
    # An open size takes either; a size not said where one is wanted costs half.
    large = _scene(("large red circle", MIDDLE))
    _is(_judge("a red circle", large, large), sem=1, spa=1, ri=1, pi=1)
    open_size = format_object("red circle", Box(312, 312, 688, 688))
    _is(_judge("a large red circle", open_size, large), sem=1 / 2, spa=1, ri=1, pi=1)


def test_missing_object() -> None:
    one = _scene(("large red circle", LEFT))
    # Half the objects, and no relation without the second.
    _is(_judge(PAIR, one, one), sem=0.5, spa=0, ri=1, pi=0.5 * 0.25)
    _is(_judge(PAIR, TRUE_PAIR, one), sem=1, spa=1, ri=0.5, pi=0.5 * 0.25)
    _is(_judge("a red circle and a blue square", one, one), sem=0.5, spa=0.5, ri=1, pi=0.5)


def test_extra_object() -> None:
    three = _scene(
        ("large red circle", LEFT), ("small blue square", (44, 24)), ("small green cross", (4, 46))
    )
    _is(_judge(PAIR, three, three), sem=2 / 3, spa=2 / 3, ri=1, pi=2 / 3)
    _is(_judge(PAIR, TRUE_PAIR, three), sem=1, spa=1, ri=1, pi=2 / 3)
    stained = render(TRUE_PAIR)
    stained[48:60, 2:14] = (0, 0, 0)  # a stain counts like an object
    assert _judge(PAIR, TRUE_PAIR, stained)["pi"] == pytest.approx(2 / 3)


def test_counts() -> None:
    corners = ((4, 4), (24, 4), (4, 24), (24, 24))
    scenes = [_scene(*(("small red circle", c) for c in corners[:n])) for n in range(1, 5)]
    for n, scene in enumerate(scenes, start=1):
        ratio = min(n, 3) / max(n, 3)
        _is(_judge("three red circles", scene, scene), sem=ratio, spa=ratio, ri=1, pi=ratio)
    # Two of three planned circles are found.
    _is(_judge("three red circles", scenes[2], scenes[1]), sem=1, spa=1, ri=2 / 3, pi=2 / 3)


def test_overlap_of_plan_and_image_by_hand() -> None:
    image = _scene(("large red circle", (16, 16)))  # (250, 250), (625, 625)
    shifted = format_object("large red circle", Box(438, 250, 813, 625))
    # 187 of 375 wide is shared: 187 / (375 + 375 - 187).
    assert _judge("a red circle", shifted, image)["ri"] == pytest.approx(187 / 563)
    # The size is compared by overlap, not by name: 14² of 24² pixels.
    small = format_object("small red circle", Box(250, 250, 469, 469))
    assert _judge("a red circle", small, image)["ri"] == pytest.approx(219**2 / 375**2)
    assert _judge("a red circle", format_object("red cross", Box(250, 250, 625, 625)), image)[
        "ri"
    ] == pytest.approx(0.0)


def test_repeated_names_are_matched_optimally() -> None:
    image = _scene(("small red circle", (8, 8)), ("small red circle", (40, 40)))
    backwards = _scene(("small red circle", (40, 40)), ("small red circle", (8, 8)))
    _is(_judge("two red circles", backwards, image), sem=1, spa=1, ri=1, pi=1)


def test_invalid_and_overlapping_boxes() -> None:
    caption, image = "two red circles", render(_scene())
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
    _is(_judge("a red circle", nameless, _scene()), sem=0, spa=1, ri=0, pi=0)
    # Names without boxes are no plan; markers that belong to nothing cost their share.
    unboxed = "<|obj_start|>red circle<|obj_end|>"
    _is(_judge("a red circle", unboxed, _scene()), sem=0, spa=0, ri=0, pi=0)
    littered = format_object("red circle", Box(0, 0, 9, 9)) + "<|box_end|>" * 4
    assert _judge("a red circle", littered, _scene())["sem"] == 0.5
    many = format_object("red circle", Box(0, 0, 9, 9)) * 10_000
    _is(_judge("a red circle", many, _scene()), sem=1e-4, spa=0, ri=0, pi=0)


def test_blank_and_noise_images() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
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
    assert result.detections == (
        ("large red circle", Box(62, 312, 438, 688)),
        ("small blue square", Box(688, 375, 906, 594)),
    )
    assert "left of: plan 1.00, image 1.00" in result.rationale


def test_names() -> None:
    assert parse_name(" Small  RED circle") == ObjectSpec("circle", "red", "small")
    for name in ("", "red", "circle", "red circles", "a red circle", "red circle and a red cross"):
        assert parse_name(name) is None
    assert likeness(ObjectSpec("circle", "red"), None) == 0.0


def test_speed() -> None:
    rng = np.random.default_rng(3)
    examples = [sample_example(rng, "all") for _ in range(128)]
    requests = [JudgeRequest(e.caption, parse_plan(e.plan), render(e.scene)) for e in examples]
    judge = ShapesJudge()
    judge.judge(requests)
    begin = time.process_time()
    judge.judge(requests)
    assert (time.process_time() - begin) / len(requests) < 0.004
