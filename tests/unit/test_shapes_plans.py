"""Rationales of the shapes world: true of the image, writable by the embedded tokenizer."""

from __future__ import annotations

import re

import pytest

from gotr1_jax.convert.find import EMBEDDED
from gotr1_jax.plan import parse_plan
from gotr1_jax.shapes.captions import CaptionSpec, ObjectSpec, parse_caption
from gotr1_jax.shapes.dataset import ShapesSource
from gotr1_jax.shapes.plans import CENTER, place_in_words, write_rationale
from gotr1_jax.shapes.scenes import Scene, SceneObject, relation_score
from gotr1_jax.tokenizers.janus import TextTokenizer

RED, BLUE = ObjectSpec("circle", "red", "small"), ObjectSpec("square", "blue", "large")


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((2, 2, 16, 16), "above left"),  # middle (9, 9)
        ((20, 20, 44, 44), CENTER),  # middle (32, 32)
        ((14, 20, 28, 44), "left"),  # middle (21, 32); 21 < 64 / 3
        ((16, 20, 28, 44), CENTER),  # middle (22, 32)
        ((36, 36, 50, 50), "below right"),  # middle (43, 43); 43 > 128 / 3
        ((48, 2, 62, 16), "above right"),
        ((2, 48, 16, 62), "below left"),
        ((20, 0, 44, 20), "above"),
    ],
)
def test_places_by_hand(box: tuple[int, int, int, int], words: str) -> None:
    assert place_in_words(box) == words


def test_rationales_by_hand() -> None:
    left, right = SceneObject(RED, (2, 2, 16, 16)), SceneObject(BLUE, (38, 20, 62, 44))
    said = "a small red circle (above left) left of a large blue square (right)"
    for relation in ("left of", "right of", "above"):  # the caption may be wrong, words are not
        caption = CaptionSpec((RED, BLUE), relation)
        assert write_rationale(Scene(caption, (left, right))) == said
    alone = Scene(CaptionSpec((RED, BLUE)), (left, right))
    assert write_rationale(alone) == said.replace("left of", "and")


SOURCE = ShapesSource("train", 400, 7, 0.4, "rationale")
PART = re.compile(r"a (small|large) (\w+) (\w+) \(([a-z ]+)\)")


@pytest.mark.parametrize("start", range(0, 400, 100))
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
            boxes = [[v / 64 for v in o.box] for o in objects[:2]]
            assert words == "and" or relation_score(words, boxes[0], boxes[1]) == 1.0
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
    assert 0.33 < wrong / len(SOURCE) < 0.47


def test_plans_and_images_stay_the_same() -> None:
    boxes = ShapesSource("train", 400, 7, 0.4)
    assert boxes.key == SOURCE.key  # tokens of images are shared
    assert boxes.text(3)[0] == SOURCE.text(3)[0] and boxes.text(3)[1] == boxes[3].plan


def test_the_embedded_tokenizer_writes_rationales_shortly() -> None:
    tokenizer = TextTokenizer.from_dir(EMBEDDED)
    for index in range(len(SOURCE)):
        _, text = SOURCE.text(index)
        ids = tokenizer.encode_plan(text)
        assert tokenizer.decode(ids) == text
        assert len(ids) < 48
