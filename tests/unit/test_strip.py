"""`gotr1 strip` without a model: what is drawn where, which captions, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gotr1_jax.cli import run
from gotr1_jax.evaluation import strip
from gotr1_jax.evaluation.strip_image import StripPair, StripSample, draw_strip
from gotr1_jax.plan import Box
from gotr1_jax.shapes.captions import parse_caption
from gotr1_jax.shapes.dataset import shapes_captions
from gotr1_jax.shapes.render import render
from gotr1_jax.shapes.scenes import sample_scene
from gotr1_jax.shapes.vocabulary import IMAGE_SIZE

pytestmark = pytest.mark.usefixtures("devices_as_they_are")

BLUE, GREEN, RED, DARK = (0, 0, 255), (26, 138, 62), (205, 44, 44), (30, 32, 36)


def sample(side: int = 64, is_true: bool = True, *boxes: Box) -> StripSample:
    return StripSample(np.full((side, side, 3), BLUE, np.uint8), boxes, is_true)


def count(page: Image.Image, color: tuple[int, int, int]) -> int:
    return int((np.asarray(page) == color).all(axis=-1).sum())


def test_images_are_whole_and_marked() -> None:
    pair = StripPair("a blue square", sample(64, False), sample(64, True))
    page = draw_strip([pair] * 6, "title", "footer")
    # 64 pixels are shown as 128; six pairs in two rows.
    assert count(page, BLUE) == 6 * 2 * 128 * 128
    assert page.width == 2 * 10 + 4 * 262 + 3 * 18
    one = draw_strip([pair], "title", "footer")
    red, green = count(one, RED), count(one, GREEN)
    # A disc of 16 pixels has 201, less its edge and the sign in it.
    assert 90 < red < 201 and 90 < green < 201
    assert count(page, RED) == 6 * red and count(page, GREEN) == 6 * green
    assert draw_strip([pair] * 6, "title", "footer").tobytes() == page.tobytes()


def test_large_images_are_reduced_and_128_pixels_stay() -> None:
    for side, shown in ((128, 128), (384, 256), (4, 128)):
        pair = StripPair("a blue square", sample(side), sample(side))
        assert count(draw_strip([pair], "t", "f"), BLUE) == 2 * shown**2


def test_boxes_are_dashed_at_their_place_and_stay_inside() -> None:
    inside = Box(250, 250, 750, 750)  # pixels 32 to 96 of 128
    empty = StripPair("a", sample(128), sample(128))
    boxed = StripPair("a", sample(128, True, inside, Box(-5, 900, 2000, 2000)), sample(128))
    plain, drawn = (np.asarray(draw_strip([pair], "t", "f")) for pair in (empty, boxed))
    y, x = np.argwhere((plain == BLUE).all(axis=-1))[0]
    image = drawn[y : y + 128, x : x + 128]
    assert tuple(image[32, 32]) == DARK and tuple(image[64, 64]) == BLUE
    ring = [*image[32, 32:96], *image[95, 32:96]]
    assert not any(tuple(pixel) == BLUE for pixel in ring)
    # Nothing is changed beyond the first image, and the box outside ends at its edges.
    outside = (plain != drawn).any(axis=-1)
    outside[y : y + 128, x : x + 128] = False
    assert not outside.any() and tuple(image[115, 0]) != BLUE


def test_a_caption_of_any_length() -> None:
    words = StripPair("a b " * 40, sample(), sample())
    endless = StripPair("x" * 300, sample(), sample())
    assert draw_strip([words, endless], "title " * 50, "f").height > 300


class Drawn:
    """Draws a true scene of each caption, or nothing."""

    def __init__(self, is_true: bool) -> None:
        self.is_true = is_true

    def draw_plans(self, rows: Any) -> list[list[int]]:
        return [[7, 8] for _ in rows]

    def draw_images(self, rows: Any) -> list[Any]:
        blank = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 240, np.uint8)
        images = []
        for row in rows:
            assert row.plan_ids == [7, 8]
            spec = parse_caption(row.task.caption)
            assert spec is not None
            scene = sample_scene(np.random.default_rng(0), spec)
            images.append(([0], render(scene) if self.is_true else blank))
        return images


def test_the_first_captions_of_the_seed_whatever_comes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages: list[Any] = []
    draw = strip.draw_strip

    def recording(pairs: Any, *texts: str) -> Image.Image:
        pages.append((pairs, *texts))
        return draw(pairs, *texts)

    drawings = iter([Drawn(False), Drawn(True)] * 2)
    monkeypatch.setattr(strip, "load_drawing", lambda *_: next(drawings))
    monkeypatch.setattr(strip, "draw_strip", recording)
    words = ["strip", "--before", "embedded", "--after", "embedded", "--captions", "5"]
    for name in ("one.png", "two.png"):
        assert run([*words, "--seed", "3", "--out", str(tmp_path / name)]) == 0
    assert "one.png: 0 of 5 true before, 5 after" in capsys.readouterr().out
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    pairs, title, footer = pages[0]
    assert tuple(pair.caption for pair in pairs) == shapes_captions("heldout", 5, 3)
    assert "first 5 held-out captions of seed 3" in title and "0 of 5 before, 5 of 5" in footer
    assert Image.open(tmp_path / "one.png").width < 1200


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--captions", "0"], "captions is 0"),
        (["--captions", "65"], "all stand in one image"),
        (["--out", "strip.jpg"], "ending in .png"),
        (["--out", "/nowhere/strip.png"], "no folder /nowhere"),
        (["--cfg", "-1"], "cfg is -1"),
        (["--after", "/nowhere"], "/nowhere"),
        (["--before", " "], "before"),
        (["--template", "nothing"], "nothing"),
    ],
)
def test_bad_input_is_known_before_anything_is_drawn(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(strip, "load_drawing", lambda *_: pytest.fail("it draws"))
    good = ["--before", "embedded", "--after", "embedded", "--out", str(tmp_path / "strip.png")]
    assert run(["strip", *good, *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
