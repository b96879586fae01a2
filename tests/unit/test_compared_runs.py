"""Several runs on one page, and where they come from."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_pages import PageReader, record

from gotr1_jax import cli
from gotr1_jax.config import field_kinds, sections_of
from gotr1_jax.evaluation.card import write_card
from gotr1_jax.jobs import JOBS, job_schema
from gotr1_jax.report.compare import compare_settings, write_comparison
from gotr1_jax.report.load import load_run
from gotr1_jax.report.page import write_report
from gotr1_jax.report.provenance import describe_provenance
from gotr1_jax.report.settings import _FORMER, read_settings
from gotr1_jax.trainer.provenance import add_start, command_line, describe_start
from gotr1_jax.trainer.run_dir import RunDir, create_run_dir
from gotr1_jax.trainer.samples import write_samples


def make_run(root: Path, config: str, before: dict[str, float], after: dict[str, float]) -> RunDir:
    run = create_run_dir(root, config, may_exist=False)
    run.summary.write_text(json.dumps({"before": before, "after": after, "steps": 9}))
    return run


def columns(page: PageReader) -> list[list[list[float | None]]]:
    """Of each caption the totals by run and stage."""
    totals = [sample["values"]["total"] for sample in page.data["samples"]]
    return [
        [[None if n is None else totals[n] for n in column["at"]] for column in item["columns"]]
        for item in page.items("side_by_side")
    ]


def test_runs_that_share_little(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", "seed: 3\nlr: 0.1\n", {"total": 0.1}, {"total": 0.4})
    two = make_run(tmp_path / "a" / "one", "seed: 4\nlr: 0.1\nkl: {text: 1}\n", {}, {})
    three = create_run_dir(tmp_path / "three", "seed: 3\nlr: 0.1\n", may_exist=False)
    for run, name, total in ((one, "eval_before", 0.1), (one, "eval_step_000010", 0.2),
                             (two, "eval_step_000002", 0.3), (two, "eval_after", 0.5)):  # fmt: skip
        records = [
            record("a", total=total),
            record(f"only of {run.root.parent.name}", caption_index=1),
        ]
        write_samples(run.samples, 0, records, name=name)
    one.metrics.write_text('{"step": 1, "reward/total/mean": 0.5, "mine": 1}\n')
    two.metrics.write_text('{"step": 7, "reward/total/mean": 0.25, "reward/sem/mean": 1}\n')
    path = write_comparison([one.root, two.root, three.root])
    assert path == one.root / "comparison.html"
    page = PageReader(path.read_text("utf-8"))
    (gallery,) = page.data["galleries"]
    assert gallery["stages"] == ["before", "step 2", "step 10", "after"]
    assert columns(page)[0] == [
        [0.1, None, 0.2, None], [None, 0.3, None, 0.5], [None] * 4,
    ]  # fmt: skip
    three.config.write_text("- broken")
    write_comparison([one.root, three.root])
    # Equal names become letters; the settings that differ, and no others, stand side by side.
    assert [c["label"] for c in gallery["items"][0]["columns"]] == ["A", "B", "C"]
    assert "kl.text" in page.text and "lr" not in page.text.split("Settings that differ")[1]
    assert page.count("figure", "chart") == 3  # total, sem, mine
    assert page.count("table", "compared") == 1 and "+0.300" in page.text
    assert [t for t, _ in page.tags].count("script") == 2


def test_runs_that_make_no_page(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = str(create_run_dir(tmp_path / "run", "seed: 3\n", may_exist=False).root)
    for number in range(7):
        create_run_dir(tmp_path / str(number), "seed: 3\n", may_exist=False)
    many = [str(tmp_path / str(number)) for number in range(7)]
    (tmp_path / "none").mkdir()
    capsys.readouterr()
    for words, message in (
        ([run, run], "is given twice"),
        ([run, f"{run}/../run"], "is given twice"),
        (many, "7 runs; a page compares 6 at most"),
        ([run, str(tmp_path / "none")], "is no run directory"),
        ([run, "nowhere"], "no run at nowhere"),
        ([run, many[0], "--out", str(tmp_path)], "is a directory; name a file"),
        ([run, "--out", str(tmp_path)], "is a directory; name a file"),
        ([run, many[0], "--scores", "x"], "--scores is of one run"),
    ):
        assert cli.run(["report", *words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not list(tmp_path.rglob("*.html"))
    assert cli.run(["report", run, "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").is_file() and not (Path(run) / "report.html").exists()


def test_provenance(tmp_path: Path) -> None:
    run = create_run_dir(tmp_path / "run", "seed: 3\n", may_exist=False)
    assert describe_provenance((), "seed: 3\n") == [("seed", "3")]  # of earlier versions
    assert describe_provenance((), "[") == []
    for damage in ("{", '{"starts": 3}', "[1]", '{"starts": [3]}'):
        run.provenance.write_text(damage)
        assert "provenance.json" in PageReader(write_report(run.root).read_text("utf-8")).text
        add_start(run.provenance, {"seed": 1})
        starts: list[dict[str, Any]] = json.loads(run.provenance.read_text())["starts"]
        assert starts[-1] == {"seed": 1}
    run.provenance.unlink()
    for step in (0, 20):
        add_start(run.provenance, describe_start(5, step))
    page = PageReader(write_report(run.root).read_text("utf-8"))
    assert "2 times, at the steps 0, 20" in page.text and "jaxlib " in page.text
    hostile = {"command": ["x"], "seed": 10**400, "versions": "<b>" * 900, "date": None}
    lines = dict(describe_provenance((hostile,), ""))
    assert list(lines) == ["versions"] and len(lines["versions"]) < 700


def test_former_names_of_settings_are_no_difference(tmp_path: Path) -> None:
    old = """judge: {kind: qwen2_5_vl, qwen2_5_vl: {checkpoint: A, picture_tokens: 9000},
  also: [{kind: qwen2_5_vl, qwen2_5_vl: {checkpoint: B}}]}
reward: {rule: v2}
loss: {advantage: grpo}
seed: 3
"""
    new = """judge: {kind: qwen_vl, qwen_vl: {checkpoint: A, image_tokens: 9000},
  also: [{kind: qwen_vl, qwen_vl: {checkpoint: B}}]}
reward: {total: v2}
advantage: {kind: grpo}
seed: 4
"""
    runs = [make_run(tmp_path / name, text, {}, {}) for name, text in (("a", old), ("b", new))]
    loaded = {run.root.name: load_run(run.root, 0) for run in runs}
    assert compare_settings(loaded) == {"seed": ["3", "4"]}
    # No run begins with both names: such a file is none that can be read.
    assert read_settings(old.replace("judge: {", "judge: {qwen_vl: {checkpoint: C}, ")) == {}


def test_former_names_are_those_of_the_jobs() -> None:
    def former(schema: type, prefix: str = "") -> Iterator[tuple[str, str]]:
        for old, new in getattr(schema, "renamed_keys", {}).items():
            yield prefix + old, prefix + new
        for name, kind in field_kinds(schema).items():
            for section in sections_of(kind):
                if section is not schema:  # a judge can have further ones
                    yield from former(section, f"{prefix}{name}.")

    names = {old: new for job in JOBS for old, new in former(job_schema(job))}
    assert len(names) >= 6
    for old, new in names.items():
        if not old.startswith("judge."):
            assert _FORMER[old] == new


def test_a_command_is_told_without_its_folder_and_passwords(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["/home/me/bin/gotr1", "train", "--judge.http.url", "http://me:secret@host/v1", "a b"]
    told = command_line(words)
    assert told == "gotr1 train --judge.http.url http://…@host/v1 'a b'"
    monkeypatch.setattr(sys, "argv", words)
    write_card(tmp_path / "card.json", "a card, which is published", {}, {}, 1.0)
    assert json.loads((tmp_path / "card.json").read_text("utf-8"))["command"] == told
