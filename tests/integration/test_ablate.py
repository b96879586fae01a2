"""`gotr1 ablate` with training in real processes: told to stop in the middle, then gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import grpo_values, write_config, write_shapes

from gotr1_jax.trainer.metrics import read_metrics

LIMIT = 300.0  # seconds until a process is given up


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Two variants of a tiny run at a time, one long enough to be stopped in the middle."""
    base = grpo_values(write_shapes(tmp_path / "tiny"), tmp_path / "unused")
    base["judge"] = {"terms": ["sem", "spa", "ri", "pi", "verdict"]}
    values = {
        "run_dir": str(tmp_path / "out"),
        "base": str(write_config(tmp_path / "base.yaml", base)),
        "at_once": 2,
        "variants": [
            {"name": "long", "overrides": ["steps=60", "reward.terms=[verdict]"]},
            {"name": "short", "overrides": ["steps=3", "reward.terms=[verdict]"]},
        ],
    }
    config = write_config(tmp_path / "ablation.yaml", values)
    return [sys.executable, "-m", "gotr1_jax.cli", "ablate", "--config", str(config)]


def test_stopped_and_gone_on_with(command: list[str], tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    run = tmp_path / "out/long/seed_0"
    job = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
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

    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert again.returncode == 0, again.stderr
    assert f"resumed at step {stopped_at} from" in (run / "train.log").read_text()
    assert [record["step"] for record in read_metrics(metrics)] == list(range(1, 61))
    found, short = json.loads((tmp_path / "out/ablation.json").read_text())["variants"]
    assert (found["name"], short["name"]) == ("long", "short")
    assert set(found["terms"]) == {"sem", "spa", "ri", "pi", "verdict"}
