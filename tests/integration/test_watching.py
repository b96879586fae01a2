"""Watched terms and patience in whole runs: what they end, go back to, and never touch."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import (
    compiled_once,
    grpo_values,
    judge_by_brightness,
    run_grpo,
    steady_metrics,
    write_shapes,
)

from gotr1_jax.errors import InputError
from gotr1_jax.grpo.run_weights import read_run_weights
from gotr1_jax.trainer.samples import read_samples

# Rises in the first evaluation, then falls: 0.5 before training, then 0.9, 0.6, 0.55, ...
HUMANS = '''
import os
from pathlib import Path


def score(requests):
    """people like it"""
    run, start = Path(os.environ["WATCHED_RUN"]), float(os.environ["WATCHED_START"])
    if not (run / "eval_before.json").exists():
        return [start] * len(requests)
    done = len(list(run.glob("eval_step_*.json")))
    return [0.9 if done == 0 else 0.65 - 0.05 * done] * len(requests)
'''


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with compiled_once(tmp_path_factory.getbasetemp() / "programs"):
        yield write_shapes(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(autouse=True)
def quiet_start(monkeypatch: pytest.MonkeyPatch) -> None:
    judge_by_brightness(monkeypatch)


def watched_values(checkpoint: Path, run_dir: Path, start: float = 0.5) -> dict[str, Any]:
    os.environ |= {"WATCHED_RUN": str(run_dir), "WATCHED_START": str(start)}
    source = checkpoint.with_name("humans.py")
    source.write_text(HUMANS)
    values = grpo_values(checkpoint, run_dir)
    values |= {"steps": 4, "checkpoint": {"every": 10, "keep": 1}}
    patience = {"term": "humans", "fall": 0.1, "evaluations": 2, "action": "restore_best"}
    values["evaluation"] |= {
        "every": 1, "judges": {"humans": {"python": f"{source}:score"}}, "patience": patience,
    }  # fmt: skip
    return values


@pytest.fixture(scope="module")
def ended(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ended") / "run"
    with pytest.MonkeyPatch.context() as patch:
        judge_by_brightness(patch)
        assert run_grpo(watched_values(checkpoint, root)) == 0
    return root


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_run_whose_watched_term_falls_ends_with_the_weights_of_its_best(ended: Path):
    summary = read(ended / "summary.json")
    patience = summary["patience"]
    assert (patience["step"], patience["best_step"], patience["weights_of_step"]) == (3, 1, 1)
    assert summary["steps"] == 3 and "humans had fallen in 2 evaluations" in patience["why"]
    assert summary["watched"]["before"] == {"humans": 0.5}
    # The weights of step 1, to the bit: in the last evaluation and in what is exported again.
    best, after = (read(ended / f"eval_{name}.json") for name in ("step_000001", "after"))
    assert best["total"] == after["total"] != read(ended / "eval_step_000003.json")["total"]
    assert read_run_weights(ended).step == 1
    assert {path.name for path in (ended / "checkpoints").iterdir()} == {
        "step_000001",
        "step_000003",
    }


def test_watched_terms_and_diversity_are_in_metrics_evaluations_and_report(ended: Path):
    lines = steady_metrics(ended)
    # A sample that an earlier evaluation drew too has the score of then.
    first, second, third = (line["watched/humans"] for line in lines)
    assert 0.75 < first < 0.91 and max(second, third) < 0.7
    assert all("evaluation/total" in line for line in lines)
    assert all("evaluation/diversity/images" in line for line in lines)
    assert not any(name.startswith("reward/humans") for line in lines for name in line)
    evaluation = read(ended / "eval_step_000002.json")
    assert set(evaluation["watched"]) == {"humans"} and len(evaluation["diversity"]["images"]) == 2
    page = (ended / "report.html").read_text(encoding="utf-8")
    assert "humans" in page


def after_step_1(ended: Path, run: Path) -> None:
    """The run as of its best evaluation: the two steps after it are lost."""
    shutil.copytree(ended, run)
    shutil.rmtree(run / "checkpoints/step_000003")


def test_nothing_of_watched_terms_reaches_training(
    ended: Path, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """A run that goes on without them, and with one whose server is down, has the same rewards,
    losses and gradients, to the bit; its evaluation before training stays."""
    run = tmp_path / "run"
    after_step_1(ended, run)
    values = watched_values(checkpoint, run)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/score"
    down = {"http": {"url": url, "model": "ocr", "retries": 0}}
    values["evaluation"] |= {"every": 0, "judges": {"ocr": down}, "patience": None, "follow": True}
    for stale in ("eval_step_000002", "eval_step_000003"):
        (run / "samples" / stale / "samples.jsonl").write_text("of a step that is lost")
    assert run_grpo(values) == 0 and "evaluated again" not in caplog.text
    assert "judges.ocr has no scores until its server answers" in caplog.text
    assert "eval_after: the watched term ocr could not be scored for 4 samples" in caplog.text
    lines = steady_metrics(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for mine, plain in zip(steady_metrics(ended)[1:], lines[1:3], strict=True):
        kept = {k: v for k, v in mine.items() if not k.startswith(("watched/", "evaluation/"))}
        assert kept == plain
    # Captions are followed by the very samples that an evaluation of that step stored.
    followed = [read_samples(root / "samples/eval_step_000002") for root in (ended, run)]
    assert not (run / "samples/eval_step_000003").exists()
    for one, other in zip(*followed, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert (one.caption_index, one.scores, one.total) == (
            other.caption_index, other.scores, other.total,
        )  # fmt: skip
    assert 0 < followed[0][0].watched["humans"] < 1 and math.isnan(followed[1][0].watched["ocr"])
    summary = read(run / "summary.json")
    assert "patience" not in summary
    assert summary["watched"] == {"before": {}, "after": {"ocr": None}}
    assert "ocr" in (run / "report.html").read_text(encoding="utf-8")


def test_a_resumed_run_decides_the_same(ended: Path, checkpoint: Path, tmp_path: Path):
    run = tmp_path / "run"
    after_step_1(ended, run)
    values = watched_values(checkpoint, run)
    assert run_grpo(values, "--resume", "auto") == 0
    assert steady_metrics(run) == steady_metrics(ended)
    mine, whole = (read(root / "summary.json") for root in (run, ended))
    same = ("patience", "before", "after", "watched", "diversity")
    assert {k: mine[k] for k in same} == {k: whole[k] for k in same}
    # It is over: the same command again does not train on.
    assert run_grpo(values, "--resume", "auto") == 0
    assert read(run / "summary.json")["patience"] == whole["patience"]


def test_a_run_that_only_falls_ends_with_the_weights_it_began_with(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    values = watched_values(checkpoint, tmp_path / "run", start=2.0)
    values["evaluation"]["patience"] |= {"evaluations": 1}
    assert run_grpo(values) == 0
    patience = read(tmp_path / "run/summary.json")["patience"]
    assert (patience["step"], patience["weights_of_step"]) == (1, 0)
    before, after = (read(tmp_path / f"run/eval_{name}.json") for name in ("before", "after"))
    assert (
        before["total"] == after["total"] != read(tmp_path / "run/eval_step_000001.json")["total"]
    )
    assert "goes back to the weights of step 0, its best" in capsys.readouterr().out
    # The only checkpoint is that of step 1: nothing may be exported from it as the run's.
    with pytest.raises(InputError, match="ended with the weights of step 0, of which it has no"):
        read_run_weights(tmp_path / "run")
