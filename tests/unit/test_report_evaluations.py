"""Charts of the evaluations: which points they have, and where best and end are marked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_pages import PageReader

from gotr1_jax.report.charts import WIDTH
from gotr1_jax.report.evaluations import evaluation_charts, evaluations
from gotr1_jax.report.metrics import Metrics
from gotr1_jax.report.page import build_table, write_report
from gotr1_jax.report.sections import build_charts
from gotr1_jax.trainer.run_dir import create_run_dir

NAN = math.nan
METRICS = Metrics(
    np.arange(1, 6),
    {
        "evaluation/total": np.array([NAN, 0.5, NAN, 0.75, NAN]),
        "watched/humans": np.array([NAN, 0.6, NAN, 0.3, NAN]),
        "watched/stars": np.array([NAN, 30.0, NAN, 29.0, NAN]),
        "evaluation/diversity/images": np.array([NAN, 0.5, NAN, 0.1, NAN]),
        "loss": np.ones(5),
    },
)
SUMMARY: dict[str, Any] = {
    "steps": 5,
    "before": {"total": 0.25},
    "after": {"total": 0.7},
    "watched": {"before": {"humans": 0.5, "stars": 28.0}, "after": {"humans": 0.2, "stars": 27.0}},
    "diversity": {"before": {"images": 0.6}, "after": {"images": 0.1}},
    "patience": {"why": "humans had fallen", "step": 5, "best_step": 2, "weights_of_step": 5},
}


def test_points_of_the_evaluated_steps_and_of_before_and_after():
    found = evaluations(METRICS, SUMMARY)
    assert found.steps.tolist() == [0, 2, 4, 5]
    assert found.values["watched/humans"].tolist() == [0.5, 0.6, 0.3, 0.2]
    assert "loss" not in found.values
    # The weights of step 2 are no point at step 5.
    restored = {**SUMMARY, "patience": {**SUMMARY["patience"], "weights_of_step": 2}}
    assert evaluations(METRICS, restored).steps.tolist() == [0, 2, 4]


def test_a_watched_term_is_drawn_with_the_total_where_one_scale_shows_both():
    charts = {chart.title: chart for chart in evaluation_charts(METRICS, SUMMARY)}
    assert list(charts) == [
        "humans, watched", "stars, watched", "trained terms", "diversity of the samples",
    ]  # fmt: skip
    assert [line.label for line in charts["humans, watched"].lines] == ["humans", "total, trained"]
    assert [line.label for line in charts["stars, watched"].lines] == [""]
    assert charts["humans, watched"].marks == (
        (pytest.approx(WIDTH * 2 / 5), "best: step 2"),
        (pytest.approx(WIDTH), "end: step 5"),
    )


def test_terms_of_other_sizes_and_more_lines_than_colours_have_charts_of_their_own():
    values = {f"evaluation/term_{i}": np.array([0.1 * i, 0.5, 0.9]) for i in range(8)}
    values["evaluation/total"] = np.array([0.1, 0.2, 0.3])
    values["evaluation/taste_of_mine"] = np.array([-7.0, NAN, -5.0])
    charts = evaluation_charts(Metrics(np.arange(3), values), {})
    assert [chart.title for chart in charts] == [
        "trained terms (1)", "trained terms (2)", "taste_of_mine",
    ]  # fmt: skip
    assert [len(chart.lines) for chart in charts] == [6, 3, 1]
    assert charts[0].lines[1].label == "term_1"


def test_a_score_that_is_missing_has_no_place_on_the_bar():
    (row,) = build_table({"before": {"total": None}, "after": {"total": 0.5}})
    assert (row.before, row.change, row.before_at, row.is_gain) == ("–", "–", None, None)


def test_the_page_shows_them_once_and_the_table_has_the_watched_terms(tmp_path: Path):
    run = create_run_dir(tmp_path / "run", "seed: 3\n", may_exist=False)
    lines = [
        {
            "step": int(s),
            **{n: None if math.isnan(v[i]) else v[i] for n, v in METRICS.values.items()},
        }
        for i, s in enumerate(METRICS.steps)
    ]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.summary.write_text(json.dumps(SUMMARY))
    text = PageReader(write_report(run.root).read_text(encoding="utf-8")).text
    assert "humans, watched" in text and "best: step 2" in text and "humans had fallen" in text
    assert "Other metrics" not in build_charts(
        Metrics(METRICS.steps, {"watched/humans": METRICS.values["watched/humans"]}), {}
    )
    rows = {row.name: row for row in build_table(SUMMARY)}
    assert list(rows) == ["total", "humans", "stars"]
    assert rows["humans"].meaning == "watched, never trained on"
    assert (rows["humans"].before, rows["humans"].after) == ("0.500", "0.200")


@pytest.mark.parametrize(
    "damage",
    [
        {"watched": [1]}, {"watched": {"before": 3, "after": {"x": "y"}}}, {"patience": "no"},
        {"patience": {"why": 3, "step": 10**400, "best_step": -1}}, {"steps": 1e3},
        {"diversity": {"after": {"images": 1e300}}}, {"before": None},
    ],
)  # fmt: skip
def test_a_damaged_summary_still_has_its_charts(damage: dict[str, Any]):
    summary = {**SUMMARY, **damage}
    assert evaluation_charts(METRICS, summary)
    build_table(summary)
