"""Rationales of the shapes world: true of the image, writable by the embedded tokenizer."""

from __future__ import annotations

import re

import pytest

from gotr1_jax.convert.find import EMBEDDED
from gotr1_jax.plan import Box, parse_plan
from gotr1_jax.shapes.captions import CaptionSpec, ObjectSpec, parse_caption
from gotr1_jax.shapes.dataset import ShapesSource
from gotr1_jax.shapes.plans import CENTER, place_in_words, write_rationale
from gotr1_jax.shapes.scenes import Scene, SceneObject, relation_score
from gotr1_jax.tokenizers.janus import TextTokenizer

RED, BLUE = ObjectSpec("circle", "red", "small"), ObjectSpec("square", "blue", "large")


@pytest.mark.parametrize(
    ("box", "words"),
    [
        (Box(15, 15, 250, 250), "above left"),
        (Box(312, 312, 688, 688), CENTER),  # middle (500, 500)
        (Box(233, 312, 433, 688), "left"),  # middle (333, 500); a third is 333.3
        (Box(234, 312, 434, 688), CENTER),  # middle (334, 500)
        (Box(567, 567, 767, 767), "below right"),  # middle (667, 667); two thirds are 666.7
        (Box(566, 566, 766, 766), CENTER),
        (Box(750, 15, 985, 250), "above right"),
        (Box(15, 750, 250, 985), "below left"),
        (Box(312, 0, 688, 312), "above"),
    ],
)
def test_places_by_hand(box: Box, words: str) -> None:
    assert place_in_words(box) == words


def test_rationales_by_hand() -> None:
    left = SceneObject(RED, Box(31, 31, 250, 250))
    right = SceneObject(BLUE, Box(594, 312, 969, 688))
    said = "a small red circle (above left) left of a large blue square (right)"
    # The caption may be wrong, words are not.
    for relation in ("left of", "right of", "above", "behind", "in front of"):
        caption = CaptionSpec((RED, BLUE), relation)
        assert write_rationale(Scene(caption, (left, right))) == said
    alone = Scene(CaptionSpec((RED, BLUE)), (left, right))
    assert write_rationale(alone) == said.replace("left of", "and")
    over = SceneObject(RED, Box(500, 400, 720, 620))
    for relation in ("behind", "in front of"):
        scene = Scene(CaptionSpec((RED, BLUE), relation), (over, right), relation == "behind")
        assert f"({CENTER}) {relation} a large" in write_rationale(scene)


SOURCE = ShapesSource("train", 200, 7, 0.4, "rationale")
PART = re.compile(r"a (small|medium|large) (\w+) (\w+) \(([a-z ]+)\)")


@pytest.mark.parametrize("start", range(0, 200, 100))
def test_every_rationale_is_true_of_its_image(start: int) -> None:
    for index in range(start, start + 100):
        objects = SOURCE[index].scene.objects
        _, text = SOURCE.text(index)
        parts = list(PART.finditer(text))
        found = [(m[1], m[2], m[3], m[4]) for m in parts]
        drawn = [(o.spec.size, o.spec.color, o.spec.shape, place_in_words(o.box)) for o in objects]
        assert found == drawn
        between = [text[a.end() : b.start()].strip() for a, b in zip(parts, parts[1:])]
        for words in between[:1]:
            boxes = [o.relative_box for o in objects[:2]]
            assert words == "and" or relation_score(words, *boxes) == 1.0
        assert set(between[1:]) <= {"and"}
        assert not parse_plan(text).boxes


def test_the_unfaithful_share_contradicts_the_caption() -> None:
    wrong = 0
    for index in range(len(SOURCE)):
        caption, text = SOURCE.text(index)
        spec = parse_caption(caption)
        assert spec is not None
        named = [(m[2], m[3]) for m in PART.finditer(text)]
        against = named != [o.kind for o in spec.objects]
        against |= spec.relation is not None and f") {spec.relation} a" not in text
        assert against == (not SOURCE[index].faithful)
        wrong += against
    # 0.4, without contradictions that would show a held-out composition.
    assert 0.26 < wrong / len(SOURCE) < 0.45


def test_plans_and_images_stay_the_same() -> None:
    boxes = ShapesSource("train", 200, 7, 0.4)
    assert boxes.key == SOURCE.key  # tokens of images are shared
    assert boxes.text(3)[0] == SOURCE.text(3)[0] and boxes.text(3)[1] == boxes[3].plan


def test_the_embedded_tokenizer_writes_rationales_shortly() -> None:
    tokenizer = TextTokenizer.from_dir(EMBEDDED)
    for index in range(len(SOURCE)):
        _, text = SOURCE.text(index)
        ids = tokenizer.encode_plan(text)
        assert tokenizer.decode(ids) == text
        assert len(ids) < 48
