"""`gotr1 ablate` with training in real processes: told to stop in the middle, then gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import grpo_values, write_config, write_shapes

from gotr1_jax.cli import run as run_command
from gotr1_jax.trainer.metrics import read_metrics

# All that a term of one's own takes: a file in the working directory.
MINE = """
import numpy as np

def share_of_red(requests):
    \"\"\"red where there could be green or blue\"\"\"
    images = np.stack([request.image for request in requests]).astype(np.float64)
    red, others = images[..., 0].mean((1, 2)), images[..., 1:].mean((1, 2, 3))
    return (red - others) / 10
"""
LIMIT = 300.0  # seconds until a process is given up


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Two variants of a tiny run, the first long enough to be stopped in the middle.

    One after the other: the second has the compiled programs of the first.
    """
    base = grpo_values(write_shapes(tmp_path / "tiny"), tmp_path / "unused")
    base["judge"] = {"terms": ["sem", "spa", "ri", "pi", "verdict"]}
    values = {
        "run_dir": str(tmp_path / "out"),
        "base": str(write_config(tmp_path / "base.yaml", base)),
        "variants": [
            {"name": "long", "overrides": ["steps=60", "reward.terms=[verdict]"]},
            {
                "name": "short",
                "overrides": ["steps=3", "reward.terms=[verdict]", "reward=mine.py:share_of_red"],
            },
        ],
    }
    (tmp_path / "mine.py").write_text(MINE)
    config = write_config(tmp_path / "ablation.yaml", values)
    return [sys.executable, "-m", "gotr1_jax.cli", "ablate", "--config", str(config)]


def test_stopped_and_gone_on_with(command: list[str], tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    run = tmp_path / "out/long/seed_0"
    job = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        clock = time.monotonic()
        while not (metrics := run / "metrics.jsonl").is_file() or not metrics.read_text():
            assert job.poll() is None and time.monotonic() - clock < LIMIT
            time.sleep(0.05)
    finally:
        job.send_signal(signal.SIGTERM)
        _, error = job.communicate()
    assert job.returncode == 75 and "the same command resumes" in error
    assert not (run / "summary.json").exists()
    stopped_at = len(read_metrics(metrics))
    assert 0 < stopped_at < 60

    again = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LIMIT
    )
    assert again.returncode == 0, again.stderr
    assert f"resumed at step {stopped_at} from" in (run / "train.log").read_text()
    assert [record["step"] for record in read_metrics(metrics)] == list(range(1, 61))
    found, short = json.loads((tmp_path / "out/ablation.json").read_text())["variants"]
    assert (found["name"], short["name"]) == ("long", "short")
    assert set(found["terms"]) == {"sem", "spa", "ri", "pi", "verdict"}
    check_own_term(tmp_path, tmp_path / "out/short/seed_0", short)


def check_own_term(folder: Path, run: Path, result: dict[str, Any]) -> None:
    """The function's term by its name wherever a run and its comparison show terms."""
    name = "share_of_red"
    assert f"reward/{name}/mean" in read_metrics(run / "metrics.jsonl")[-1]
    described = json.loads((run / "terms.json").read_text())
    assert described["total"] == f"(verdict) * {name}"
    meaning = "red where there could be green or blue"
    assert described["terms"][-1] == {
        "name": name, "meaning": meaning, "source": "python", "in_total": True,
        "weight": 1.0, "scale": 1.0, "clip": None,
    }  # fmt: skip
    page = (run / "report.html").read_text(encoding="utf-8")
    assert name in page and meaning in page
    for part in ("eval_before", "eval_after"):
        assert len(json.loads((run / f"{part}.json").read_text())[name]) == 2
        assert f"{name}" in (run / "samples" / part / "samples.jsonl").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["after"][name] == pytest.approx(result["terms"][name]["after"], abs=1e-5)
    assert name in (run / "train.log").read_text()  # the table at its end
    table = (folder / "out/ablation.md").read_text()
    assert name in table.splitlines()[0] and name in (folder / "out/ablation.svg").read_text()
    judged_again(folder, run, name)


def judged_again(folder: Path, run: Path, name: str) -> None:
    """`gotr1 judge` and `gotr1 eval` give the run's own scores of the term."""
    samples = run / "samples/eval_after"
    judge = f"judge --input {samples} --out scores.jsonl --judge.kind python"
    words = [*judge.split(), f"--judge.python.function=mine.py:{name}", f"--judge.terms=[{name}]"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
        assert run_command(words) == 0
        shapes = f"eval shapes --images {samples} --config {run}/config.yaml --out measured"
        assert run_command(shapes.split()) == 0
    text = (samples / "samples.jsonl").read_text()
    own = [json.loads(line)["scores"][name] for line in text.splitlines()]
    lines = (folder / "scores.jsonl").read_text().splitlines()
    assert [json.loads(line)["scores"][name] for line in lines] == pytest.approx(own, abs=1e-6)
    measured = json.loads((folder / "measured/scores.json").read_text())
    assert np.mean(measured["by_caption"][name]) == pytest.approx(np.mean(own), abs=1e-5)
