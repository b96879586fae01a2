"""The page with what judges said after training, and its curves of entropy and of the judge."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_pages import NAN, PLAN, PageReader, record, sample

from gotr1_jax import cli
from gotr1_jax.errors import InputError
from gotr1_jax.plan import Box
from gotr1_jax.report.cards import MAX_RAW_ANSWER, build_card
from gotr1_jax.report.load import load_run
from gotr1_jax.report.metrics import Metrics
from gotr1_jax.report.page import tables_of_judges, write_report
from gotr1_jax.report.scores import ReportSample, letter, read_scores, short_name
from gotr1_jax.report.sections import build_charts, entropy_targets
from gotr1_jax.rewards.base import JudgeRequest, JudgeResult
from gotr1_jax.rewards.judging import judge_samples
from gotr1_jax.rewards.stored_samples import find_samples
from gotr1_jax.trainer.run_dir import create_run_dir
from gotr1_jax.trainer.samples import read_samples, write_samples

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=\"alert('2')\">"


class OtherJudge:
    """Finds a circle in every image; cannot score `pi` of images that are darker than 9."""

    terms = ("sem", "pi")

    def __init__(self, identity: str = "http some/Model-7B multiple=28", sem: float = 0.25) -> None:
        self.identity, self._sem = identity, sem

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        return [
            JudgeResult(
                {"sem": self._sem, "pi": NAN if r.image.mean() < 9 else 0.75},
                (("red circle", Box(0, 0, 450, 500)),),
                "sem nearly | pi fine",
                {"sem": 'I say {"score": 3}', "pi": ""},
            )
            for r in requests
        ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two sampled steps of two samples and both evaluations; the second sample is bright."""
    created = create_run_dir(tmp_path / "my_run", "seed: 3\n", may_exist=False)
    bright = {"sample_index": 1, "image": np.full((8, 8, 3), 200, np.uint8)}
    for step in (10, 20):
        write_samples(created.samples, step, [record(), record(**bright)])
    for name in ("eval_before", "eval_after"):
        write_samples(created.samples, 0, [record("a green cross", **bright)], name=name)
    return created.root


def judge_run(run: Path, source: str = "", out: str = "scores.jsonl", **judge: Any) -> Path:
    judge_samples(OtherJudge(**judge), find_samples(run / source), run / out)
    return run / out


def read_page(run: Path, *scores: Path) -> PageReader:
    return PageReader(write_report(run, scores or None).read_text("utf-8"))


def rewrite(path: Path, **changes: Any) -> None:
    """Changes values of the first line."""
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | changes), *rest]) + "\n")


def test_judged_samples_show_the_judge_beside_the_run(run: Path) -> None:
    judge_run(run)
    page = read_page(run)
    assert page.count("article", "judge") == 1
    assert "A http some/Model-7B" in page.text
    # A pair and four samples while training: each with A's column, rationale, answers and box.
    samples = page.data["samples"]
    assert len(samples) == 6 and page.count("details", "settings") == 1
    for found in samples:
        assert {len(row) for row in found["scores"]} == {3}  # term, run, A
        (_, judge) = found["judges"]
        assert (judge["letter"], judge["rationale"]) == ("A", "sem nearly | pi fine")
        assert judge["answers"] == [["sem", 'I say {"score": 3}']]
        assert [box[-1] for box in judge["boxes"]] == ["red circle"]
    assert "found by A" in page.text and "found by the run’s judge" in page.text


def test_without_scores_there_is_no_trace_of_other_judges(run: Path) -> None:
    page = read_page(run)
    assert page.count("article", "judge") == 0
    assert {len(found["judges"]) for found in page.data["samples"]} == {1}
    assert "Judged afterwards" not in page.text and "found in the image" in page.text


def test_means_of_a_judge_stand_beside_the_runs_on_the_same_samples(run: Path) -> None:
    judge_run(run)
    (table,) = tables_of_judges(load_run(run, 100))
    assert (table.letter, table.name) == ("A", "http some/Model-7B")
    assert table.parts == (("before", 1), ("after", 1), ("while training", 4))
    sem, pi = table.rows["sem"][2], table.rows["pi"][2]
    assert sem is not None and pi is not None
    assert (sem.judged, sem.own, sem.failed) == (0.25, 1.0, 0)
    assert (pi.judged, pi.failed) == (0.75, 2) and math.isnan(pi.own)


def test_a_step_that_was_judged_alone_is_found_and_stays_on_the_page(run: Path) -> None:
    for step in (12, 14, 16):
        write_samples(run / "samples", step, [record()])
    judge_run(run, "samples/step_000014", "scores_14.jsonl")
    data = load_run(run, max_records=2)
    assert list(data.steps) == [10, 14, 20]
    assert {step: [set(s.results) for s in found] for step, found in data.steps.items()} == {
        10: [set(), set()], 14: [{0}], 20: [set(), set()],
    }  # fmt: skip


def test_judges_stand_side_by_side_and_a_later_line_counts(run: Path) -> None:
    first = judge_run(run, out="a.jsonl")
    second = judge_run(run, out="b.jsonl", identity="another", sem=0.5)
    again = judge_run(run, "samples/eval_after", "c.jsonl", sem=1.0)
    data = load_run(run, 100, [first, second, again])
    assert data.judges == ("http some/Model-7B multiple=28", "another")
    (before,), (after,) = data.before, data.after
    assert after.record.image_name == "00_01.png"
    assert {judge: result.scores["sem"] for judge, result in after.results.items()} == {
        0: 1.0,
        1: 0.5,
    }
    assert [result.scores["sem"] for result in before.results.values()] == [0.25, 0.5]
    means = [table.rows["sem"][1] for table in tables_of_judges(data)]
    assert [found and found.judged for found in means] == [1.0, 0.5]
    assert load_run(run, 100).judges == ()  # none of the files is called scores*.jsonl


def test_card_has_a_column_for_each_judge() -> None:
    raw_answers = {"pi": " yes ", "sem": "x" * (MAX_RAW_ANSWER + 1), "ri": ""}
    result = JudgeResult(
        {"sem": 0.5, "pi": NAN}, (("red circle", Box(0, 0, 500, 500)), ("cat", Box(9, 9, 20, 20))),
        "fine", raw_answers,
    )  # fmt: skip
    card = build_card(ReportSample(record(), {1: result}))
    texts = {term: [value.text for value in values] for term, values in card.scores.items()}
    assert texts == {
        "total": ["0.50", ""],
        "sem": ["1.00", "0.50"],
        "spa": ["0.25", ""],
        "ri": ["–", ""],
        "pi": ["", "–"],
    }
    (judge,) = card.judges
    assert (judge.letter, judge.rationale) == ("B", "fine")
    assert [(box.name, box.width, box.color) for box in judge.detections] == [
        ("red circle", 4.0, 0),
        ("cat", 0.09, None),
    ]
    assert judge.raw_answers == (("pi", "yes"), ("sem", "x" * MAX_RAW_ANSWER + " …"))


def test_text_of_a_judge_never_becomes_markup(run: Path) -> None:
    path = judge_run(run, identity=f"{HOSTILE} x=1")
    rewrite(
        path,
        rationale=HOSTILE,
        raw_answers={HOSTILE: HOSTILE},
        scores={HOSTILE: 0.5},
        detections=[{"name": HOSTILE, "box": [1, 2, 3, 4]}],
    )
    page = read_page(run)
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert "img" not in {tag for tag, _ in page.tags}
    # identity and name, rationale, raw answer and its term, term in card and table, box
    assert page.text.count(HOSTILE) >= 7


def test_scores_of_another_run_are_refused(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_samples(other / "samples", 33, [record()])
    path = judge_run(other)
    with pytest.raises(InputError, match="another run: there is no step_000033/00_00.png in this"):
        write_report(run, [path])
    write_samples(other / "samples", 10, [record(plan_text=f"{PLAN} or so")])
    judge_run(other, out="scores_2.jsonl")
    with pytest.raises(InputError, match="step_000010/00_00.png has another caption or plan here"):
        write_report(run, [other / "scores_2.jsonl"])
    write_samples(other / "samples", 10, [record(caption_index=7)])
    judge_run(other, out="scores_3.jsonl")
    with pytest.raises(InputError, match="there is no step_000010/07_00.png in this one"):
        write_report(run, [other / "scores_3.jsonl"])
    assert not (run / "report.html").exists()
    # One that lies in the run is named on the page instead: a run's own end must not fail by it.
    (run / "scores_old.jsonl").write_bytes(path.read_bytes())
    page = read_page(run)
    assert "scores_old.jsonl holds scores of another run" in page.text
    assert [len(found["judges"]) for found in page.data["samples"]] == [1] * 6


@pytest.mark.parametrize(
    "change",
    [
        {"judge": 3},
        {"image": None},
        {"raw_answers": ["x"]},
        {"scores": {"sem": "much"}},
        {"scores": [1.0]},
        {"detections": [{"name": "a", "box": [1, 2, 3]}]},
        {"detections": [{"name": "a", "box": [1, 2, 3, math.inf]}]},
        {"rationale": "x", "caption": 1},
    ],
)
def test_a_broken_line_is_named(run: Path, change: dict[str, Any]) -> None:
    path = judge_run(run)
    rewrite(path, **change)
    with pytest.raises(InputError, match="scores.jsonl, line 1 is no line of scores"):
        write_report(run, [path])


def test_files_that_hold_no_scores_are_named(run: Path, capsys: pytest.CaptureFixture) -> None:
    path = judge_run(run, out="cut.jsonl")
    path.write_text(path.read_text()[:-20])
    capsys.readouterr()
    for name, text, message in (
        ("nowhere.jsonl", None, "no file of scores at"),
        ("empty.jsonl", "\n", "holds no scores"),
        ("metrics.jsonl", '{"step": 1}\n', "line 1 is no line of scores"),
        ("deep.jsonl", "[" * 100_000, "line 1 is no line of scores"),
        ("cut.jsonl", path.read_text(), "line 6 is no line of scores"),
    ):
        if text is not None:
            (run / name).write_text(text)
        assert cli.run(["report", str(run), "--scores", str(run / name)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (run / "report.html").exists()


def test_raw_answers_of_the_runs_judge_are_kept_and_older_runs_still_read(tmp_path: Path) -> None:
    folder = write_samples(tmp_path, 1, [record(raw_answers={"sem": "well\ndone"})])
    assert read_samples(folder)[0].raw_answers == {"sem": "well\ndone"}
    assert "well\ndone" in read_page(tmp_path_run(tmp_path, folder)).text
    lines = folder / "samples.jsonl"
    old = {k: v for k, v in json.loads(lines.read_text()).items() if k != "raw_answers"}
    lines.write_text(json.dumps(old) + "\n")
    assert read_samples(folder)[0].raw_answers == {}


def test_scores_of_earlier_versions_are_read(run: Path) -> None:
    path = judge_run(run)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    names = {"detections": "located", "rationale": "words", "raw_answers": "said"}
    assert all(names.keys() < line.keys() for line in lines)
    new = read_scores(path)
    old = [{names.get(key, key): value for key, value in line.items()} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in old))
    assert [repr(line) for line in read_scores(path)] == [repr(line) for line in new]
    judge_run(run)  # takes the lines over, under today's keys
    assert [json.loads(line) for line in path.read_text().splitlines()] == lines


def tmp_path_run(root: Path, folder: Path) -> Path:
    run = create_run_dir(root / "run", "seed: 1\n", may_exist=False)
    (run.samples / folder.name).symlink_to(folder)
    return run.root


def test_plans_of_text_alone_are_shown_as_text(tmp_path: Path) -> None:
    created = create_run_dir(tmp_path / "run", "seed: 1\n", may_exist=False)
    text = "A car <b>in the rain</b>.\n\nIt is red."
    write_samples(created.samples, 1, [record(plan_text=text, planned=(), detections=())])
    page = read_page(created.root)
    assert text in page.text
    (found,) = page.data["samples"]
    assert found["isText"] and page.data["isWide"]
    assert "planned" not in found and page.data["boxes"] == []
    assert not build_card(sample(plan_text="")).is_text and not build_card(sample()).is_text


def test_judges_have_short_names() -> None:
    assert short_name("shapes") == "shapes"
    assert short_name("http http://h/v1 Qwen/Q-7B multiple=28 instructions=3 Config(a=1)") == (
        "http http://h/v1 Qwen/Q-7B"
    )
    assert short_name("hps /m [hps] + python a:b 12cd [sem, pi]") == "hps /m + python a:b 12cd"
    assert short_name("a=b c=d") == "a=b"
    assert [letter(i) for i in (0, 25, 26)] == ["A", "Z", "A2"]


def test_entropy_is_drawn_with_its_targets_and_coefficients() -> None:
    values = {
        "policy/entropy/text": np.array([1.0, 1.5]),
        "policy/entropy/image": np.array([7.5, 7.25]),
        "policy/entropy_coefficient/text": np.array([0.0, 1e-4]),
        "policy/entropy_coefficient/image": np.array([0.0, -1e-4]),
    }
    targets = entropy_targets("entropy:\n  text_target: 2.0\n  image_target: 7\n")
    charts = build_charts(Metrics(np.arange(2), values), targets)["Entropy"]
    assert [chart.title for chart in charts] == [
        "entropy of the plan",
        "entropy of the image",
        "entropy coefficients α",
    ]
    # Values 1.0 to 1.5 and the target 2.0: the axis reaches up to it.
    assert charts[0].level == (0.0, "target 2.00") and charts[0].y_ticks[-1] == (0.0, "2.00")
    assert [line.label for line in charts[2].lines] == ["plan", "image"]
    without = build_charts(Metrics(np.arange(2), dict(list(values.items())[:2])), {})
    assert [chart.level for chart in without["Entropy"]] == [None, None]


@pytest.mark.parametrize(
    "text",
    [
        "", "entropy: null", "- 1", "a: [", "entropy: {text_target: x}",
        f"entropy: {{text_target: null, image_target: 1{'0' * 400}}}",
    ],
)  # fmt: skip
def test_a_configuration_without_targets_gives_none(text: str) -> None:
    assert entropy_targets(text) == {}


def test_figures_of_the_judge_have_their_section() -> None:
    names = ("failed_frac", "unread_frac", "unread_frac/score", "asked_twice_frac", "questions")
    metrics = Metrics(np.arange(2), {f"judge/{name}": np.full(2, 0.01) for name in names})
    sections = build_charts(metrics, {})
    assert list(sections) == ["Judge"] and len(sections["Judge"]) == len(names)
    # Small shares are shown up to a tenth, so that one failure does not look like many.
    assert [label for _, label in sections["Judge"][0].y_ticks][-1] == "0.100"
