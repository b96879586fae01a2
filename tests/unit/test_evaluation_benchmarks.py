"""Whole prompt files of the benchmarks with scripted answers: right, wrong, missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gotr1_jax.data.sources import iter_captions
from gotr1_jax.evaluation.asks import Detection, ModelQuery
from gotr1_jax.evaluation.compbench_rules import place_word
from gotr1_jax.evaluation.dpg import DpgRules
from gotr1_jax.evaluation.dpg_rules import Proposition
from gotr1_jax.evaluation.folders import Item
from gotr1_jax.evaluation.geneval import GenevalRules
from gotr1_jax.evaluation.geneval_rules import Wanted, read_metadata
from gotr1_jax.evaluation.phrases import RuleReader
from gotr1_jax.evaluation.published import T2I_COMPBENCH
from gotr1_jax.evaluation.t2i_compbench import CompbenchRules
from gotr1_jax.vlm_engine.base import make_image_input

IMAGE = make_image_input(np.zeros((479, 479, 3), np.uint8))
OFFSETS = {"left": (150, 0), "right": (-150, 0), "top": (0, 150), "bottom": (0, -150)}


def item(place: int) -> Item:
    return Item(str(place), Path(f"{place}.png"), place)


def found(x: float, y: float, score: float = 1.0) -> list[list[Any]]:
    return [list(Detection.of((x, y, x + 100, y + 100), score))]


def says(other: Any, boxes: Mapping[str, Any] | None = None) -> Callable[[ModelQuery], Any]:
    """Answers with the boxes of a name, and to all other questions with `other`."""
    return lambda ask: (boxes or {}).get(ask.text, []) if ask.kind == "find" else other


def expected_color(boxes: Mapping[str, Any]) -> Callable[[ModelQuery], Any]:
    """As `says`, with the color that is asked for."""
    return lambda ask: boxes.get(ask.text, []) if ask.kind == "find" else ask.color


def values(rules: Any, place: int, answer: Callable[[ModelQuery], Any]) -> dict[str, float]:
    """What comes of an image when these answers are given, as far as they are asked for."""
    answers: dict[str, Any] = {}
    while new := [a for a in rules.asks(item(place), IMAGE, answers) if a.key not in answers]:
        answers |= {ask.key: answer(ask) for ask in new}
    return rules.score(item(place), IMAGE, answers).values


@pytest.mark.parametrize("category", T2I_COMPBENCH)
def test_every_caption_of_t2i_compbench(shared: Path, category: str) -> None:
    file = shared / "prompts" / "t2i_compbench" / f"{category}_val.txt"
    captions = [line.text for line in iter_captions(file)]
    rules = CompbenchRules(category, captions, RuleReader(), {})
    expected_kinds = {"spatial": ["find"], "non_spatial": ["match"],
                      "complex": ["yes", "find", "match"]}  # fmt: skip
    assert rules.kinds == expected_kinds.get(category, ["yes"]) and len(captions) == 300
    for place, caption in enumerate(captions):
        relation = place_word(caption) or ""
        x, y = next((o for word, o in OFFSETS.items() if f"the {word} of" in relation), (0, 100))
        asks = rules.asks(item(place), IMAGE, {})
        names = [ask.text for ask in asks if ask.kind == "find"]
        boxes = {name: found(i * x, i * y) for i, name in enumerate(names)}
        best = values(rules, place, says(0.25, boxes))
        if names and relation != "on top of" and len(boxes) == 2:
            assert best["find"] == 1, caption
        number = sum(ask.kind == "yes" for ask in asks)
        assert best.get("yes", 0.25**number) == pytest.approx(0.25**number)
        assert best.get("match", 0.25) == 0.25
        parts = [part for kind, part in best.items() if kind != "score"]
        assert best["score"] == pytest.approx(sum(parts) / len(parts))
        # Nothing is there, or an answer is missing.
        assert values(rules, place, says(0.0))["score"] == 0, caption
        assert math.isnan(values(rules, place, lambda ask: math.nan)["score"]) or not asks


def test_every_line_of_geneval(shared: Path) -> None:
    wanted = read_metadata(shared / "prompts" / "geneval_metadata.jsonl")
    rules = GenevalRules(wanted)
    for place, metadata in enumerate(wanted):
        where = {"left of": (0, 190), "right of": (380, 190), "above": (190, 0),
                 "below": (190, 380)}  # fmt: skip
        boxes: dict[str, list[Any]] = {}
        for want in metadata.include:
            x, y = where.get(want.relation, (190, 190))
            boxes[want.name] = found(x, y, 0.95) * want.count

        assert values(rules, place, expected_color(boxes)) == {"correct": 1}, metadata
        assert values(rules, place, says("")) == {"correct": 0}
        assert math.isnan(values(rules, place, lambda ask: math.nan)["correct"])
        if any(want.color for want in metadata.include):
            assert values(rules, place, says("gray", boxes)) == {"correct": 0}
            assert math.isnan(values(rules, place, says(math.nan, boxes))["correct"])
        if metadata.tag == "counting":
            (want,) = metadata.include
            assert metadata.exclude == (Wanted(want.name, want.count + 1),)
            more = {want.name: found(0, 0, 0.95) * (want.count + 1)}
            assert values(rules, place, says("", more)) == {"correct": 0}


def test_dpg_cells_are_scored_one_by_one() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4, 4:], pixels[4:, :4], pixels[4:, 4:] = 60, 120, 180
    grid = make_image_input(pixels)
    questions = [
        Proposition(n, parents, category, f"{n}?")
        for n, parents, category in (
            (1, (), "entity - whole"), (2, (1,), "attribute - color"), (3, (2,), "attribute - size")
        )
    ]  # fmt: skip
    rules = DpgRules([questions], 4)
    asks = rules.asks(item(0), grid, {})
    assert len(asks) == 12 and len({ask.key for ask in asks}) == 12
    # By cells: all yes; no color; no object; the last cell is not to be told.
    shares = [1.0, 0.6, 0.51, 1.0, 0.5, 1.0, 0.0, 1.0, 1.0, 1.0, math.nan, 1.0]
    answers = {ask.key: share for ask, share in zip(asks, shares)}
    scored = rules.score(item(0), grid, answers)
    assert scored.values["score"] == pytest.approx((3 / 3 + 1 / 3 + 0) / 3)
    # Categories count what was said, whatever the parents.
    assert rules.categories == {"entity": [2 / 3], "attribute": [2 / 3, 1.0]}
    none = rules.score(item(0), grid, dict.fromkeys(answers, math.nan))
    assert math.isnan(none.values["score"]) and rules.categories["entity"] == [2 / 3]
