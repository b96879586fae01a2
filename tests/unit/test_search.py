"""Test-time search on scripted draws: which plans and images are drawn, repaired and kept."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gotr1_jax.convert.find import EMBEDDED, find_checkpoint
from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.search_report import draw_gains
from gotr1_jax.generate import command
from gotr1_jax.generate.batches import SampleTask
from gotr1_jax.generate.config import GenerateConfig, check_settings_file
from gotr1_jax.generate.search.config import SearchConfig, SearchJob, read_search_options
from gotr1_jax.generate.search.rounds import Search, SearchJudges
from gotr1_jax.generate.search.run import make_judges
from gotr1_jax.generate.tasks import CaptionTask
from gotr1_jax.generate.write_results import GeneratedSample
from gotr1_jax.io.files import write_json_atomic
from gotr1_jax.plan import Box, format_object, parse_plan
from gotr1_jax.rewards.base import JudgeRequest, JudgeResult
from gotr1_jax.tokenizers.janus import TextTokenizer

CAPTION = "a red circle left of a blue square"
BOX, OTHER = Box(94, 406, 312, 625), Box(594, 406, 812, 625)


def plan_text(first: Box, second: Box) -> str:
    return f"{format_object('red circle', first)} left of {format_object('blue square', second)}"


RIGHT, WRONG, WORSE = plan_text(BOX, OTHER), plan_text(BOX, BOX), plan_text(OTHER, BOX)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.from_dir(find_checkpoint(EMBEDDED))


class ScriptedDrawing:
    """Plans by the number of the draw; pixels hold that number."""

    batch_size = 3

    def __init__(self, tokenizer: TextTokenizer, plans: Sequence[str]) -> None:
        boi = tokenizer.specials.boi
        self._plans = [[*tokenizer.encode_plan(text), boi] for text in plans]
        self.rows: list[tuple[str, int, int]] = []  # kind, caption, draw
        self.sizes: list[int] = []

    def draw_plans(self, rows: Sequence[SampleTask]) -> list[list[int]]:
        self._note("plan", rows)
        return [self._plans[row.draw % len(self._plans)] for row in rows]

    def draw_images(self, rows: Sequence[SampleTask]) -> list[tuple[list[int], np.ndarray]]:
        self._note("image", rows)
        assert all(row.plan_ids for row in rows)
        return [([row.draw] * 4, np.full((2, 2, 3), row.draw, np.uint8)) for row in rows]

    def _note(self, kind: str, rows: Sequence[SampleTask]) -> None:
        self.sizes.append(len(rows))
        self.rows += [(kind, row.task.index, row.draw) for row in rows]


class ScriptedJudge:
    """A image's score by the number of its draw."""

    identity = "scripted"

    def __init__(self, scores: Sequence[float], term: str = "ri") -> None:
        self.terms = (term,)
        self._scores = scores
        self.groups: list[int] = []

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        self.groups += [request.group for request in requests]
        values = [
            self._scores[int(request.image[0, 0, 0]) % len(self._scores)] for request in requests
        ]
        return [JudgeResult({self.terms[0]: value}) for value in values]


def rows(count: int, caption: str = CAPTION) -> list[SampleTask]:
    return [SampleTask(CaptionTask(i, caption, "", 1, i), 0, [1, 2], []) for i in range(count)]


def searched(
    tokenizer: TextTokenizer, drawing: ScriptedDrawing, config: SearchConfig,
    judges: SearchJudges | None = None, tasks: Sequence[SampleTask] | None = None, **more: Any,
) -> list[GeneratedSample]:  # fmt: skip
    search = Search(config, drawing, tokenizer, judges or SearchJudges(), 60, **more)
    found = sorted(search(tasks or rows(1)), key=lambda item: item[0].task.index)
    return [sample for _, sample in found]


def record(sample: GeneratedSample) -> dict[str, Any]:
    assert sample.search is not None
    return sample.search


def boxes_of(tokenizer: TextTokenizer, sample: GeneratedSample) -> list[Box]:
    plan = parse_plan(tokenizer.decode(sample.plan_ids, keep_special=True))
    return [box for _, box in plan.boxes]


def test_the_first_plan_that_passes_is_kept(tokenizer: TextTokenizer) -> None:
    drawing = ScriptedDrawing(tokenizer, [WORSE, WRONG, RIGHT, RIGHT])
    (sample,) = searched(tokenizer, drawing, SearchConfig(("verify",), plans=4))
    assert boxes_of(tokenizer, sample) == [BOX, OTHER]
    # Three plans, and one image with the key of draw 0, as without a search.
    assert drawing.rows == [("plan", 0, 0), ("plan", 0, 1), ("plan", 0, 2), ("image", 0, 0)]
    (attempt,) = record(sample)["attempts"]
    assert [v["passed"] for v in attempt["verdicts"]] == [False, False, True]
    assert attempt["plan"] == 2 and record(sample)["cost"]["plans"] == 3
    assert record(sample)["cost"]["image_tokens"] == 4


def test_the_best_plan_is_kept_where_none_passes(tokenizer: TextTokenizer) -> None:
    drawing = ScriptedDrawing(tokenizer, [WORSE, WRONG])
    (sample,) = searched(tokenizer, drawing, SearchConfig(("verify",), plans=2))
    (attempt,) = record(sample)["attempts"]
    # By margin: the boxes of the second plan are level, those of the first on the wrong sides.
    assert attempt["plan"] == 1 and boxes_of(tokenizer, sample) == [BOX, BOX]
    assert attempt["verdicts"][1]["passed"] is False and attempt["repaired"] == []


def test_its_boxes_are_repaired(tokenizer: TextTokenizer) -> None:
    drawing = ScriptedDrawing(tokenizer, [WRONG])
    (sample,) = searched(tokenizer, drawing, SearchConfig(("verify", "repair"), plans=2))
    (attempt,) = record(sample)["attempts"]
    first, second = boxes_of(tokenizer, sample)
    assert second.x1 - first.x2 >= 30 and attempt["plans"] == 2
    assert [m["name"] for m in attempt["repaired"]] == ["red circle", "blue square"]
    assert attempt["repaired"][0]["from"] == [94, 406, 312, 625]
    # A plan that is right already stays as it was drawn, to the token.
    drawing = ScriptedDrawing(tokenizer, [RIGHT])
    (sample,) = searched(tokenizer, drawing, SearchConfig(("repair",)))
    assert sample.plan_ids == [*tokenizer.encode_plan(RIGHT), tokenizer.specials.boi]


def test_what_cannot_be_repaired_says_why(tokenizer: TextTokenizer) -> None:
    missing = format_object("red circle", BOX)
    (sample,) = searched(
        tokenizer, ScriptedDrawing(tokenizer, [missing]), SearchConfig(("repair",))
    )
    assert record(sample)["attempts"][0]["not_repaired"] == "no blue square"


def test_captions_that_no_rule_reads(tokenizer: TextTokenizer) -> None:
    tasks = rows(1, "a cat behind a boy")
    drawing = ScriptedDrawing(tokenizer, [RIGHT])
    config = SearchConfig(("verify", "repair"), plans=3)
    (sample,) = searched(tokenizer, drawing, config, tasks=tasks)
    (attempt,) = record(sample)["attempts"]
    # Never silently passed; and not drawn again, as no later plan could pass.
    assert attempt["plans"] == 1 and attempt["verdicts"][0]["passed"] is None
    assert "no judge" in attempt["verdicts"][0]["reasons"][0]
    assert "do not understand" in attempt["not_repaired"]

    class PlanJudge(ScriptedJudge):
        def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
            good = [request.plan.text == RIGHT for request in requests]
            return [JudgeResult({"sem": 0.9 if g else 0.2}) for g in good]

    drawing = ScriptedDrawing(tokenizer, [WRONG, RIGHT])
    judges = SearchJudges(plans=PlanJudge([], "sem"))
    (sample,) = searched(tokenizer, drawing, config, judges, tasks)
    verdicts = record(sample)["attempts"][0]["verdicts"]
    assert [(v["passed"], v["by"], v["margin"]) for v in verdicts] == [
        (False, "judge", -0.5), (True, "judge", 0.2)
    ]  # fmt: skip


def test_images_are_drawn_until_one_passes(tokenizer: TextTokenizer) -> None:
    config = SearchConfig(("repaint",), images=4, image_score=0.7)
    drawing = ScriptedDrawing(tokenizer, [RIGHT])
    judge = ScriptedJudge([0.2, 0.6, 0.7, 1.0])
    (sample,) = searched(tokenizer, drawing, config, SearchJudges(images=judge))
    assert sample.image_ids == [2] * 4
    assert record(sample)["cost"] == {
        "plans": 1, "plan_tokens": len(sample.plan_ids), "images": 3, "image_tokens": 12
    }  # fmt: skip
    # None passes: the best is kept, the first of equal ones, and one without a score never.
    judge = ScriptedJudge([math.nan, 0.6, 0.2, 0.6])
    (sample,) = searched(tokenizer, drawing, config, SearchJudges(images=judge))
    assert sample.image_ids == [1] * 4
    scores = [s["ri"] for s in record(sample)["attempts"][0]["image_scores"]]
    assert scores == [None, 0.6, 0.2, 0.6]


def test_best_of_keeps_the_largest_total(tokenizer: TextTokenizer) -> None:
    judge = ScriptedJudge([0.1, 0.9, math.nan], "pi")
    judges = SearchJudges(attempts=judge, total=lambda scores: 2 * scores["pi"])
    drawing = ScriptedDrawing(tokenizer, [RIGHT])
    config = SearchConfig(("best_of",), samples=3)
    found = searched(tokenizer, drawing, config, judges, rows(2))
    assert [sample.image_ids for sample in found] == [[1] * 4] * 2
    totals = [a["total"] for a in record(found[0])["attempts"]]
    assert totals == [pytest.approx(0.2), pytest.approx(1.8), None]
    assert record(found[0])["cost"]["images"] == 3
    # The images of a sample are in one group, numbered within each call of the judge.
    assert judge.groups == [0] * 6
    drawing.batch_size = 6
    searched(tokenizer, drawing, config, judges, rows(2))
    assert judge.groups[6:] == [0, 0, 0, 1, 1, 1]


def test_all_methods_together_and_draws_in_full_batches(tokenizer: TextTokenizer) -> None:
    drawing = ScriptedDrawing(tokenizer, [WRONG, RIGHT])
    judges = SearchJudges(
        images=ScriptedJudge([0.1, 0.8]), attempts=ScriptedJudge([0.1, 0.5], "pi"),
        total=lambda scores: scores["pi"],
    )  # fmt: skip
    config = SearchConfig(("verify", "repair", "repaint", "best_of"), plans=2, images=2, samples=2)
    found = searched(tokenizer, drawing, config, judges, rows(6))
    # Plan k of attempt n is draw 2 n + k, image r draw 2 n + r; every attempt needs two of both.
    draws = {(kind, draw) for kind, _, draw in drawing.rows}
    assert draws == {(kind, draw) for kind in ("plan", "image") for draw in range(4)}
    assert len(drawing.rows) == len(set(drawing.rows)) == 6 * 8
    assert [sample.image_ids for sample in found] == [[1] * 4] * 6
    assert drawing.sizes == [3] * (6 * 8 // 3)
    # The same whatever the size of the batches.
    drawing.batch_size = 1
    again = searched(tokenizer, drawing, config, judges, rows(6))
    assert [record(s) for s in again] == [record(s) for s in found]


def test_plans_only(tokenizer: TextTokenizer) -> None:
    drawing = ScriptedDrawing(tokenizer, [WRONG])
    (sample,) = searched(tokenizer, drawing, SearchConfig(("repair",)), plans_only=True)
    assert sample.pixels is None and len(record(sample)["attempts"][0]["repaired"]) == 2
    assert [kind for kind, *_ in drawing.rows] == ["plan"]


# Bad input ----------------------------------------------------------------------------------


def read(*words: str) -> GenerateConfig:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    options = parser.parse_args(["--out", "out", "--prompt", "a cat", *words])
    search = read_search_options(options)
    return GenerateConfig(Path("out"), "a cat", greedy=options.greedy,
                          plans_only=options.plans_only, search=search)  # fmt: skip


JUDGED = ("--judge.kind", "shapes")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--search", "verify", "--search.plans", "0"), "search.plans is 0"),
        (("--search", "verify", "verify"), "each once"),
        (("--search", "repaint"), "repaint, which needs a judge: give --judge.kind"),
        (("--search", "best_of", "--judge.kind", "none"), "best_of, which needs a judge"),
        (("--search", "repaint", "--search.image_term", "hps", *JUDGED), "'hps', which nothing"),
        (("--search", "best_of", "--reward.total", "pi * x", *JUDGED), "'x', which nothing scores"),
        (("--search", "best_of", "--reward.total", "pi *", *JUDGED), "reward.total"),
        (("--search.plans", "3"), "--search.plans is for a search: give --search"),
        (JUDGED, "--judge.kind is for a search"),
        (("--search", "repaint", "--plans-only", *JUDGED), "--plans-only makes none"),
        (("--search", "verify", "--greedy"), "--greedy gives the same"),
        (("--search", "--config", "none.yaml"), "none.yaml"),
    ],
)
def test_bad_options(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(*words)


def test_given_plans_are_refused() -> None:
    with pytest.raises(InputError, match="--search draws plans and --plans gives them"):
        GenerateConfig(Path("out"), plans=Path("plans.jsonl"), search=SearchJob())


@pytest.mark.parametrize(
    ("found", "wanted", "message"),
    [
        ({"a": {"plans": 2}}, {"a": {"plans": 3}}, "searches.a.plans 2, not 3"),
        ({"a": {}, "b": {"plans": 2}}, {"a": {}}, "searches.b {'plans': 2}, not None"),
        ({"a": {}}, {"a": {}, "b": {}}, "searches.b None, not {}"),
    ],
)
def test_the_first_difference_of_settings_is_named(
    found: dict[str, Any], wanted: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "settings.json"
    write_json_atomic(file, {"searches": found})
    with pytest.raises(InputError, match=re.escape(message)):
        check_settings_file(file, {"searches": wanted})


def test_terms_of_ones_own_are_compared(tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text("def score(requests):\n    return [len(r.caption) for r in requests]\n")
    file = tmp_path / "search.yaml"
    file.write_text(
        "search: {methods: [best_of], samples: 2}\n"
        f"reward: {{terms: {{long: {{python: '{own}:score'}}}}, total: 'long / 10'}}\n"
    )
    config = read("--search", "--config", str(file)).search
    assert config is not None and config.known_terms == ("long",)
    judges = make_judges(config)
    assert judges.images is None and judges.plans is None
    assert judges.attempts is not None and judges.total is not None
    request = JudgeRequest("a cat", parse_plan(""), np.zeros((2, 2, 3), np.uint8))
    (result,) = judges.attempts.judge([request])
    assert judges.total({"long": np.array([result.scores["long"]], np.float32)}) == [0.5]


def test_names_of_a_plot_hide_no_point_and_no_other_name() -> None:
    gain = {"gain": 0.1, "low": 0.05, "high": 0.15}
    names = ["a long name of a search", "another", "third"]
    picture = draw_gains([(name, 1 + i / 100, gain) for i, name in enumerate(names)])
    heights = [float(h) - 4 for h in re.findall(r'y="([0-9.]+)" paint-order', picture)]
    points = [float(h) for h in re.findall(r'cy="([0-9.]+)"', picture)]
    assert len(heights) == len(points) == 3
    assert all(h - points[0] >= 9.8 for h in heights)
    assert all(abs(a - b) >= 11.8 for a, b in combinations(heights, 2))
