"""The benchmarks' formulas on numbers worked out by hand."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gotr1_jax.data.captions import iter_captions
from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.compbench_rules import (
    attribute_score,
    classify_complex,
    complex_objects,
    phrase_questions,
    position_score,
    read_complex_lists,
    simple_objects,
    spatial_relation,
    spatial_score,
    without_adjectives,
)
from gotr1_jax.evaluation.detections import Detection
from gotr1_jax.evaluation.dpg_rules import Proposition, dependent_scores, read_questions
from gotr1_jax.evaluation.geneval_rules import (
    RELATIONS,
    TAGS,
    GenevalPrompt,
    Requirement,
    check_image,
    filter_detections,
    objects_to_color,
    parse_prompt,
    read_prompts,
    relations,
)
from gotr1_jax.evaluation.phrases import ParsedCaption, Word

SIZE = (479, 479)


def square(x: float, y: float, score: float = 0.8, side: float = 100) -> Detection:
    """A square with its middle at (x, y)."""
    return Detection(x - side / 2, y - side / 2, x + side / 2, y + side / 2, score)


def parsed(*words: tuple[str, str], phrases: tuple[str, ...] = ()) -> ParsedCaption:
    return ParsedCaption(tuple(Word(*word) for word in words), phrases)


# T2I-CompBench


def test_noun_phrases_become_questions_but_for_four_and_at_most_eight() -> None:
    read = parsed(phrases=("a cat", "the left", "top", "the side", "the right", "The top"))
    assert phrase_questions(read) == ["a cat?", "The top?"]
    assert len(phrase_questions(parsed(phrases=tuple("abcdefghij")))) == 8


def test_attributes_are_a_product() -> None:
    assert attribute_score([0.5, 0.8]) == pytest.approx(0.4)
    assert attribute_score([]) == 1
    assert math.isnan(attribute_score([0.0, math.nan]))


@pytest.mark.parametrize(
    "place, dx, dy, score",
    [
        # Middles of b - middles of a; squares of 100 pixels, 479 pixels in all.
        ("on the left of", 200, 100, 1), ("on the left of", -200, 0, 0),
        ("on the left of", 100, 150, 0), ("on the left of", 100, 100, 0),
        ("on the right of", -200, 100, 1), ("on the right of", 200, 0, 0),
        ("on the right of", 0, 0, 0), ("on the right of", -100, 150, 0),
        ("on the top of", 100, 200, 1), ("on the top of", 0, -200, 0),
        ("on the top of", 250, 200, 0), ("on the bottom of", 100, -200, 1),
        ("on the bottom of", 0, 200, 0), ("on the bottom of", 250, -200, 0),
        # Overlap 20 x 100 of 18000: IoU 1/9, which leaves 0.1 * 9.
        ("on the left of", 80, 0, 0.9), ("on the right of", -80, 0, 0.9),
        ("on the top of", 0, 80, 0.9), ("on the bottom of", 0, -80, 0.9),
        # Overlap 15 x 100 of 18500: IoU 0.081, below 0.1.
        ("on the left of", 85, 0, 1),
        # One distance below 150 is enough; else 150 over the larger.
        ("next to", 149, 400, 1), ("near", 400, -149, 1), ("on side of", 150, 300, 0.5),
        ("next to", -200, 160, 0.75),
        ("on top of", 0, 200, 0), (None, 0, 0, 0),
    ],
)  # fmt: skip
def test_positions(place: str | None, dx: float, dy: float, score: float) -> None:
    assert position_score(place, square(0, 0), square(dx, dy), SIZE) == pytest.approx(score)


@pytest.mark.parametrize(
    "size, score",
    # Scaled to a shorter side of 479, but none above 480: 479/958, 480/1200, 480/384 of 200 pixels.
    [((958, 958), 1.0), ((1200, 400), 1.0), ((384, 384), 150 / (200 * 479 / 384))],
)
def test_nearness_is_measured_in_images_of_479_pixels(size: tuple[int, int], score: float) -> None:
    a, b = square(0, 0), square(200, 200)
    assert position_score("near", a, b, size) == pytest.approx(score)


def test_spatial_is_half_position_and_a_quarter_each_object() -> None:
    a, b = square(0, 0, 0.9), square(200, 0, 0.7)
    assert spatial_score("on the left of", [a], [b], SIZE) == pytest.approx(0.9)
    # 0.4 without the position: below a half, so nothing.
    assert spatial_score("on the right of", [a], [b], SIZE) == 0
    assert spatial_score("on the left of", [a], [], SIZE) == 0
    assert spatial_score("on the left of", [], [], SIZE) == 0
    # 0.45 + 0.1/2: two sure objects that are not next to each other.
    far = position_score("near", square(0, 0), square(1500, 1500), SIZE)
    assert far == pytest.approx(0.1)
    score = spatial_score("near", [square(0, 0, 0.9)], [square(1500, 1500, 0.9)], SIZE)
    assert score == pytest.approx(0.5)
    # The best of each name decides.
    assert spatial_score("on the left of", [a, b], [b, a], SIZE) == pytest.approx(0.9)


def test_relations_in_their_order() -> None:
    assert spatial_relation("a cat next to a dog near a car") == "next to"
    assert spatial_relation("a cat on side of a dog next to me") == "on side of"
    assert spatial_relation("a hat on the top of a dog") == "on the top of"
    assert spatial_relation("a hat on top of a dog") == "on top of"
    assert spatial_relation("a hat above a dog") is None


def test_objects_of_a_spatial_caption_are_its_first_and_last_noun() -> None:
    read = parsed(("a", "DET"), ("girl", "NOUN"), ("on", "ADP"), ("the", "DET"),
                   ("right", "NOUN"), ("of", "ADP"), ("cows", "NOUN"))  # fmt: skip
    assert simple_objects(read) == ("person", "cows")
    assert simple_objects(parsed(("red", "ADJ"))) is None


def test_objects_of_a_complex_caption_are_the_nouns_around_its_relation() -> None:
    hat = (("the", "DET"), ("red", "ADJ"), ("hat", "NOUN"), ("was", "AUX"))
    rack = (("the", "DET"), ("coat", "NOUN"), ("rack", "NOUN"))
    top = (("on", "ADP"), ("top", "NOUN"), ("of", "ADP"))
    assert complex_objects(parsed(*hat, *top, *rack)) == ("hat", "coat")
    names = (("New", "PROPN"), ("York", "PROPN"), (".", "PUNCT"))
    assert complex_objects(parsed(*hat, ("near", "ADP"), *names)) == ("hat", "York")
    next_to = (("next", "ADV"), ("to", "ADP"))
    assert complex_objects(parsed(*hat, *next_to, ("boy", "NOUN"))) == ("hat", "person")
    # Two relations name four objects, none names none.
    assert complex_objects(parsed(*hat, *next_to, *rack, *top, *rack)) is None
    assert complex_objects(parsed(*hat, ("in", "ADP"), *rack)) is None
    assert without_adjectives(parsed(*hat, *top, *rack)) == "the hat was on top of the coat rack"


def test_parts_of_complex_captions_by_the_lists_and_by_words(tmp_path: Path) -> None:
    captions = ["The hat was on top of the rack.", "The dog lay. It slept.", "A cat sat near it."]
    file = tmp_path / "complex_val.txt"
    assert read_complex_lists(file) == {}
    (tmp_path / "complex_val_spatial.txt").write_text("THE hat was on top of the rack\n")
    with pytest.raises(InputError, match="both or neither"):
        read_complex_lists(file)
    (tmp_path / "complex_val_action.txt").write_text("the dog lay.\nno other\n")
    by_lists = classify_complex(captions, read_complex_lists(file))
    assert by_lists == ["spatial", "action", "both"]
    assert classify_complex(captions, {}) == by_lists


def test_published_parts_are_met_by_words(shared: Path) -> None:
    file = shared / "prompts" / "t2i_compbench" / "complex_val.txt"
    captions = [line.text for line in iter_captions(file)]
    # The published lists have 58, 212 and 30; one of the 30 has no relation.
    assert Counter(classify_complex(captions, {})) == {"spatial": 58, "action": 213, "both": 29}


# GenEval


@pytest.mark.parametrize(
    "x, y, held",
    [
        # b is a square of 100 at the origin; a tenth of both widths, 20 pixels, is taken off.
        (-200, 0, {"left of"}), (200, 0, {"right of"}), (0, -200, {"above"}), (0, 200, {"below"}),
        (20, 0, set()), (20, -20, set()), (0, 0, set()),
        # (40 - 20) / 40 is a half and no more.
        (40, 0, set()), (41, 0, {"right of"}),
        # 180 / (200 * sqrt 2) = 0.64 in both directions.
        (200, 200, {"right of", "below"}), (-200, -200, {"left of", "above"}),
        # 180 / 269 = 0.67 and 160 / 269 = 0.59; then 80 / 224 = 0.36.
        (200, 180, {"right of", "below"}), (200, 100, {"right of"}),
    ],
)  # fmt: skip
def test_relations(x: float, y: float, held: set[str]) -> None:
    assert relations(square(x, y), square(0, 0)) == held


def judged(
    metadata: GenevalPrompt, colors: dict[Detection, str] | None = None, **found: Any
) -> bool:
    objects = {name: filter_detections(metadata, found.get(name, [])) for name in metadata.names}
    named = {
        (wanted.color, f): (colors or {})[f]
        for wanted in metadata.include
        for f in objects_to_color(wanted, objects)
    }
    return check_image(metadata, objects, named)[0]


def test_objects_count_above_a_threshold() -> None:
    dog = GenevalPrompt("single_object", "a dog", (Requirement("dog", 1),), ())
    assert judged(dog, dog=[square(0, 0, 0.31)])
    assert not judged(dog, dog=[square(0, 0, 0.3)])
    pair = GenevalPrompt("two_object", "", (Requirement("dog", 1), Requirement("cat", 1)), ())
    assert judged(pair, dog=[square(0, 0)], cat=[square(9, 0)])
    assert not judged(pair, dog=[square(0, 0), square(9, 0)])


def test_counting_wants_as_many_and_no_more_at_a_higher_threshold() -> None:
    two = GenevalPrompt("counting", "", (Requirement("dog", 2),), (Requirement("dog", 3),))
    sure = [square(x, 0, 0.95) for x in range(3)]
    assert judged(two, dog=sure[:2]) and judged(two, dog=[*sure[:2], square(9, 0, 0.9)])
    assert not judged(two, dog=sure) and not judged(two, dog=sure[:1])


def test_no_more_than_sixteen_objects_are_seen() -> None:
    many = [square(x, 0, 0.5 + x / 100) for x in range(20)]
    dog = GenevalPrompt("single_object", "", (Requirement("dog", 1),), ())
    kept = filter_detections(dog, many)
    assert len(kept) == 16 and kept[0] == many[19] and kept[-1] == many[4]


def test_colors_of_the_best_objects_only() -> None:
    red = GenevalPrompt("colors", "", (Requirement("dog", 1, "red"),), ())
    best, second = square(0, 0, 0.9), square(9, 0, 0.8)
    assert judged(red, {best: "red"}, dog=[second, best])
    assert not judged(red, {best: "blue"}, dog=[second, best])
    two = GenevalPrompt(
        "color_attr",
        "",
        (Requirement("dog", 1, "red"), Requirement("cat", 1, "blue")),
        (),
    )
    assert judged(two, {best: "red", second: "blue"}, dog=[best], cat=[second])
    assert not judged(two, {best: "red", second: "red"}, dog=[best], cat=[second])
    assert not judged(two, {best: "red"}, dog=[best])


def test_positions_hold_for_the_best_objects_of_both() -> None:
    left = GenevalPrompt(
        "position",
        "",
        (Requirement("cat", 1), Requirement("dog", 1, "", "left of", 0)),
        (),
    )
    cat = square(0, 0)
    assert judged(left, cat=[cat], dog=[square(-200, 0)])
    assert judged(left, cat=[cat], dog=[square(-200, 0, 0.9), square(200, 0, 0.8)])
    assert not judged(left, cat=[cat], dog=[square(200, 0, 0.9), square(-200, 0, 0.8)])
    assert not judged(left, dog=[square(-200, 0)])
    # The group that it refers to must be right itself.
    red = GenevalPrompt(
        "position",
        "",
        (Requirement("cat", 1, "red"), Requirement("dog", 1, "", "left of", 0)),
        (),
    )
    assert judged(red, {cat: "red"}, cat=[cat], dog=[square(-200, 0)])
    assert not judged(red, {cat: "blue"}, cat=[cat], dog=[square(-200, 0)])


def test_all_of_genevals_metadata(shared: Path) -> None:
    path = shared / "prompts" / "geneval_metadata.jsonl"
    found = read_prompts(path)
    assert len(found) == 553
    numbers = Counter(metadata.tag for metadata in found)
    assert [numbers[tag] for tag in TAGS] == [80, 99, 80, 94, 100, 100]
    assert {w.relation for m in found for w in m.include} == {"", *RELATIONS}
    assert all(bool(m.exclude) == (m.tag == "counting") for m in found)
    assert sum(bool(w.color) for m in found for w in m.include) == 94 + 200
    # An image that shows exactly what is wanted is right, one that shows nothing is wrong.
    for metadata in found:
        objects: dict[str, list[Detection]] = {}
        colors: dict[Detection, str] = {}
        for i, wanted in enumerate(metadata.include):
            x, y = {"left of": (-500, 0), "right of": (500, 0), "above": (0, -500),
                    "below": (0, 500)}.get(wanted.relation, (9 * i, 0))  # fmt: skip
            for k in range(wanted.count):
                placed = square(x, y + k, 0.95 - k / 1000)
                objects.setdefault(wanted.name, []).append(placed)
                colors[placed] = wanted.color
        assert judged(metadata, colors, **objects), metadata
        assert not judged(metadata), metadata


@pytest.mark.parametrize(
    "line, message",
    [
        ("a red circle", "no line of GenEval's metadata"),
        ('{"prompt": "a dog"}', "no line of GenEval's metadata"),
        ('{"tag": "style", "prompt": "a", "include": []}', "tag 'style' is none of"),
        (
            '{"tag": "position", "prompt": "a", "include": '
            '[{"class": "a", "count": 1, "position": ["left of", 0]}]}',
            "comes later",
        ),
        (
            '{"tag": "position", "prompt": "a", "include": '
            '[{"class": "a", "count": 1, "position": ["inside", 0]}]}',
            "unknown position",
        ),
    ],
)
def test_metadata_of_something_else(line: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        parse_prompt(line, "m.jsonl, line 3")
    assert str(error.value).startswith("m.jsonl, line 3") and "\n" not in str(error.value)


# DPG-Bench

HEAD = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
    "question_natural_language\n"
)


def test_a_child_of_a_failed_parent_is_zero() -> None:
    questions = [
        Proposition(n, parents, "entity - whole", f"{n}?")
        for n, parents in [(1, ()), (2, (1,)), (3, (2,)), (4, (1, 5)), (5, ())]
    ]
    yes = dict.fromkeys(range(1, 6), True)
    assert sum(dependent_scores(questions, yes).values()) == 5
    # The child of a child falls, too; what does not depend on it stays.
    assert dependent_scores(questions, {**yes, 1: False}) == {1: 0, 2: 0, 3: 0, 4: 0, 5: 1}
    assert dependent_scores(questions, {**yes, 2: False}) == {1: 1, 2: 0, 3: 0, 4: 1, 5: 1}
    assert dependent_scores(questions, {**yes, 5: False}) == {1: 1, 2: 1, 3: 1, 4: 0, 5: 0}


def test_questions_are_read_with_their_dependencies(tmp_path: Path) -> None:
    path = tmp_path / "dpg_bench.csv"
    path.write_text(
        HEAD + '7,"a dog, red",,1,0,entity,whole,entity - whole (dog),Is there a dog?\n'
        '7,"a dog, red",,2,"1, 3",attribute,color,"attribute - color (dog, red)",Is it red?\n'
        "7,x,,3,0,global,,global - (photo),Is it a photo?\n"
        "x2,x,,1,0,other,,other - text (a),Is there text?\n",
        encoding="utf-8",
    )
    found = read_questions(path)
    assert list(found) == ["7", "x2"]
    dog, red, photo = found["7"]
    assert (dog.parents, red.parents, photo.parents) == ((), (1, 3), ())
    assert [p.category for p in found["7"]] == ["entity - whole", "attribute - color", "global -"]
    assert [p.broad_category for p in found["7"]] == ["entity", "attribute", "global"]
    assert red.question == "Is it red?"


@pytest.mark.parametrize(
    "text, message",
    [
        ("prompt\na dog\n", "no column item_id, proposition_id"),
        (HEAD, "holds no question"),
        (HEAD + "7,a,,one,0,e,,e - w (a),A?\n", "line 2: a number is expected"),
        (HEAD + "7,a,,1,0,e,,e - w (a),\n", "line 2 has no question"),
        (HEAD + "7,a,,1,0,e,,e - w (a),A?\n" * 2, "7 has two questions 1"),
        (HEAD + "7,a,,1,9,e,,e - w (a),A?\n", "depends on question 9"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "q.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_questions(path)
