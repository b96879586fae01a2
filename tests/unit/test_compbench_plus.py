"""3d_spatial and numeracy: the published formulas on scripted detections and depths."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gotr1_jax.data.captions import iter_captions
from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.compbench_plus import (
    OBJECTS_FILE,
    RELATIONS_3D,
    Counted,
    DepthRules,
    NumeracyRules,
    count_score,
    counted_objects,
    depth_relation,
    depth_score,
    distinct,
    read_object_names,
    swap_axes,
)
from gotr1_jax.evaluation.detections import Detection
from gotr1_jax.evaluation.phrases import RuleParser
from gotr1_jax.evaluation.queries import ModelQuery
from gotr1_jax.evaluation.torch_models import nearer
from gotr1_jax.vlm_engine.base import make_image_input

IMAGE = make_image_input(np.zeros((64, 64, 3), np.uint8))


def box(x1: float, y1: float, x2: float, y2: float, score: float = 1.0) -> Detection:
    return Detection.from_box((x1, y1, x2, y2), score)


def random_boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    """(number, 4) boxes of whole pixels that often overlap."""
    corners, sides = rng.integers(0, 12, (number, 2)), rng.integers(1, 12, (number, 2))
    return np.concatenate([corners, corners + sides], axis=1).astype(float)


def test_depth_scores_of_a_thousand_random_scenes() -> None:
    rng = np.random.default_rng(0)
    a, both = random_boxes(rng, 1000), rng.random((1000, 2))
    b = a + np.repeat(rng.integers(-3, 4, (1000, 2)), 2, axis=1)[:, [0, 2, 1, 3]]
    depth = rng.normal(size=1000)
    relations = [*RELATIONS_3D, None]
    kinds = rng.integers(0, 4, 1000)
    # The same by whole arrays.
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    area = [np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (a, b)]
    iou = shared / (area[0] + area[1] - shared)
    fits = np.where(kinds == 0, depth > 0, (kinds < 3) & (depth < 0))
    place = np.where(fits, np.where(iou > 0.5, 1.0, np.where(iou < 0.5, 2 * iou, 0.0)), 0.0)
    expected = both.sum(axis=1) / 4 + place / 2
    ours = [
        depth_score(relations[k], [box(*p, s)], [box(*q, t)], d)
        for k, p, q, (s, t), d in zip(kinds, a, b, both, depth)
    ]
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    assert 100 < sum(place > 0) < 900 and sum(iou > 0.5) > 50 and sum(iou == 0) > 50


def test_depth_scores_by_hand() -> None:
    near, far = box(0, 0, 10, 10, 0.8), box(0, 0, 10, 15, 0.4)  # IoU 2/3
    assert depth_score("in front of", [near], [far], 0.2) == pytest.approx(0.3 + 0.5)
    assert depth_score("behind", [near], [far], 0.2) == pytest.approx(0.3)
    assert depth_score("hidden", [near], [far], -0.2) == pytest.approx(0.8)
    assert depth_score("behind", [near], [box(0, 0, 10, 40, 0.4)], -1) == pytest.approx(0.3 + 0.25)
    assert depth_score("behind", [near], [box(0, 0, 10, 20, 0.4)], -1) == pytest.approx(0.3)
    assert depth_score("behind", [near], [box(11, 0, 20, 9, 0.4)], -1) == pytest.approx(0.3)
    assert depth_score("behind", [], [far], 0) == pytest.approx(0.1)  # no cut below a half
    assert depth_score("behind", [], [], 0) == 0


def published(map_HW: np.ndarray, a: Detection, b: Detection) -> float:
    """As the published script reads the depth map."""
    parts = [map_HW[int(d.x1) : int(d.x2), int(d.y1) : int(d.y2)] for d in (a, b)]
    return float(parts[0].mean() - parts[1].mean()) if all(p.size for p in parts) else 0.0


def test_depths_of_the_published_script_are_mirrored() -> None:
    rng = np.random.default_rng(1)
    for a, b in zip(random_boxes(rng, 200), random_boxes(rng, 200)):
        map_HW = rng.random((24, 20))
        pair = box(*a), box(*b)
        theirs = nearer(map_HW, *map(swap_axes, pair))
        assert theirs == pytest.approx(published(map_HW, *pair))
        mean = [map_HW[int(y1) : int(y2), int(x1) : int(x2)] for x1, y1, x2, y2 in (a, b)]
        upright = mean[0].mean() - mean[1].mean() if all(m.size for m in mean) else 0.0
        assert nearer(map_HW, *pair) == pytest.approx(upright)
    assert nearer(np.ones((4, 4)), box(-3, -3, 2, 2), box(9, 9, 12, 12)) == 0


def answer(rules: Any, caption: int, says: Any) -> dict[str, float]:
    answers: dict[str, Any] = {}
    while new := [q for q in rules.queries(caption, IMAGE, answers) if q.key not in answers]:
        answers |= {query.key: says(query) for query in new}
    return dict(rules.score(caption, IMAGE, answers).values)


def test_which_is_nearer_is_asked_of_what_was_found() -> None:
    captions = ["a dog in front of a man", "a cat behind a key", "a cat beside a key"]
    rules = DepthRules(captions, RuleParser())
    asked: list[ModelQuery] = []

    def says(query: ModelQuery) -> Any:
        asked.append(query)
        if query.kind == "find":
            return [] if query.text == "cat" else [list(box(1, 2, 5, 4, 0.5))]
        assert query.target is not None
        return 0.25 if query.target.y1 == 2 else -0.25

    # By the script's own reading the dog is behind; it is in front.
    assert answer(rules, 0, says) == {"score": 0.25, "upright": 0.75}
    assert [q.text for q in asked[:2]] == ["dog", "person"]
    assert asked[2].text == "is the dog nearer to the viewer than the person?"
    assert answer(rules, 1, says) == {"score": 0.125, "upright": 0.125} and len(asked) == 6
    assert answer(rules, 2, says)["score"] == 0.125 and len(asked) == 8
    lost = answer(rules, 0, lambda q: math.nan if q.kind == "nearer" else says(q))
    assert all(map(math.isnan, lost.values()))


def test_every_caption_of_3d_spatial(shared: Path) -> None:
    file = shared / "prompts" / "t2i_compbench" / "3d_spatial_val.txt"
    captions = [line.text for line in iter_captions(file)]
    rules = DepthRules(captions, RuleParser())
    for i, caption in enumerate(captions):
        depth = 1 if depth_relation(caption) == "in front of" else -1

        def says(query: ModelQuery, depth: int = depth) -> Any:
            return [list(box(0, 0, 9, 9))] if query.kind == "find" else depth

        assert answer(rules, i, says) == {"score": 1.0, "upright": 1.0}, caption
        assert answer(rules, i, lambda q: [])["score"] == 0
    assert len(captions) == 300


LIST = "boy - boys\nship - ships\ntable lamp - table lamps\nmouse - mice\nsheep - sheep\n"


def test_objects_and_their_numbers(tmp_path: Path) -> None:
    (tmp_path / OBJECTS_FILE).write_text(LIST)
    names = read_object_names(tmp_path / "numeracy_val.txt")
    assert counted_objects("two boys, a ship and three table lamps near eight sheep", names) == [
        ("person", 2), ("boat", 1), ("table lamp", 3), ("sheep", 8)
    ]  # fmt: skip
    assert counted_objects("two red boys and nine mice", names) == []
    assert count_score([], {}) == 0.0
    bare = counted_objects("two boys, a ship and three knives", {}, RuleParser())
    assert bare == [Counted("person", 2), Counted("boat", 1), Counted("knife", 3)]
    assert read_object_names(tmp_path / "none" / "numeracy_val.txt") == {}
    (tmp_path / OBJECTS_FILE).write_text("boy boys\n")
    with pytest.raises(InputError, match="new_objects.txt, line 1 is 'boy boys', not 'singular"):
        read_object_names(tmp_path / "numeracy_val.txt")


def pairwise_same(boxes: np.ndarray) -> np.ndarray:
    """(N, N): which boxes the published script takes for the same, by whole arrays."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = np.prod(np.clip(high - low + 1, 0, None), axis=-1)
    area = np.prod(boxes[:, 2:] - boxes[:, :2] + 1, axis=1)
    union = area[:, None] + area[None] - shared
    return (shared / union > 0.9) | (shared / area[:, None] > 0.9) | (shared / area[None] > 0.9)


def test_counts_of_a_thousand_random_scenes() -> None:
    rng = np.random.default_rng(2)
    dropped = 0
    for _ in range(1000):
        objects, found, points = [], {}, []
        for name in "xyz"[: int(rng.integers(1, 4))]:
            boxes = random_boxes(rng, int(rng.integers(0, 6)))
            same, kept = pairwise_same(boxes), list[int]()
            for i in range(len(boxes)):
                if not same[i, kept].any():
                    kept.append(i)
            found[name] = [box(*b) for b in boxes]
            dropped += len(boxes) - len(kept)
            number = int(rng.integers(1, 6))
            objects.append(Counted(name, number))
            points.append(0.5 * bool(kept) + 0.5 * (bool(kept) and len(kept) == number))
            assert len(distinct(found[name])) == len(kept)
        assert count_score(objects, found) == pytest.approx(np.mean(points))
    assert dropped > 300


def test_every_caption_of_numeracy(shared: Path) -> None:
    file = shared / "prompts" / "t2i_compbench" / "numeracy_val.txt"
    captions = [line.text for line in iter_captions(file)]
    rules = NumeracyRules(captions, {}, RuleParser())
    for i, caption in enumerate(captions):
        wanted: dict[str, int] = dict(counted_objects(caption, {}, RuleParser()))
        assert wanted, caption

        def says(query: ModelQuery, wanted: dict[str, int] = wanted) -> Any:
            return [list(box(20 * n, 0, 20 * n + 9, 9)) for n in range(wanted[query.text])]

        assert answer(rules, i, says) == {"score": 1.0}, caption
        assert answer(rules, i, lambda q: [])["score"] == 0
        one = answer(rules, i, lambda q: [list(box(0, 0, 9, 9))])["score"]
        assert one == pytest.approx(np.mean([0.5 + 0.5 * (n == 1) for n in wanted.values()]))
        assert math.isnan(answer(rules, i, lambda q: math.nan)["score"])
    assert len(captions) == 300
