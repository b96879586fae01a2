"""Whole prompt files of the benchmarks with scripted answers: right, wrong, missing."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gotr1_jax.data.captions import iter_captions
from gotr1_jax.evaluation import published
from gotr1_jax.evaluation.compbench_rules import spatial_relation
from gotr1_jax.evaluation.detections import Detection
from gotr1_jax.evaluation.dpg import DpgRules
from gotr1_jax.evaluation.dpg_rules import Proposition
from gotr1_jax.evaluation.geneval import GenevalRules
from gotr1_jax.evaluation.geneval_rules import Requirement, read_prompts
from gotr1_jax.evaluation.phrases import RuleParser
from gotr1_jax.evaluation.published import T2I_COMPBENCH
from gotr1_jax.evaluation.queries import ModelQuery
from gotr1_jax.evaluation.t2i_compbench import CompbenchRules
from gotr1_jax.vlm_engine.base import make_image_input

IMAGE = make_image_input(np.zeros((479, 479, 3), np.uint8))
OFFSETS = {"left": (150, 0), "right": (-150, 0), "top": (0, 150), "bottom": (0, -150)}


def found(x: float, y: float, score: float = 1.0) -> list[list[Any]]:
    return [list(Detection.from_box((x, y, x + 100, y + 100), score))]


def says(other: Any, boxes: Mapping[str, Any] | None = None) -> Callable[[ModelQuery], Any]:
    """Answers with the boxes of a name, and to all other questions with `other`."""
    return lambda query: (boxes or {}).get(query.text, []) if query.kind == "find" else other


def expected_color(boxes: Mapping[str, Any]) -> Callable[[ModelQuery], Any]:
    """As `says`, with the color that is asked for."""
    return lambda query: boxes.get(query.text, []) if query.kind == "find" else query.color


def values(rules: Any, caption_index: int, answer: Callable[[ModelQuery], Any]) -> dict[str, float]:
    """What comes of an image when these answers are given, as far as they are asked for."""
    answers: dict[str, Any] = {}
    while new := [a for a in rules.queries(caption_index, IMAGE, answers) if a.key not in answers]:
        answers |= {query.key: answer(query) for query in new}
    return rules.score(caption_index, IMAGE, answers).values


@pytest.mark.parametrize("category", T2I_COMPBENCH)
def test_every_caption_of_t2i_compbench(shared: Path, category: str) -> None:
    file = shared / "prompts" / "t2i_compbench" / f"{category}_val.txt"
    captions = [line.text for line in iter_captions(file)]
    rules = CompbenchRules(category, captions, RuleParser(), {})
    expected_kinds = {"spatial": ["find"], "non_spatial": ["match"],
                      "complex": ["yes", "find", "match"]}  # fmt: skip
    assert rules.kinds == expected_kinds.get(category, ["yes"]) and len(captions) == 300
    for caption_index, caption in enumerate(captions):
        relation = spatial_relation(caption) or ""
        x, y = next((o for word, o in OFFSETS.items() if f"the {word} of" in relation), (0, 100))
        queries = rules.queries(caption_index, IMAGE, {})
        names = [query.text for query in queries if query.kind == "find"]
        boxes = {name: found(i * x, i * y) for i, name in enumerate(names)}
        best = values(rules, caption_index, says(0.25, boxes))
        if names and relation != "on top of" and len(boxes) == 2:
            assert best["find"] == 1, caption
        number = sum(query.kind == "yes" for query in queries)
        assert best.get("yes", 0.25**number) == pytest.approx(0.25**number)
        assert best.get("match", 0.25) == 0.25
        parts = [part for kind, part in best.items() if kind != "score"]
        assert best["score"] == pytest.approx(sum(parts) / len(parts))
        # Nothing is there, or an answer is missing.
        assert values(rules, caption_index, says(0.0))["score"] == 0, caption
        assert (
            math.isnan(values(rules, caption_index, lambda query: math.nan)["score"]) or not queries
        )


def test_every_line_of_geneval(shared: Path) -> None:
    prompts = read_prompts(shared / "prompts" / "geneval_metadata.jsonl")
    rules = GenevalRules(prompts)
    for index, prompt in enumerate(prompts):
        where = {"left of": (0, 190), "right of": (380, 190), "above": (190, 0),
                 "below": (190, 380)}  # fmt: skip
        boxes: dict[str, list[Any]] = {}
        for want in prompt.include:
            x, y = where.get(want.relation, (190, 190))
            boxes[want.name] = found(x, y, 0.95) * want.count

        assert values(rules, index, expected_color(boxes)) == {"correct": 1}, prompt
        assert values(rules, index, says("")) == {"correct": 0}
        assert math.isnan(values(rules, index, lambda query: math.nan)["correct"])
        if any(want.color for want in prompt.include):
            assert values(rules, index, says("gray", boxes)) == {"correct": 0}
            assert math.isnan(values(rules, index, says(math.nan, boxes))["correct"])
        if prompt.tag == "counting":
            (want,) = prompt.include
            assert prompt.exclude == (Requirement(want.name, want.count + 1),)
            more = {want.name: found(0, 0, 0.95) * (want.count + 1)}
            assert values(rules, index, says("", more)) == {"correct": 0}


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
    queries = rules.queries(0, grid, {})
    assert len(queries) == 12 and len({query.key for query in queries}) == 12
    # By cells: all yes; no color; no object; the last cell cannot be scored.
    shares = [1.0, 0.6, 0.51, 1.0, 0.5, 1.0, 0.0, 1.0, 1.0, 1.0, math.nan, 1.0]
    answers = {query.key: share for query, share in zip(queries, shares)}
    scored = rules.score(0, grid, answers)
    assert scored.values["score"] == pytest.approx((3 / 3 + 1 / 3 + 0) / 3)
    # Categories count what was said, whatever the parents.
    assert rules.categories == {"entity": [2 / 3], "attribute": [2 / 3, 1.0]}
    none = rules.score(0, grid, dict.fromkeys(answers, math.nan))
    assert math.isnan(none.values["score"]) and rules.categories["entity"] == [2 / 3]


def test_the_page_of_the_papers_has_their_numbers() -> None:
    """All of those that the tables of `gotr1 eval` show."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "recipes" / "papers.md").read_text()
    tables = (published.T2I_COMPBENCH, published.JANUS_PRO_GENEVAL)
    known = {f"{value:.{digits}f}" for table, digits in zip(tables, (4, 2))
             for row in table.values() for value in row}  # fmt: skip
    known |= {f"{value:.2f}" for value in published.GENEVAL_MEANS.values()}
    known |= {f"{100 * value:.2f}" for row in published.JANUS_PRO_DPG.values() for value in row}
    cells = [
        cell.strip()
        for line in page.splitlines()
        if line.startswith("|")
        for cell in line.split("|")
    ]
    assert known <= {cell for cell in cells if re.fullmatch(r"[\d.]+", cell)}
