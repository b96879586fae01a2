"""Overlays: distinguishable colors, readable labels in their places."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from gotr1_jax.errors import InputError
from gotr1_jax.plan import Box, draw_overlay
from gotr1_jax.plan.colors import MAX_DISTINCT, distinct_color, ink_on, to_lab
from gotr1_jax.plan.labels import clean_label, fit_label, place_label, shorten, touches

GRAY = Image.new("RGB", (384, 384), (128, 128, 128))


def test_lab_by_hand() -> None:
    lab = to_lab(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]]))
    np.testing.assert_allclose(lab, [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20]], atol=0.1)


@pytest.mark.parametrize(("count", "least"), [(8, 30), (20, 25), (MAX_DISTINCT, 10)])
def test_colors_are_distinguishable(count: int, least: float) -> None:
    lab = to_lab(np.array([distinct_color(i) for i in range(count)]))
    nearest = min(float(np.linalg.norm(a - b)) for a, b in combinations(lab, 2))
    assert nearest >= least


def test_names_are_read_on_their_color() -> None:
    def luminance(color: tuple[int, int, int]) -> float:
        linear = [((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 3294.6 for c in color]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for i in range(MAX_DISTINCT):
        color = distinct_color(i)
        dark, light = sorted((luminance(ink_on(color)), luminance(color)))
        assert (light + 0.05) / (dark + 0.05) > 4.5, color  # WCAG 2, level AA
    assert ink_on((0, 0, 90)) == (255, 255, 255)


def test_labels_of_other_scripts() -> None:
    assert clean_label("\u7ea2\u8272", 4) == "#4"
    assert clean_label("\u043a\u0440\u0443\u0433 \u043a\u0440\u0443\u0433", 2) == "#2"
    assert clean_label("?", 1) == "#1" and clean_label("", 1) == ""
    assert clean_label("\u7ea2\u8272 cup", 4) == "? cup"
    assert (
        clean_label("\u7ea2\u8272\u202e caf\u00e9", 4, ascii_only=False) == "\u7ea2\u8272 caf\u00e9"
    )


def test_shortening() -> None:
    assert shorten("red circle", 10) == "red circle"
    assert shorten("red circle", 9) == "red ci..."
    assert [len(shorten("red circle", n)) <= n for n in range(1, 12)] == [True] * 11
    assert fit_label("red circle", lambda t: 6.0 * len(t), 48) == "red c..."
    assert fit_label("red circle", lambda t: 6.0 * len(t), 1) == "r"


@pytest.mark.parametrize(
    "rect",
    [(0, 0, 60, 60), (320, 0, 383, 50), (0, 340, 40, 383), (350, 350, 383, 383), (0, 0, 383, 383)],
)
def test_labels_stay_inside_and_at_their_box(rect: tuple[float, float, float, float]) -> None:
    place = place_label(rect, (100, 18), (384, 384), [])
    assert place[0] >= 0 and place[1] >= 0 and place[2] <= 384 and place[3] <= 384
    assert touches(place, rect)


def test_labels_keep_off_one_another() -> None:
    """Twelve boxes at the same place, and one small box that must stay in sight."""
    small = (150.0, 120.0, 160.0, 130.0)
    taken: list[tuple[float, float, float, float]] = []
    for _ in range(12):
        taken.append(place_label((140, 140, 300, 300), (110, 18), (384, 384), taken, [small]))
    for a, b in combinations([*taken, small], 2):
        assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])
    # Where there is no room, the first one's place is as good as any.
    full = [(0.0, 0.0, 384.0, 384.0)]
    assert place_label((140, 140, 300, 300), (110, 18), (384, 384), full)[2] <= 384


def test_a_label_without_room_is_tied_to_its_box() -> None:
    """Of thirty boxes in a corner every label is drawn, and some lead lines with them."""
    corner = [("a long name of a thing", Box(0, 0, 90, 90))] * 30
    drawn = np.asarray(draw_overlay(GRAY, corner))
    for i in range(30):
        paper = (drawn == distinct_color(i)).all(-1)
        assert paper.sum() > 300, i  # more than a box's outline


@pytest.mark.parametrize("size", [(64, 64), (384, 384), (1024, 640), (40, 700)])
def test_labels_grow_with_the_image(size: tuple[int, int]) -> None:
    for scale in (None, 1):
        drawn = draw_overlay(
            Image.new("RGB", size, "white"), [("cup", Box(300, 400, 700, 700))], scale=scale
        )
        paper = (np.asarray(drawn) == distinct_color(0)).all(-1)
        rows = np.flatnonzero(paper.sum(axis=1) > 4)
        side = max(drawn.size)
        assert len(rows) and rows[0] >= 0.4 * drawn.height - 10 - side / 12
        assert rows[0] < 0.4 * drawn.height - max(6, side / 40)  # the label above the box


def test_a_font_of_the_users(tmp_path: Path) -> None:
    builtin = ImageFont.load_default(size=12)
    assert isinstance(builtin, ImageFont.FreeTypeFont)
    file = tmp_path / "font.ttf"
    file.write_bytes(builtin.font_bytes)
    boxes = [("\u7ea2", Box(100, 100, 500, 500)), ("cup", Box(600, 600, 900, 900))]
    drawn = draw_overlay(GRAY, boxes, font=file)
    assert drawn.size == (384, 384) and drawn != draw_overlay(GRAY, boxes)
    with pytest.raises(InputError, match=r"nowhere\.ttf"):
        draw_overlay(GRAY, boxes, font="nowhere.ttf")


def test_lines_of_one_pixel_at_any_place() -> None:
    # 3.472 + 1 - 1 is less than 3.472.
    planned = [(f"box {i}", Box(i * 31, i * 31, 999, 999)) for i in range(31)]
    assert draw_overlay(Image.new("RGB", (112, 112)), planned, scale=1).size == (112, 112)
