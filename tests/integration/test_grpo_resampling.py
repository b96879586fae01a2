"""Dynamic sampling: a run killed in a resample round and resumed is as never killed, to the bit.

Run as a program this file is the job, `FILE CONFIG CALL`, which kills itself when its judge is
asked for the CALL-th time.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny import (
    assert_equal_trees,
    compiled_once,
    grpo_values,
    record_saves,
    run_grpo,
    steady_metrics,
    write_config,
    write_shapes,
)

from gotr1_jax import cli
from gotr1_jax.grpo import setup, update
from gotr1_jax.parallel import startup
from gotr1_jax.rewards import JudgeRequest, JudgeResult
from gotr1_jax.trainer.metrics import read_metrics

ROUNDS = 2


@dataclass
class Coin:
    """A verdict that images get as if by a coin, every third of them a 1, every fifth none.

    When it is asked for the `call`-th time, the process is killed.
    """

    call: int = 0
    terms: tuple[str, ...] = ("verdict",)
    identity: str = "coin"
    asked: int = 0

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        self.asked += 1
        if self.asked == self.call:
            os.kill(os.getpid(), signal.SIGKILL)
        values = [int(request.image.sum()) + len(request.plan.text) for request in requests]
        verdicts = [math.nan if value % 5 == 0 else float(value % 3 == 0) for value in values]
        return [JudgeResult({"verdict": verdict}) for verdict in verdicts]


def saved_alarms(run_dir: Path) -> dict[str, Any]:
    """The alarms' state in the last checkpoint."""
    text = (run_dir / "checkpoints" / "step_000004" / "meta" / "metadata").read_text()
    return json.loads(text)["meta"]["alarms"]


def values_of(checkpoint: Path, run_dir: Path) -> dict[str, Any]:
    values = grpo_values(checkpoint, run_dir)
    values["reward"] = {"rule": "sum", "terms": ["verdict"]}
    values["judge"] = {"terms": ["verdict"]}
    values["update"] |= {"resample_rounds": ROUNDS, "updates_per_rollout": 2, "micro_batch": 2}
    values["checkpoint"] = {"every": 1}
    # One caption is judged while the other is drawn.
    values["rollout"] |= {"captions_at_once": 1}
    return values


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("resampling")
    with compiled_once(folder / "programs"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
        write_shapes(folder / "checkpoint")
        yield folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> tuple[list[dict[str, Any]], dict[int, Any]]:
    """Metrics and saved states of a run that nobody ended."""
    traced, count = list[Any](), update.count_normalisers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(update, "count_normalisers", lambda *a: traced.append(a) or count(*a))
        patch.setattr(setup, "make_judge", lambda *_: Coin())
        saved = record_saves(patch)
        values = values_of(folder / "checkpoint", folder / "whole")
        values["rollout"] |= {"overlap": False}  # with a thread of the judge all is the same
        assert run_grpo(values) == 0
    assert len(traced) == 1  # one program for the first update after a rollout and the second
    return steady_metrics(folder / "whole"), saved


@pytest.fixture
def middle(whole: tuple[list[dict[str, Any]], dict[int, Any]]) -> int:
    """Which call of the judge begins the second round of a step that is not the first."""
    rounds = [int(line["rollout/rounds"]) for line in whole[0]]
    step = next(i for i in range(1, len(rounds)) if rounds[i] > 1)
    return 2 * (1 + sum(rounds[:step]) + 1) + 1  # a caption a call, and an evaluation before


def test_metrics_of_dynamic_sampling(folder, whole):
    for line in whole[0]:
        rounds, missing = line["rollout/rounds"], line["rollout/missing_groups"]
        assert rounds == ROUNDS + 1 or missing == 0
        assert line["rollout/wasted_frac"] == pytest.approx(1 - (2 - missing) / (2 * rounds))
        flat = line["reward/frac_zero_std"] * 2 * rounds
        assert flat >= 2 * (rounds - 1) - 1 and flat >= missing
        assert np.isfinite(line["loss"]) and np.isfinite(line["grad_norm"])
        # Half the rewards of a group of two that differ are 1.
        if not missing:
            assert line["reward/verdict/mean"] == 0.5
    assert {line["rollout/rounds"] for line in whole[0]} - {1.0}, "no step needed a second round"
    # Groups that are learned from have all their verdicts; failures are those of all samples drawn.
    full = [line for line in whole[0] if not line["rollout/missing_groups"]]
    assert any(line["judge/failed_frac"] > 0 for line in full)
    window = saved_alarms(folder / "whole")["failures"]
    for line, (failed, drawn) in zip(whole[0], window, strict=True):
        assert drawn == 4 * line["rollout/rounds"]
        assert line["judge/failed_frac"] == failed / drawn


def test_killed_in_a_resample_round_and_resumed(folder, whole, middle, tmp_path, monkeypatch):
    values = values_of(folder / "checkpoint", tmp_path / "run")
    config = write_config(tmp_path / "killed.yaml", values)
    root = Path(__file__).resolve().parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")]),
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, __file__, str(config), str(middle), str(folder / "programs")]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = len(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert 1 <= done < 4

    monkeypatch.setattr(setup, "make_judge", lambda *_: Coin())
    saved = record_saves(monkeypatch)
    assert run_grpo(values) == 0
    # The last save may not have been whole yet.
    assert done <= min(saved) <= done + 1
    # Metrics first: their first step that differs says which of the two processes it was.
    assert steady_metrics(tmp_path / "run") == whole[0]
    assert_equal_trees(saved[4], whole[1][4])
    assert saved_alarms(tmp_path / "run") == saved_alarms(folder / "whole")


if __name__ == "__main__":
    # As in the tests' process: XLA splits convolutions by the number of CPU devices, a pixel in
    # some thousand rounds to another value, and the coin falls by the pixels.
    jax.config.update("jax_num_cpu_devices", 8)
    startup.start_devices = lambda *_: None
    setup.make_judge = lambda *_: Coin(int(sys.argv[2]))
    with compiled_once(Path(sys.argv[3])):
        sys.exit(cli.run(["train", "grpo", "--config", sys.argv[1]]))
