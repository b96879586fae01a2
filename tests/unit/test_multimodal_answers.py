"""Reading a model's words, keeping its answers, and noticing when it fails too often."""

from __future__ import annotations

import contextlib
import json
import random

import numpy as np
import pytest

from gotr1_jax.errors import InputError, RunError
from gotr1_jax.plan import Box, format_object, parse_plan
from gotr1_jax.rewards.base import pop_metrics
from gotr1_jax.rewards.multimodal.answers import read_boxes, read_score, read_verdict
from gotr1_jax.rewards.multimodal.box_answers import MAX_BOXES, fit_boxes
from gotr1_jax.rewards.multimodal.canvas import draw_canvas
from gotr1_jax.rewards.multimodal.control_words import harmless
from gotr1_jax.rewards.multimodal.instructions import show_plan
from gotr1_jax.rewards.multimodal.thoughts import UnreadableError
from gotr1_jax.vlm_engine import answer_cache as cache_module
from gotr1_jax.vlm_engine.answer_cache import AnswerCache
from gotr1_jax.vlm_engine.base import make_image_input


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"score": 7, "reason": "x"}', 7),
        ('```json\n{"score": 7}\n```', 7),
        ("{'score': 7, 'reason': 'it is the cat's'}", 7),
        ('{"score": 7.5}', 7.5),
        ('{"score": "8/10"}', 8),
        ('{"score": 8/10, "reason": "x"}', 8),
        ("“score”: 6", 6),
        ("{“score”: ６}", 6),
        ('{"score": 7, "reason": "the “cat” is there, score: 2 of 3"}', 7),
        ('I looked at all. {"score": 3, "reason": "no 2 cats"} That is it.', 3),
        ("Score: 9", 9),
        ("**Score:** 9/10.", 9),
        ("My rating is 9 out of 10, as 2 cats are there", 9),
        ("It earns 10/10", 10),
        ("7", 7),
        (" 7. ", 7),
        ("Final score: 7.0 points", 7),
        ('{"score": 0}', 0),
        ("Score (0-10): 7", 7),
        ("Score out of 10: **7**", 7),
        ("Score - 7/10. The cat is there.", 7),
        ("The score would be 7, as one of 3 cats is missing.", 7),
        ("<score>7</score>", 7),
        ("<score>7</score><reason>one thing is missing</reason>", 7),
        ("7</s>", 7),
        ("The answer is $\\boxed{7}$.", 7),
        ('{"colors": 3, "final_score": 7}', 7),
        ('{"score": 7, "final_score": 3}', 7),
        ('{"Score": 5}', 5),
        # Not to be guessed:
        ("", None),
        ("very good", None),
        ("There is 1 cat but no dog.", None),
        ("-3", None),
        ('{"score": -3}', None),
        ('{"score": 11}', None),
        ('{"score": NaN}', None),
        ('{"score": Infinity}', None),
        ('{"score": true}', None),
        ('{"score": null}', None),
        ('{"score": 1e400}', None),
        ('{"score": ' + "9" * 5000 + "}", None),
        ("Score: 4/5", None),
        ("Score: 7-8", None),
        ("Score: 7 or 8", None),
        ("Score: 7/10 to 8/10", None),
        ("Score: 7 out of 9", None),
        ("Score: 80%", None),
        ("Score: 7,5", None),
        ("color score: 3, layout score: 8", None),
        ("Between 3/10 and 5/10", None),
        ('{"score": 1} no, after all {"score": 4}', None),
    ],
)
def test_scores(text: str, value: float | None) -> None:
    found = read_score(text, 0, 10)
    assert (None if found is None else found.score) == value


def test_reasons() -> None:
    assert read_score('{"score": 7, "reason": "a\\n b"}', 0, 10) == (7, "a b")
    assert read_score("{'score': 7, 'reason': 'too small'}", 0, 10) == (7, "too small'")
    assert read_score('{"score": 0}', 1, 10) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}]', [(1, 2, 3, 4)]),
        ('```json\n[\n{"bbox_2d": [1, 2, 3, 4]},\n{"bbox_2d": [5, 6, 7, 8]}]\n```',
         [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("{'bbox_2d': [1, 2, 3, 4], 'label': 'the cat's'}", [(1, 2, 3, 4)]),
        ('{"bbox": [10.5, 2, 3, 4.25]}', [(3, 2, 10.5, 4.25)]),
        ('{"box": [5, 6, 7, 8], "bbox": [5, 6, 7, 9], "bbox_2d": [1, 2, 3, 4]}', [(1, 2, 3, 4)]),
        ('[{"bbox_2d": [9, 8, -7, 6]}]', [(-7, 6, 9, 8)]),
        ("[1, 2, 3, 4]", [(1, 2, 3, 4)]),
        ("[[1,2,3,4],[5,6,7,8]]", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("The cat: (1,2),(3,4)", [(1, 2, 3, 4)]),
        ('In [0, 0, 9, 9] I see {"bbox_2d": [1, 2, 3, 4]}', [(1, 2, 3, 4)]),
        ("[1, 2, 3, 4] is its box", [(1, 2, 3, 4)]),
        ('[{"bbox_2d": [1, 2, 3]}, {"bbox_2d": [1, 2, 3, 4]}]', [(1, 2, 3, 4)]),
        ('[{"bbox_2d": [1, 2, 3, 4,], "label": "cat",},]', [(1, 2, 3, 4)]),
        ('[{"bbox_2d": "[1, 2, 3, 4]"}]', [(1, 2, 3, 4)]),
        ('{"bbox": {"x": 1, "y": 2, "width": 2, "height": 3}}', [(1, 2, 3, 5)]),
        ('[{"x": 1, "y": 2, "w": 0, "h": 3}]', None),
        ("1, 2, 3, 4", [(1, 2, 3, 4)]),
        ("1, 2, 3, 4, 5", None),
        ("<box>1, 2, 3, 4</box>", [(1, 2, 3, 4)]),
        ("x1: 1, y1: -2, x2: 3, y2: 4", [(1, -2, 3, 4)]),
        ("Top-left: (1, 2), bottom-right: (3, 4)", [(1, 2, 3, 4)]),
        ("[]", []),
        ("```json\n[ ]\n```", []),
        ("None.", []),
        ("null", []),
        ("{}", []),
        ('{"bbox_2d": null}', []),
        ('[{"bbox_2d": [], "label": "cat"}]', []),
        ("", None),
        ("There is none to be seen, sorry", []),
        ("[1, 2, 3]", None),
        ("[1, 2, 3, 4, 5]", None),
        ('{"bbox_2d": [a, b, c, d]}', None),
        ("[" + "9" * 99 + ", 1, 2, 3]", None),
    ],
)  # fmt: skip
def test_boxes(text: str, value: list[tuple[float, ...]] | None) -> None:
    assert read_boxes(text) == value


@pytest.mark.parametrize(
    ("boxes", "fits"),
    [
        ("[10, 20, 500, 300]", True),
        ("[-9, -9, 600, 600]", True),
        ("[10, 20, 999, 900]", False),  # thousandths
        ("[10, 20, 1900, 1000]", False),  # of a larger image
        ("[10, 20, 2000, 3000]", False),
        ("[-900, 20, 400, 300]", False),
    ],
)
def test_a_box_that_leaves_its_image_far_is_in_other_units(boxes: str, fits: bool) -> None:
    read = read_boxes(boxes)
    assert read
    with contextlib.nullcontext() if fits else pytest.raises(UnreadableError):
        assert fit_boxes(read, (512, 512)) == read


def test_boxes_are_bounded() -> None:
    assert len(read_boxes("[1,2,3,4]," * 1000) or ()) == MAX_BOXES


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Fine. \\boxed{1}", 1),
        ("$\\boxed{0}$", 0),
        ("\\boxed{ 1.0 }", 1),
        ("\\boxed{\\text{0}}", 0),
        ("first \\boxed{1}, no: \\boxed{0}", None),
        ("1", 1),
        ("**0**", 0),
        ("The cat is there.\nDecision: **1**", 1),
        ("The answer is 0.", 0),
        ("The cats are 1", None),
        ("Decision: 1 or 0", None),
        ("\\boxed{2}", None),
        ("\\boxed{1} or \\boxed{}", None),
        ("\\boxed{yes}", None),
        ("1 cat", None),
        ("", None),
        ("\\boxed{1", None),
    ],
)
def test_verdicts(text: str, value: float | None) -> None:
    assert read_verdict(text) == value


def test_no_text_makes_a_reader_raise() -> None:
    draw = random.Random(0)
    pieces = [
        "{", "}", "[", "]", "(", ")", '"', "'", "“", "’", ":", ",", "/", "-", ".", "%", "\\", "```",
        "json", "score", "reason", "bbox_2d", "boxed", "text", "null", "NaN", "1e999", "9" * 400,
        "0", "7", "10", "１", " ", "\n", "\x00", "\ud800", "\u202e", "cat", "is", "out of",
    ]  # fmt: skip
    whole = '[{"bbox_2d": [1, 2, 3, 4], "label": "x"}] {"score": 7, "reason": "y"} \\boxed{1}'
    texts = ["".join(draw.choices(pieces, k=draw.randrange(60))) for _ in range(3000)]
    for _ in range(1000):  # a good answer with some characters changed
        letters = list(whole)
        for _ in range(draw.randrange(1, 9)):
            letters[draw.randrange(len(letters))] = draw.choice(pieces)
        texts.append("".join(letters))
    texts += [
        c * 30_000 for c in ("[", "{", '{"a":', "(1,", "1", " ", "boxed{", "score ", "'reason':")
    ]
    for text in texts:
        found = read_score(text, 1, 10)
        assert found is None or 1 <= found.score <= 10
        assert all(np.isfinite(box).all() for box in read_boxes(text) or ())
        assert read_verdict(text) in (None, 0.0, 1.0)


def test_nothing_shown_is_a_special_token() -> None:
    assert "<|" not in harmless("<|im_end|> <<|x|> <\\|") + show_plan("<|<|obj_start|>obj_start|>")
    assert show_plan("<|obj_start|>a>>> score 10<|obj_end|>") == "Plan: <<<[a> score 10]>>>\n"


def test_the_sketch_shows_every_box_and_name() -> None:
    def sheet(*objects: tuple[str, Box]) -> np.ndarray:
        return draw_canvas(parse_plan(" ".join(format_object(*o) for o in objects)), 448)

    cat, dog = ("cat", Box(100, 100, 500, 500)), ("dog", Box(900, 900, 999, 999))
    both = sheet(cat, dog)
    assert both.shape == (448, 448, 3) and both.dtype == np.uint8
    assert (sheet() == 255).all()
    for one in (sheet(cat), sheet(dog)):
        changed = (both != one).any(axis=-1)
        assert 100 < changed.sum() < 30_000
    # The name and not only the place is seen, at the border too; nothing but white elsewhere.
    assert (both != sheet(cat, ("hen", dog[1]))).any()
    assert (both[:20] == 255).all() and (both[250:380] == 255).all()
    assert draw_canvas(parse_plan(""), 448, 0.5).shape == (448, 224, 3)
    # Three on one another: the outline of each is seen, far more than its label is worth.
    whole = Box(0, 0, 999, 999)
    three = sheet(("sky", whole), ("sea", whole), ("fog", Box(4, 4, 996, 996))).reshape(-1, 3)
    colors, counts = np.unique(three, axis=0, return_counts=True)
    assert sum(counts[colors.max(1) > colors.min(1)] > 2000) == 3


def test_the_cache_survives_a_kill_in_the_middle_of_a_line(tmp_path) -> None:
    AnswerCache(tmp_path).add({"a": "one", "b": 2.5})
    path = tmp_path / cache_module.FILE_NAME
    with open(path, "ab") as file:
        file.write(b'{"key": "c", "val')
    again = AnswerCache(tmp_path)
    assert (again.get("a"), again.get("b"), again.get("c"), len(again)) == ("one", 2.5, None, 2)
    again.add({"c": "three"})
    assert AnswerCache(tmp_path).get("c") == "three"
    path.write_bytes(b"\xff\xfe\n[1]\n{}\nnull\n" + path.read_bytes())
    assert len(AnswerCache(tmp_path)) == 3


def test_the_cache_is_bounded_and_keeps_the_newest(tmp_path) -> None:
    cache = AnswerCache(tmp_path, max_bytes=1000)
    for i in range(200):
        cache.add({f"key {i}": "x" * 50})
        assert cache.get(f"key {i}") == "x" * 50
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) <= 2 and sum(sizes) < 2 * (1000 + 100)
    assert len(cache) == len(AnswerCache(tmp_path)) < 30
    assert AnswerCache(tmp_path).get("key 199") and not AnswerCache(tmp_path).get("key 0")


def test_a_cache_that_cannot_be_opened_or_written(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another folder"):
        AnswerCache(tmp_path / "file")
    cache = AnswerCache(tmp_path / "cache")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(RunError, match="No space left"):
        cache.add({"a": "b"})


def test_two_caches_in_one_folder_do_not_mix_their_lines(tmp_path) -> None:
    first, second = AnswerCache(tmp_path), AnswerCache(tmp_path)
    for i in range(20):
        first.add({f"first {i}": "x"})
        second.add({f"second {i}": "y"})
    lines = (tmp_path / cache_module.FILE_NAME).read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == 40
    assert len(AnswerCache(tmp_path)) == 40


def test_a_judge_without_metrics_has_none() -> None:
    assert pop_metrics(object()) == {}


def test_images_are_what_they_show() -> None:
    pixels = np.zeros((2, 3, 3), np.uint8)
    one = make_image_input(pixels)
    assert one == make_image_input(pixels.copy()) and one != make_image_input(
        pixels.reshape(3, 2, 3)
    )
    assert one.size == (2, 3)
    for wrong in (pixels[..., 0], pixels.astype(np.float32), pixels[:0]):
        with pytest.raises(InputError, match="uint8"):
            make_image_input(wrong)
