"""The plan grammar, boxes, matching and drawing, against numbers worked out by hand."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gotr1_jax.errors import InputError
from gotr1_jax.plan import (
    Box,
    Plan,
    box_from_pixels,
    box_to_pixels,
    draw_overlay,
    format_object,
    iou,
    match_objects,
    parse_plan,
    replace_box,
)
from gotr1_jax.plan.labels import MAX_LABEL, clean_label

RED = "<|obj_start|>red circle<|obj_end|> <|box_start|>(36,66),(907,694)<|box_end|>"


def _read(text: str) -> list[tuple[str, Box | None]]:
    plan = parse_plan(text)
    assert str(plan) == text
    return [(o.name, o.box) for o in plan.objects]


def test_format_is_what_the_parser_reads() -> None:
    assert format_object("red circle", Box(36, 66, 907, 694)) == RED
    plan = parse_plan(f"A {RED} on white.")
    (item,) = plan.objects
    assert (item.name, item.box) == ("red circle", Box(36, 66, 907, 694))
    assert plan.text[item.start : item.end] == RED
    assert (plan.num_dropped, plan.num_stray) == (0, 0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "gotr1_1b_tulips.txt",
            [
                ("vibrant red tulip bouquet", Box(36, 66, 907, 694)),
                ("yellow vase", Box(202, 482, 729, 964)),
                ("tablecloth", Box(0, 643, 997, 997)),
                ("floral pattern", Box(0, 528, 998, 995)),
                ("teal vase", Box(646, 449, 968, 918)),
            ],
        ),
        (
            "gotr1_7b_tulips.txt",
            [
                ("vibrant still life painting", Box(0, 60, 997, 983)),
                ("bouquet of red tulips", Box(0, 60, 698, 780)),
                ("yellow vase", Box(65, 488, 582, 982)),
                ("teal vase", Box(625, 361, 992, 887)),
                ("colorful tablecloth", Box(0, 667, 997, 983)),
            ],
        ),
    ],
)
def test_reads_what_released_checkpoints_write(
    shared: Path, name: str, expected: list[tuple[str, Box]]
) -> None:
    assert _read((shared / "chains" / name).read_text(encoding="utf-8")) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("no tags at all \U0001f600 \u202eabc", []),
        (
            "<|obj_start|>\u0642\u0637 \U0001f431<|obj_end|><|box_start|>(1,2),(3,4)<|box_end|>",
            [("\u0642\u0637 \U0001f431", Box(1, 2, 3, 4))],
        ),
        ("<|obj_start|>a<|obj_end|>", [("a", None)]),
        ("<|obj_start|>a", []),
        ("a<|obj_end|> <|box_start|>(1,2),(3,4)<|box_end|>", []),
        ("<|box_start|>(1,2),(3,4)<|box_end|>", []),
        # A name that holds another start: the innermost counts.
        (
            "<|obj_start|>a <|obj_start|>b<|obj_end|> <|box_start|>(1,2),(3,4)<|box_end|>",
            [("b", Box(1, 2, 3, 4))],
        ),
        ("<|obj_start|>a<|box_start|>(1,2),(3,4)<|box_end|><|obj_end|>", []),
        # Words between name and box, an unclosed box, an unreadable one.
        ("<|obj_start|>a<|obj_end|> at <|box_start|>(1,2),(3,4)<|box_end|>", [("a", None)]),
        ("<|obj_start|>a<|obj_end|> <|box_start|>(1,2),(3,4)", [("a", None)]),
        ("<|obj_start|>a<|obj_end|> <|box_start|>(1,2),(3,4)<|obj_end|>", [("a", None)]),
        ("<|obj_start|>a<|obj_end|> <|box_start|><|box_end|>", [("a", None)]),
        ("<|obj_start|>a<|obj_end|> <|box_start|>(1,2,3,4)<|box_end|>", [("a", None)]),
        ("<|obj_start|>a<|obj_end|> <|box_start|>(.1,.2),(.3,.4)<|box_end|>", [("a", None)]),
        (
            "<|obj_start|>a<|obj_end|> <|box_start|>(1,2),(3,4),(5,6)<|box_end|>",
            [("a", None)],
        ),
        # Kept as written: spaces, signs, inverted corners.
        (
            "<|obj_start|> a <|obj_end|>\n<|box_start|> ( -5 , +7 ),(3, 004 ) <|box_end|>",
            [("a", Box(-5, 7, 3, 4))],
        ),
        (
            "<|obj_start|>a<|obj_end|> <|box_start|>(900,800),(100,50)<|box_end|>",
            [("a", Box(900, 800, 100, 50))],
        ),
        ("<|obj_start|><|obj_end|> <|box_start|>(1,2),(3,4)<|box_end|>", [("", Box(1, 2, 3, 4))]),
        # One name, two boxes: the second belongs to nothing.
        (
            RED + " <|box_start|>(1,2),(3,4)<|box_end|>",
            [("red circle", Box(36, 66, 907, 694))],
        ),
    ],
)
def test_every_text_has_a_defined_result(text: str, expected: list[tuple[str, Box | None]]) -> None:
    assert _read(text) == expected


def test_huge_numbers_saturate() -> None:
    huge, box = "9" * 400, "<|obj_start|>a<|obj_end|> <|box_start|>(-{0},0),({0},{1})<|box_end|>"
    ((_, found),) = _read(box.format(huge, "0" * 5000 + "7"))
    assert found == Box(-999_999_999, 0, 999_999_999, 7)
    assert found.clean() == Box(0, 0, 999, 7)


def test_stray_markers_are_counted() -> None:
    assert parse_plan(f"<|box_end|>{RED}<|obj_start|>b<|obj_end|>").num_stray == 3


def test_objects_past_the_cap_are_counted() -> None:
    plan = parse_plan(RED * 10_000)
    assert (len(plan.objects), plan.num_dropped, plan.num_stray) == (64, 9_936, 0)
    assert len(parse_plan(RED * 3, max_objects=2).objects) == 2


@pytest.mark.parametrize(
    "unit",
    [
        RED,
        "<|obj_start|>",
        "<|obj_end|>",
        "<|obj_start|>a<|obj_end|> <|box_start|>",
        "<|obj_start|>a<|obj_end|>     ",
        "<|box_start|>(",
        "<|",
        "7",
    ],
)
def test_linear_time(unit: str) -> None:
    """Two million characters: a parser that looks back would not come to an end here."""
    count = 2_000_000 // len(unit)
    for head, tail in (
        ("", ""),
        ("<|obj_start|>a<|obj_end|> <|box_start|>(", "<|box_end|>"),
        ("<|obj_start|>a<|obj_end|> <|box_start|>(1,1),(1,", ")<|box_end|>"),
    ):
        text = head + unit * count + tail
        assert str(parse_plan(text)) == text


def test_random_marker_soup_never_raises() -> None:
    rng = np.random.default_rng(0)
    pieces = ["<|obj_start|>", "<|obj_end|>", "<|box_start|>", "<|box_end|>"]
    pieces += ["(1,2),(3,4)", "a", " ", "(", "<|obj_", "-9", "\u0663"]
    for _ in range(2000):
        text = "".join(rng.choice(pieces, size=rng.integers(0, 30)))
        plan = parse_plan(text)
        assert str(plan) == text and plan.num_stray >= 0
        spans = [(o.start, o.end) for o in plan.objects]
        assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))


def test_clean_clamps_and_collapses() -> None:
    assert Box(-5, 10, 1200, 20).clean() == Box(0, 10, 999, 20)
    assert Box(700, 10, 200, 20).clean() == Box(700, 10, 700, 20)
    assert Box(700, 10, 200, 20).area == 0 and not Box(700, 10, 200, 20).is_valid
    assert Box(0, 0, 999, 999).is_valid and not Box(0, 0, 1000, 999).is_valid


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (Box(0, 0, 100, 100), Box(0, 0, 100, 100), 1.0),
        (Box(0, 0, 100, 100), Box(50, 0, 150, 100), 1 / 3),  # 5000 of 15000
        (Box(0, 0, 100, 100), Box(25, 25, 75, 75), 0.25),  # 2500 of 10000
        (Box(0, 0, 100, 100), Box(100, 0, 200, 100), 0.0),  # touching
        (Box(0, 0, 100, 100), Box(100, 100, 0, 0), 0.0),  # inverted
        (Box(50, 50, 50, 50), Box(50, 50, 50, 50), 0.0),  # empty, with itself
        (Box(-500, 0, 100, 100), Box(0, 0, 100, 100), 1.0),  # clamped
        (Box(2000, 2000, 3000, 3000), Box(0, 0, 999, 999), 0.0),  # outside
        (Box(0, 0, 200, 100), Box(100, 50, 300, 150), 1 / 7),  # 5000 of 35000
    ],
)
def test_iou_by_hand(a: Box, b: Box, expected: float) -> None:
    assert iou(a, b) == pytest.approx(expected) == iou(b, a)


def test_pixel_conversion_by_hand() -> None:
    assert box_from_pixels(0, 0, 64, 64, 64, 64) == Box(0, 0, 999, 999)
    assert box_from_pixels(16, 8, 32, 48, 64, 64) == Box(250, 125, 500, 750)
    assert box_from_pixels(10, 10, 30, 30, 100, 200) == Box(100, 50, 300, 150)
    assert box_to_pixels(Box(250, 125, 500, 750), 64, 64) == (16, 8, 32, 48)
    for x in range(64):  # whole pixels come back to within the rounding
        box = box_from_pixels(x, x, x + 1, x + 1, 64, 64)
        assert box_to_pixels(box, 64, 64)[0] == pytest.approx(x, abs=0.033)


def test_matching_repeated_names_is_optimal() -> None:
    # Greedy by order would give a the near-perfect c1 (IoU 1/3) and leave b with nothing;
    # the best sum takes a-c2 and b-c1.
    a, b = Box(0, 0, 100, 100), Box(50, 0, 150, 100)
    c1, c2 = Box(50, 0, 150, 100), Box(0, 0, 100, 50)
    matched = match_objects([("ball", a), ("Ball ", b)], [("ball", c1), ("BALL", c2)])
    assert matched == [(0, 1, pytest.approx(0.5)), (1, 0, pytest.approx(1.0))]
    # Sum matters, not the best single pair: 0.6 + 0.5 beats 0.8 + 0.
    p, q = Box(0, 0, 100, 100), Box(0, 0, 50, 100)
    f, g = Box(0, 0, 80, 100), Box(0, 0, 100, 60)
    result = match_objects([("x", p), ("x", q)], [("x", f), ("x", g)])
    assert [j for _, j, _ in result] == [1, 0]
    assert [v for _, _, v in result] == pytest.approx([0.6, 0.625])


def test_matching_missing_and_unboxed() -> None:
    box = Box(0, 0, 100, 100)
    planned = [("a", box), ("a", box), ("b", box), ("c", None)]
    matched = match_objects(planned, [("a", box), ("c", box)])
    assert sum(v for _, _, v in matched) == 1.0
    assert matched[2:] == [(2, None, 0.0), (3, None, 0.0)]
    assert sorted(str(j) for _, j, _ in matched[:2]) == ["0", "None"]
    assert match_objects([], [("a", box)]) == []
    # The same name elsewhere in the image is found, with no overlap.
    assert match_objects([("a", box)], [("a", Box(500, 500, 600, 600))]) == [(0, 0, 0.0)]


def test_replace_box_changes_nothing_else() -> None:
    other = "<|obj_start|>b<|obj_end|>\n<|box_start|>(1,2),(3,4)<|box_end|>"
    plan = parse_plan(f"A {RED} and {other}, \u00e9nd.")
    edited = replace_box(plan, 0, Box(0, 0, 10, 10))
    assert str(edited) == str(plan).replace("(36,66),(907,694)", "(0,0),(10,10)")
    assert [o.box for o in edited.objects] == [Box(0, 0, 10, 10), Box(1, 2, 3, 4)]
    assert str(replace_box(edited, 0, Box(36, 66, 907, 694))) == str(plan)
    second = replace_box(plan, 1, Box(5, 6, 7, 8))
    assert str(second) == str(plan).replace("(1,2),(3,4)", "(5,6),(7,8)")


@pytest.mark.parametrize("rest", ["", " <|box_start|>oops<|box_end|>", " <|box_start|>(1,2"])
def test_replace_box_gives_a_missing_one(rest: str) -> None:
    plan = parse_plan(f"<|obj_start|>a<|obj_end|>{rest}")
    edited = replace_box(plan, 0, Box(1, 2, 3, 4))
    assert [(o.name, o.box) for o in edited.objects] == [("a", Box(1, 2, 3, 4))]


def test_editing_refuses_what_is_not_there() -> None:
    with pytest.raises(InputError, match="no object 1"):
        replace_box(parse_plan(RED), 1, Box(0, 0, 1, 1))
    with pytest.raises(InputError, match="marker"):
        format_object("a<|obj_end|>", Box(0, 0, 1, 1))


def test_overlay_size_and_colors() -> None:
    image = Image.new("RGB", (64, 64), "white")
    drawn = draw_overlay(image, [("a", Box(250, 250, 750, 750))])
    assert drawn.size == (384, 384) and image.getcolors() == [(4096, (255, 255, 255))]
    assert drawn.getpixel((96, 200)) == drawn.getpixel((286, 200))  # left and right side, solid
    assert drawn.getpixel((192, 192)) == (255, 255, 255)
    two = draw_overlay(image, [("a", Box(100, 500, 200, 900)), ("b", Box(500, 500, 600, 900))])
    assert two.getpixel((38, 250)) != two.getpixel((192, 250))
    assert draw_overlay(Image.new("RGB", (500, 400)), []).size == (500, 400)
    assert draw_overlay(image, [], scale=2).size == (128, 128)


def test_overlay_detected_is_dashed_in_the_planned_color() -> None:
    image = Image.new("RGB", (64, 64), "white")
    drawn = np.asarray(draw_overlay(image, [], [("a", Box(250, 250, 750, 750))]))
    side = drawn[110:280, 96]
    drawn_share = (side != 255).any(-1).mean()
    assert 0.3 < drawn_share < 0.85


@pytest.mark.parametrize(
    "boxes",
    [
        [("", Box(0, 0, 0, 0))],
        [("a", Box(999, 999, 0, 0)), ("b", Box(-(10**9), -7, 10**9, 10**9))],
        [("\U0001f600\u202e<|obj_end|>\n\x00" * 20, Box(5, 5, 6, 6))],
        [(f"object {i}", Box(10 * i, 10 * i, 10 * i + 200, 10 * i + 200)) for i in range(64)],
    ],
)
def test_overlay_draws_anything(boxes: list[tuple[str, Box]]) -> None:
    assert draw_overlay(Image.new("RGB", (64, 48)), boxes, boxes).size == (384, 288)


def test_labels_are_sanitised() -> None:
    assert clean_label("a<|obj_end|>\n\x00 b\u202e") == "a b"
    assert clean_label("caf\u00e9 \U0001f431\U0001f431 cup") == "cafe ? cup"
    long = clean_label("word " * 40)
    assert len(long) <= MAX_LABEL and long.endswith("...")


def test_plan_lists_named_boxes() -> None:
    plan = parse_plan(RED + "<|obj_start|>b<|obj_end|>")
    assert plan.boxes == (("red circle", Box(36, 66, 907, 694)),)
    assert isinstance(plan, Plan)


@pytest.mark.parametrize(
    "module", ["", ".boxes", ".colors", ".drawing", ".editing", ".grammar", ".labels", ".matching"]
)
def test_documented_examples(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"gotr1_jax.plan{module}"))
    assert result.failed == 0
    assert result.attempted > 0 or module in (".colors", ".labels")
