"""Diversity of plans, layouts and images: every number worked out by hand."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from gotr1_jax.grpo.diversity import (
    NUMBERS,
    SampleKeys,
    caption_diversity,
    diversity_means,
    image_distances,
    overall_diversity,
    plan_numbers,
    step_diversity,
)
from gotr1_jax.grpo.diversity_measures import MEASURES
from gotr1_jax.parallel.mesh import make_mesh
from gotr1_jax.plan import parse_plan


def plan(*objects: tuple[str, str], text: str = "") -> str:
    parts = [
        f"<|obj_start|>{name}<|obj_end|> <|box_start|>{box}<|box_end|>" for name, box in objects
    ]
    return " ".join([text, *parts])


LEFT, RIGHT = "(0,0),(400,400)", "(500,0),(900,400)"


def keys(*texts: str, distances: float = 0.5) -> SampleKeys:
    numbers = np.asarray([plan_numbers(parse_plan(text)) for text in texts], np.float32)
    assert numbers.shape == (len(texts), NUMBERS)
    return SampleKeys.of(numbers, np.full(len(texts), distances, np.float32))


def test_what_counts_as_the_same_plan_layout_and_boxes():
    a, spaced, swapped, other_name, other_box, none = (
        keys(text)
        for text in (
            plan(("cat", LEFT), ("dog", RIGHT), text="See:"),
            plan(("cat", LEFT), ("dog", RIGHT), text="  See:\n "),
            plan(("Dog", RIGHT), ("cat", LEFT), text="See:"),
            plan(("cat", LEFT), ("cow", RIGHT), text="See:"),
            plan(("cat", LEFT), ("dog", "(500,0),(900,401)"), text="See:"),
            "a cat and a dog",
        )
    )
    assert spaced.text_B == a.text_B and swapped.text_B != a.text_B
    assert swapped.layout_B == a.layout_B and other_name.layout_B != a.layout_B
    assert other_name.boxes_B == a.boxes_B and other_box.boxes_B != a.boxes_B
    assert none.layout_B == none.boxes_B == 0 and none.text_B != 0


def test_two_captions_by_hand():
    cat, dog = plan(("cat", LEFT)), plan(("dog", LEFT))
    far = plan(("cat", RIGHT))
    found = keys(cat, cat, far, "no box", dog, dog, dog, dog + " .")
    captions = caption_diversity(found, 4)
    np.testing.assert_array_equal(captions["distinct_plans"], np.float32([3 / 4, 2 / 4]))
    # Of the three plans with a box, two have one layout.
    np.testing.assert_array_equal(captions["distinct_layouts"], np.float32([2 / 3, 1 / 4]))
    np.testing.assert_array_equal(captions["commonest_layout"], np.float32([2 / 3, 1.0]))
    # LEFT alone, under two names, is what 6 of the 7 plans with a box have.
    assert overall_diversity(found) == {"commonest_boxes": 6 / 7}
    step = step_diversity(found, 4)
    assert set(step) == {f"diversity/{name}" for name in MEASURES}
    assert step["diversity/distinct_plans"] == 0.625 and step["diversity/images"] == 0.5


def test_images_that_share_a_plan_count_it_once():
    one, two = plan(("cat", LEFT)), plan(("cat", RIGHT))
    found = keys(one, one, two, two)
    assert caption_diversity(found, 4)["distinct_plans"] == [0.5]
    assert caption_diversity(found, 4, images_per_plan=2)["distinct_plans"] == [1.0]
    assert overall_diversity(found, 2) == {"commonest_boxes": 0.5}
    assert caption_diversity(found, 4, 4)["distinct_plans"].tolist() == pytest.approx(
        [math.nan], nan_ok=True
    )


def test_one_sample_and_no_boxes_have_no_value_and_do_not_fail():
    alone = keys(plan(("cat", LEFT)), "no box", distances=math.nan)
    assert all(np.isnan(column).all() for column in caption_diversity(alone, 1).values())
    assert step_diversity(alone, 1) == {}
    boxless = caption_diversity(keys("a", "b"), 2)
    assert math.isnan(boxless["commonest_layout"][0]) and boxless["distinct_plans"] == [1.0]
    assert step_diversity(None, 4) == {}
    # A caption without a value does not make the mean one.
    assert diversity_means({"images": np.float32([math.nan, 0.25])}, {}) == {"images": 0.25}


def test_share_of_tokens_in_which_images_differ():
    ids_BU = jnp.asarray([[1, 2, 3, 4], [1, 2, 3, 5], [9, 2, 0, 5]] + [[7, 7, 7, 7]] * 3)
    # Pairs of the first caption: 1/4, 3/4 and 2/4.
    wanted = [(1 + 3) / 8, (1 + 2) / 8, (3 + 2) / 8, 0, 0, 0]
    mesh = make_mesh(1)
    np.testing.assert_allclose(image_distances(ids_BU, 3, mesh), wanted, rtol=1e-6)
    assert np.isnan(image_distances(ids_BU, 1, mesh)).all()


def test_random_plans_keep_distinct_keys_through_float32():
    texts = [plan(("cat", f"({i},0),(999,{i})")) for i in range(300)]
    found = keys(*texts)
    assert len(np.unique(found.layout_B)) == len(np.unique(found.boxes_B)) == 300
    assert found.text_B.dtype == np.int64 and found.text_B.max() < 2**48
