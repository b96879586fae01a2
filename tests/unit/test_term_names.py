"""Terms of any name and range in files, pages, tables and plots."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gotr1_jax.ablate.report import plot, table
from gotr1_jax.ablate.results import Change, TermResult, VariantResult
from gotr1_jax.config import from_dict
from gotr1_jax.errors import InputError
from gotr1_jax.grpo.alarms import _reason
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.grpo.evaluate import Evaluation, format_table
from gotr1_jax.grpo.terms_file import check_run_functions, describe_terms, write_terms
from gotr1_jax.grpo.watched import WatchedJudge
from gotr1_jax.report.metrics import Metrics
from gotr1_jax.report.page import build_table
from gotr1_jax.report.sections import build_charts
from gotr1_jax.report.terms import read_meanings
from gotr1_jax.rewards.combine import NO_TOTAL, without_total
from gotr1_jax.rewards.shapes import ShapesJudge
from gotr1_jax.rewards.terms import TermConfig
from gotr1_jax.trainer.run_dir import RunDir

NAN = float("nan")
LONG = "a_term_of_my_own_with_a_long_name"


class Own(ShapesJudge):
    """The exact judge with two terms more."""

    meanings = {"sem": "the plan's names", LONG: "mine"}

    def __init__(self) -> None:
        super().__init__(("sem", LONG, "seen"))


def test_the_terms_file_and_what_the_page_reads_of_it(tmp_path: Path) -> None:
    reward = {
        "total": f"sem * {LONG}",
        "terms": {
            LONG: {"python": "m:f", "weight": 0.5, "clip": [-1, 2]},
            "seen": {"python": "m:g", "meaning": "as the configuration says"},
        },
    }
    config = from_dict(GrpoConfig, {"run_dir": "r", "steps": 1, "reward": reward})
    notes: list[str] = []
    humans = WatchedJudge("humans", from_dict(TermConfig, {"python": "m:h", "scale": 2}), Own)
    write_terms(RunDir(tmp_path), config, Own(), [humans], notes.append)
    assert notes == ["reward.terms: seen is not in reward.total: it is watched, never trained on"]
    stored = json.loads((tmp_path / "terms.json").read_text())
    assert (
        stored == describe_terms(config, Own(), [humans]) and stored["formula"] == f"sem * {LONG}"
    )
    meanings = read_meanings(tmp_path / "terms.json", [])
    assert list(meanings)[:4] == ["total", "sem", LONG, "seen"]
    assert meanings["total"] == f"sem * {LONG}" and meanings["sem"] == "the plan's names"
    assert meanings[LONG] == "mine; weight 0.5; clipped to [-1.0, 2.0]"
    assert meanings["seen"] == "as the configuration says; watched, not in the total"
    assert meanings["humans"] == "the plan's names; scale 2; watched, never trained on"


def test_a_damaged_terms_file_is_a_line_and_loses_nothing(tmp_path: Path) -> None:
    path, problems = tmp_path / "terms.json", list[str]()
    path.write_text('{"terms": [3, {"name": 4}, {"name": "x", "clip": "ab"}]}')
    assert read_meanings(path, problems)["x"] == "" and problems == []
    path.write_text("{")
    assert "sem" in read_meanings(path, problems) and len(problems) == 1


def test_charts_and_bars_of_scores_beyond_one() -> None:
    values = {"reward/total/mean": np.array([0.2, 0.4]), f"reward/{LONG}/mean": np.array([-9, -7])}
    total, own = build_charts(Metrics(np.arange(2), values), {}, {"total": "", LONG: "mine"})[
        "Rewards"
    ]
    assert [label for _, label in total.y_ticks][-1] == "1.00" and own.subtitle == "mine"
    assert float(own.y_ticks[0][1]) == -9 and float(own.y_ticks[-1][1]) == -7
    rows = build_table(
        {"before": {"total": 0.5, "x": -8.0, "y": 50.0}, "after": {"total": 1.0, "x": -4, "y": 25}}
    )
    assert [(row.before_at, row.after_at) for row in rows] == [(0.5, 1.0), (0.0, 0.5), (1.0, 0.5)]


def test_tables_have_room_for_long_names_and_numbers() -> None:
    before = Evaluation({LONG: np.float32([1, 3]), "n": np.float32([1e6, 1e6])}, np.float32([0, 1]))
    lines = format_table(before, before, (0.0, 0.0)).splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[2].split() == [LONG, "2.000", "2.000", "+0.000"]
    assert lines[3].split()[1] == "1.0e+06"


def test_an_ablation_of_other_terms_and_ranges() -> None:
    def variant(name: str, **terms: float) -> VariantResult:
        change = Change(1.0, 0.5, 1.5)
        results = {k: TermResult(v, v + 1, change) for k, v in terms.items()}
        return VariantResult(name, name, (0,), 1, 2, 2, 1.0, results)

    results = [variant("one", pi=0.0), variant("two", pi=0.0, **{LONG: -10.0})]
    assert table(results).splitlines()[0].startswith(f"| trained on | pi | {LONG} |")
    svg = plot(results)
    assert ">-10</text>" in svg and ">0.5</text>" in svg


def test_a_row_without_a_total_has_its_own_cause() -> None:
    scores = {"a": np.array([1.0, NAN, 2.0]), "b": np.array([0.0, 0.0, 1.0])}
    total = np.array([NAN, NAN, 2.0], np.float32)
    assert without_total(scores, total, ["a", "b"]).tolist() == [True, False, False]
    assert _reason(f"fine | {NO_TOTAL}") == NO_TOTAL


def test_a_function_that_is_gone_where_a_run_is_resumed(tmp_path: Path, monkeypatch) -> None:
    """Both places are named; the first word of a run is of before its models are loaded."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (project, elsewhere):
        folder.mkdir()
    (project / "mine.py").write_text("def f(requests): ...\n")
    values = {"run_dir": "r", "steps": 1, "reward": {"terms": {"f": {"python": "mine.py:f"}}}}
    config = from_dict(GrpoConfig, {**values, "reward": {**values["reward"], "total": "f"}})
    run = RunDir(tmp_path)
    monkeypatch.chdir(project)
    write_terms(run, config, Own(), (), print)
    check_run_functions(config, run)
    monkeypatch.chdir(elsewhere)
    for resumed, more in ((run, f"; the run that is resumed was started in {project}"), (None, "")):
        with pytest.raises(InputError, match=f"no file mine.py in {elsewhere}: .*f{more}"):
            check_run_functions(config, resumed)
    run.terms.write_text("{")
    with pytest.raises(InputError, match="no file mine.py"):
        check_run_functions(config, run)
