"""The formulas of GenEval, T2I-CompBench's 2D-spatial and DPG-Bench on random scripted answers,
against calculations of their own, a number at a time."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest

from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.compbench_rules import spatial_score
from gotr1_jax.evaluation.detections import Detection
from gotr1_jax.evaluation.dpg_rules import Proposition, dependent_scores
from gotr1_jax.evaluation.geneval_rules import (
    RELATIONS,
    GenevalPrompt,
    Requirement,
    check_image,
    filter_detections,
    parse_prompt,
)

CASES = 1000


def some_box(rng: random.Random) -> Detection:
    x, y = rng.uniform(0, 300), rng.uniform(0, 300)
    return Detection(x, y, x + rng.uniform(1, 212), y + rng.uniform(1, 212), rng.random())


def overlap(a: Detection, b: Detection) -> float:
    sides = [
        max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)
    ]  # fmt: skip
    both = sides[0] * sides[1]
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def spatial_by_hand(
    relation: str | None, first: list[Detection], second: list[Detection], side: int
) -> float:
    score = sum(0.25 * found[0].score for found in (first, second) if found)
    if first and second:
        (ax, ay), (bx, by) = (((d[0] + d[2]) / 2, (d[1] + d[3]) / 2) for d in (first[0], second[0]))
        away = (abs(ax - bx), abs(ay - by))
        if relation in ("next to", "on side of", "near"):
            near = [150 * side / 479 / distance if distance else 9 for distance in away]
            fits = 1.0 if max(near) > 1 else min(near)
        else:
            order = {
                "on the left of": (ax < bx, 0), "on the right of": (ax > bx, 0),
                "on the top of": (ay < by, 1), "on the bottom of": (ay > by, 1),
            }.get(relation or "", (False, 0))  # fmt: skip
            holds = order[0] and away[order[1]] > away[1 - order[1]]
            fits = min(1.0, 0.1 / max(overlap(first[0], second[0]), 1e-9)) if holds else 0.0
        score += fits / 2
    return score if score >= 0.5 else 0.0


def test_spatial_scores() -> None:
    rng, found = random.Random(0), []
    known = ["next to", "near", "on side of", "on the left of", "on the right of",
             "on the top of", "on the bottom of", "on top of", None]  # fmt: skip
    for _ in range(CASES):
        relation, side = rng.choice(known), rng.choice([384, 512])
        first, second = (
            sorted((some_box(rng) for _ in range(rng.choice([0, 1, 1, 3]))), key=lambda d: -d.score)
            for _ in range(2)
        )
        score = spatial_score(relation, first, second, (side, side))
        assert score == pytest.approx(spatial_by_hand(relation, first, second, side), abs=1e-9)
        found.append(score)
    assert 100 < sum(score > 0 for score in found) < CASES - 100


def position_holds(relation: str, a: Detection, b: Detection) -> bool:
    offsets = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    room = [0.1 * (a[i + 2] - a[i] + b[i + 2] - b[i]) for i in (0, 1)]
    axis, sign = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[
        relation
    ]
    return sign * offsets[axis] - room[axis] > 0.5 * math.hypot(*offsets)


def image_is_right(
    prompt: GenevalPrompt, found: dict[str, list[Detection]], color_of: dict[Detection, str]
) -> bool:
    limit = 0.9 if prompt.tag == "counting" else 0.3
    seen = {
        name: sorted((d for d in boxes if d.score > limit), key=lambda d: -d.score)[:16]
        for name, boxes in found.items()
    }
    right = True
    good: list[list[Detection]] = []  # of each requirement; empty: it does not hold
    for need in prompt.include:
        best = seen[need.name][: need.count]
        holds = len(best) == need.count
        if need.color:
            holds &= all(color_of[d] == need.color for d in best)
        if need.relation:
            pairs = itertools.product(best, good[need.target])
            holds &= bool(good[need.target])
            holds &= all(position_holds(need.relation, a, b) for a, b in pairs)
        good.append(best if holds else [])
        right &= holds
    return right and all(len(seen[no.name]) < no.count for no in prompt.exclude)


def test_geneval_images() -> None:
    rng, rights = random.Random(1), 0
    for _ in range(CASES):
        tag = rng.choice(["counting", "position", "color_attr"])
        second = Requirement(
            "b", rng.choice([1, 1, 2]), rng.choice(["", "", "red"]),
            rng.choice(["", *RELATIONS]), 0,
        )  # fmt: skip
        first = Requirement("a", rng.choice([1, 1, 2]), rng.choice(["", "", "blue"]))
        exclude = (Requirement("a", first.count + 1),) if rng.random() < 0.5 else ()
        prompt = GenevalPrompt(tag, "x", (first, second), exclude)
        found = {name: [some_box(rng) for _ in range(rng.choice([1, 2, 3, 20]))] for name in "ab"}
        if tag == "counting":
            found = {n: [d._replace(score=d.score**0.1) for d in ds] for n, ds in found.items()}
        color_of = {d: rng.choice(["red", "blue", "blue"]) for ds in found.values() for d in ds}
        objects = {name: filter_detections(prompt, boxes) for name, boxes in found.items()}
        colors = {(c, d): own for d, own in color_of.items() for c in ("red", "blue")}
        is_right, why = check_image(prompt, objects, colors)
        assert is_right == image_is_right(prompt, found, color_of) == (why == "")
        rights += is_right
    assert 50 < rights < CASES - 50


def test_dpg_scores() -> None:
    """A question counts where it and all that it depends on, near and far, are answered by yes."""
    rng = random.Random(2)
    for _ in range(CASES):
        number = rng.randint(1, 12)
        parents = {i: rng.sample(range(1, i), rng.randint(0, min(2, i - 1)))
                   for i in range(1, number + 1)}  # fmt: skip
        yes = {i: rng.random() < 0.7 for i in parents}

        def counts(i: int, parents: Any = parents, yes: Any = yes) -> bool:
            return yes[i] and all(counts(parent, parents, yes) for parent in parents[i])

        asked = [Proposition(i, tuple(parents[i]), "entity - whole", "?") for i in parents]
        assert dependent_scores(asked, yes) == {i: float(counts(i)) for i in parents}


@pytest.mark.parametrize(
    "include",
    [
        '[{"class": "a", "count": 1, "position": ["left of", -1]}]',
        '[{"class": "a", "count": 1}, {"class": "b", "count": 1, "position": ["above", -1]}]',
        '[{"class": "a", "count": 1}, {"class": "b", "count": 1, "position": ["above", "0"]}]',
        '[{"class": ["a"], "count": 1}]', "[]", '[{"class": "a", "count": 0}]', "{}", '"a"', "null",
        '[{"class": "a", "count": 1, "color": 3}]', '[{"class": "a", "count": 1e400}]',
    ],
)  # fmt: skip
def test_a_line_of_geneval_that_cannot_be_scored_is_told(include: str) -> None:
    with pytest.raises(InputError, match="line 3") as error:
        parse_prompt(f'{{"tag": "position", "prompt": "x", "include": {include}}}', "f, line 3")
    assert "\n" not in str(error.value)
