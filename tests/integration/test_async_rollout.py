"""`rollout.async_steps`: the next step is drawn before this one's update, by one policy older."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import (
    Brightness,
    assert_equal_trees,
    compiled_once,
    grpo_values,
    interrupt_after,
    judge_by_brightness,
    record_saves,
    run_grpo,
    steady_metrics,
    write_shapes,
)

from gotr1_jax.grpo import setup

TRUNCATED = {"kind": "token_truncate"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("async")
    with compiled_once(folder / "programs"):
        yield write_shapes(folder / "checkpoint")


class Counting(Brightness):
    """As `Brightness`, with a metric; asked for the sixth time it asks the run to stop."""

    asked = told = 0

    def judge(self, requests: Any) -> Any:
        Counting.asked += 1
        Counting.told += len(requests)
        if Counting.asked == 6:
            signal.raise_signal(signal.SIGTERM)
        return super().judge(requests)

    def pop_metrics(self) -> dict[str, float]:
        told, Counting.told = Counting.told, 0
        return {"judge/told": float(told)}


def values_of(checkpoint: Path, run_dir: Path, **rollout: Any) -> dict[str, Any]:
    """A job whose updates need the log-probs of both policies, which are computed early."""
    values = grpo_values(checkpoint, run_dir)
    values["rollout"] |= {"captions_at_once": 1, **rollout}
    values["update"] |= {"updates_per_rollout": 2, "micro_batch": 2}
    values["loss"] = {"kl": "k3", "kl_weight": 0.1, "importance": TRUNCATED}
    # Steps with an evaluation: the judge has the next step's samples in hand by then.
    values["evaluation"] |= {"every": 2}
    return values


def test_stopped_and_resumed_is_as_never_stopped_with_and_without_a_thread(
    checkpoint, tmp_path, monkeypatch
):
    judge_by_brightness(monkeypatch)
    monkeypatch.setattr(setup, "make_judge", lambda *_: Counting())
    saved = record_saves(monkeypatch)
    Counting.asked = 7  # is never told to stop
    whole = values_of(checkpoint, tmp_path / "whole" / "run", async_steps=1, overlap=False)
    (tmp_path / "whole").mkdir()
    assert run_grpo(whole) == 0
    wanted, metrics = saved.pop(4), steady_metrics(tmp_path / "whole" / "run")

    saved.clear()
    Counting.asked = 0  # the evaluation has 2 calls, then a step has 2
    stopped = values_of(checkpoint, tmp_path / "run", async_steps=1)
    assert run_grpo(stopped) == 75
    assert max(saved) < 4, "the run was over before it was told to stop"
    assert run_grpo(stopped) == 0
    assert_equal_trees(saved[4], wanted)
    assert steady_metrics(tmp_path / "run") == metrics
    # Of the samples of a step, and of nothing else.
    assert [line["judge/told"] for line in metrics] == [4, 4, 4, 4]
    differences = [line["policy/logp_diff/image"] for line in metrics]
    assert differences[0] < 1e-4 < min(differences[1:])
    assert all(np.isfinite(line["policy/importance_mean/image"]) for line in metrics)

    # The oracle: a sampler with the weights before the first update draws step 2 like that too.
    lagging = values_of(checkpoint, tmp_path / "lagging" / "run", refresh_every=2)
    (tmp_path / "lagging").mkdir()
    interrupt_after(monkeypatch, 2)
    assert run_grpo(lagging) == 130
    assert steady_metrics(tmp_path / "lagging" / "run") == metrics[:2]
