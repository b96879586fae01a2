"""GRPO with a model for a judge, in one process: every term, words, the cache, unread answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judge_server import Server, send
from lookup_engine import plan_text
from safetensors.numpy import load_file, save_file
from taught_qwen import FOUND, judge_values
from tiny import (
    compiled_once,
    grpo_values,
    interrupt_after,
    run_grpo,
    steady_metrics,
    write_shapes,
)
from tiny_clip import write_tiny_clip
from tiny_qwen import TINY_QWEN, write_tiny_qwen

from gotr1_jax.grpo import scoring
from gotr1_jax.plan import iou, parse_plan
from gotr1_jax.plan.boxes import box_from_pixels
from gotr1_jax.trainer.metrics import read_metrics
from gotr1_jax.trainer.samples import read_samples

TERMS = ("sem", "spa", "ri", "pi", "hps")
CAPTIONS = ("a cat on the left of a desk", "two wooden chairs and a green apple", "a blue bus")
PLANNED = plan_text(("cat", (50, 50, 700, 900)), ("dog", (500, 400, 999, 999)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with compiled_once(tmp_path_factory.getbasetemp() / "programs"):
        yield write_shapes(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture
def values(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Three steps of 2 captions x 2 samples; a random policy's plans, with boxes behind them."""
    monkeypatch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
    monkeypatch.setattr(scoring, "parse_plan", lambda text: parse_plan(f"{text} {PLANNED}"))
    file = tmp_path / "captions.txt"
    file.write_text("\n".join(CAPTIONS))
    values = grpo_values(checkpoint, tmp_path / "run")
    values |= {"steps": 3, "samples_every": 1, "checkpoint": {"every": 1}}
    values["captions"] = {"source": str(file)}
    values["evaluation"] = {"source": str(file), "captions": 2, "samples": 1, "shown": 2}
    return values


def test_every_term_is_earned_kept_and_never_asked_for_twice(values, tmp_path):
    root = tmp_path / "run"
    values["judge"] = judge_values(tmp_path)
    values["reward"] = {"rule": "v2", "terms": list(TERMS)}
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 2)
        assert run_grpo(values) == 130
    stopped = steady_metrics(root)
    assert run_grpo(values) == 0

    lines = read_metrics(root / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        for term in TERMS:
            assert 0 < line[f"reward/{term}/mean"] < 1, term
        assert line["reward/total/std"] > 0 and line["grad_norm"] > 0
        assert line["judge/failed_frac"] == 0 and line["rollout/missing_groups"] == 0
    # Of each of four samples sem, pi and where two things are; of each caption spa, as its plans
    # have the same boxes. The second step was not saved, so it was done again; its answers lay
    # with the run.
    asked = [line["judge/questions"] for line in lines]
    assert asked[1] == 0 and all(16 <= asked[i] <= 18 for i in (0, 2))
    assert lines[1]["judge/cached_frac"] == 1
    again = {k: v for k, v in steady_metrics(root)[1].items() if not k.startswith("judge/")}
    assert again == {k: stopped[1][k] for k in again}

    page = (root / "report.html").read_text(encoding="utf-8")
    found = box_from_pixels(20, 20, 50, 55, 140, 140)  # 128 pixels are judged as 140
    for record in read_samples(root / "samples" / "step_000003"):
        wanted = np.mean([iou(found, box) for _, box in record.planned])
        assert record.scores["ri"] == pytest.approx(wanted, abs=1e-6)
        assert record.detections == (("cat", found), ("dog", found))
        assert record.raw_answers["ri"] == f"cat: {FOUND}\ndog: {FOUND}"
        assert record.caption in page and "expected score" in record.rationale
    summary = json.loads((root / "summary.json").read_text())
    assert set(summary["after"]) == {"total", *TERMS}


def test_unreadable_answers_change_nothing_and_are_reported(values, tmp_path, capsys):
    """A random model: no answer is JSON, so every sample lacks its terms."""
    text = dataclasses.replace(TINY_QWEN.text, num_layers=1)
    qwen = write_tiny_qwen(tmp_path / "qwen", dataclasses.replace(TINY_QWEN, text=text))
    values["judge"] = {
        "kind": "qwen_vl",
        "questions": {"score_tokens": 4, "boxes_tokens": 4, "canvas": 112},
        "qwen_vl": {"checkpoint": str(qwen), "dtype": "float32", "rows": 8},
    }
    values["reward"] = {"rule": "v1", "failure_limit": 1.0}
    values["update"] |= {"resample_rounds": 1}
    values |= {"steps": 2, "entropy": None}
    assert run_grpo(values) == 0
    assert "no score" in capsys.readouterr().out
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    for line in lines:
        assert line["judge/failed_frac"] == line["judge/unread_frac"] == 1
        assert line["judge/asked_twice_frac"] == 1 and np.isnan(line["reward/total/mean"])
        # Both groups lack rewards, so did those that were to replace them.
        assert (line["rollout/rounds"], line["rollout/missing_groups"]) == (2, 2)
        assert line["rollout/wasted_frac"] == line["reward/frac_zero_std"] == 1
        assert line["loss"] == line["grad_norm"] == 0 and line["updates/skipped"] == 0
    (record, *_) = read_samples(tmp_path / "run" / "samples" / "step_000002")
    assert "unreadable answer" in record.rationale or "cut off" in record.rationale
    assert np.isnan(record.total) and record.advantage == 0
    assert "could not be scored" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_terms_of_a_server_and_of_a_clip(values, tmp_path, capsys):
    """Named by the user, of any range; kept scores are not asked for again by a resumed run."""
    root = tmp_path / "run"
    clip = tmp_path / "clip"
    tensors = write_tiny_clip(clip) / "model.safetensors"
    save_file({**load_file(tensors), "logit_scale": np.array(4.0, np.float32)}, tensors)
    asked: list[str] = []

    def behave(handler: Any, number: int, body: Any) -> None:
        asked.extend(sample["image"] for sample in body["samples"])
        scores = [100.0 + len(sample["image"]) % 7 for sample in body["samples"]]
        send(handler, 200, json.dumps({"name": "size", "scores": scores}).encode())

    with Server(behave) as server:
        http = {"url": server.url, "model": "any", "batch_size": 3, "retries": 0}
        values["judge"] = {"kind": "none"}
        values["reward"] = {
            "terms": {
                "red": {"http": http, "scale": 0.01},
                "liked": {"pickscore": {"checkpoint": str(clip)}, "clip": [-50, 50]},
            },
            "total": "red + liked / 10",
        }
        with pytest.MonkeyPatch.context() as patch:
            interrupt_after(patch, 2)
            assert run_grpo(values) == 130
        before = len(asked)
        assert run_grpo(values) == 0
    # Two samples of each start are the judge's own; of the run's no image is sent twice.
    assert len(asked) - before < before and len(asked) - len(set(asked)) == 2
    lines = read_metrics(root / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert 100 <= line["reward/red/mean"] <= 107 and line["judge/failed_frac"] == 0
        total = 0.01 * line["reward/red/mean"] + line["reward/liked/mean"] / 10
        assert line["reward/total/mean"] == pytest.approx(total, abs=1e-4)
    assert "red" in (root / "report.html").read_text(encoding="utf-8")

    capsys.readouterr()
    # Nobody listens any more: a new run does not begin.
    assert run_grpo({**values, "run_dir": str(tmp_path / "other")}) != 0
    said = capsys.readouterr().err
    assert "does not answer: ConnectionRefusedError" in said and "terms.red.http.url" in said
    assert not (tmp_path / "other" / "metrics.jsonl").exists()
