"""Evaluations: the paired interval by hand, what goes to a file, the table."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from gotr1_jax.errors import RunError
from gotr1_jax.grpo.config import (
    EvaluationConfig,
    GrpoConfig,
    RewardConfig,
    RolloutConfig,
    UpdateConfig,
)
from gotr1_jax.grpo.evaluate import Evaluation, captions_at_once, format_table
from gotr1_jax.grpo.held_out import HeldOut
from gotr1_jax.grpo.prompts import Prompt, Prompts
from gotr1_jax.grpo.rollout import SampleTable
from gotr1_jax.io.files import plain_json
from gotr1_jax.parallel.mesh import make_mesh
from gotr1_jax.plan import parse_plan
from gotr1_jax.rewards.base import JudgeRequest, JudgeResult
from gotr1_jax.trainer import bootstrap
from gotr1_jax.trainer.bootstrap import gain_interval, mean_interval
from gotr1_jax.trainer.samples import SampleRecord

NAN = math.nan


def scores(*values: float) -> np.ndarray:
    return np.asarray(values, np.float32)


def test_equal_gains_leave_nothing_to_doubt():
    before = scores(0.0, 0.25, 0.5)
    assert gain_interval(before, before + 0.25) == (0.25, 0.25)


def test_captions_that_could_not_be_scored_are_left_out():
    before = scores(0.0, math.nan, 0.5, 0.0)
    after = scores(0.5, 0.0, 1.0, math.nan)
    assert gain_interval(before, after) == (0.5, 0.5)


def test_interval_of_two_gains():
    # Means of two draws from {0, 1}: 0 with chance 1/4, 1 with chance 1/4: both ends are reached.
    assert gain_interval(scores(0, 0), scores(0, 1)) == (0.0, 1.0)


def test_interval_is_near_the_normal_one_and_pairs_captions():
    # 50 gains of 0.1 and 50 of 0.3: deviation 0.1, so that of the mean is 0.01. Without pairing,
    # the spread of the captions themselves (0 to 99) would drown it.
    before = np.arange(100, dtype=np.float64)
    gains = np.tile([0.1, 0.3], 50)
    low, high = gain_interval(before, before + gains)
    assert low == pytest.approx(0.2 - 1.96 * 0.01, abs=2e-3)
    assert high == pytest.approx(0.2 + 1.96 * 0.01, abs=2e-3)
    assert gain_interval(before, before + gains) == (low, high)
    negative = gain_interval(before, before - gains)
    assert negative[1] < 0


def test_interval_of_clusters_draws_them_whole():
    # Either cluster can be drawn twice: (0 of 1) or (3 of 3); both together are 3 of 4.
    assert mean_interval(np.array([0.0, 3.0]), np.array([1, 3])) == (0.0, 1.0)
    # A cluster of equal values has one mean, however large it is.
    assert mean_interval(np.array([2.0, 6.0]), np.array([4, 12])) == (0.5, 0.5)


def test_no_value_has_no_interval():
    assert np.isnan(mean_interval(scores(math.nan))).all()


def test_interval_does_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(3).normal(size=37)
    whole = mean_interval(values)
    monkeypatch.setattr(bootstrap, "_CHUNK", 1001)
    assert mean_interval(values) == whole


def test_means_skip_captions_without_a_score_and_files_keep_them():
    evaluation = Evaluation({"sem": scores(1.0, 0.0)}, scores(0.5, math.nan))
    assert evaluation.means == {"total": 0.5, "sem": 0.5}
    # As the file has it: NaN becomes null and comes back.
    again = Evaluation.from_json(json.loads(json.dumps(plain_json(evaluation.to_json()))))
    np.testing.assert_array_equal(again.total, evaluation.total)
    np.testing.assert_array_equal(again.terms["sem"], evaluation.terms["sem"])
    assert again.total.dtype == np.float32


def test_means_without_any_score():
    lost = Evaluation({"sem": scores(math.nan, 1.0)}, scores(math.nan, math.nan))
    assert math.isnan(lost.means["total"]) and lost.means["sem"] == 1.0


class Scorer:
    """A worker whose judge gives every sample of a caption what `totals` has for it.

    `asked` counts its calls.
    """

    judge = SimpleNamespace(terms=("pi",), identity="one")

    def __init__(self, *totals: float) -> None:
        self.totals, self.asked, self.mesh = totals, 0, make_mesh(1)

    def __call__(self, _: Any, prompts: Prompts, samples: int, *rest: int) -> Any:
        self.asked += 1
        totals = [self.totals[prompt.index] for prompt in prompts.prompts for _ in range(samples)]
        total_B = np.asarray(totals, np.float32)
        records = np.empty(len(total_B), object)
        records[:] = [
            SampleRecord.scored(
                JudgeRequest("a cat", parse_plan("a cat"), np.zeros((2, 2, 3), np.uint8)),
                JudgeResult({"pi": total}, rationale=f"pi failed: no images, {total}"),
                total,
            )
            for total in totals
        ]
        zeros_B = np.zeros_like(total_B)
        table = SampleTable(("pi",), zeros_B, total_B[:, None], total_B, *[zeros_B] * 4, records)
        return SimpleNamespace(table=table, records=lambda captions: [])


def held_out(root: Path, *totals: float, failure_limit: float = 0.2) -> tuple[Any, Scorer]:
    """`HeldOut.before` of a run at `root`, given the step it resumed from; and its worker."""
    worker = Scorer(*totals)
    prompts = Prompts(tuple(Prompt(i, "a cat", (1,)) for i in range(len(totals))), 16, 0)
    config = GrpoConfig(
        run_dir="run",
        evaluation=EvaluationConfig(samples=2, shown=0),
        rollout=RolloutConfig(captions_per_step=1, samples_per_caption=2),
        reward=RewardConfig(failure_limit=failure_limit),
        update=UpdateConfig(micro_batch=2),
    )
    job: Any = SimpleNamespace(
        config=config, worker=worker, evaluation_worker=worker, watched=(), heldout=prompts,
        sampling_params=lambda state: None, initial_state=lambda: None,
    )  # fmt: skip
    run: Any = SimpleNamespace(
        dir=SimpleNamespace(root=root, samples=root / "samples"),
        inputs={},
        restored_meta={},
        step=0,
    )
    found = HeldOut(job, run)
    return (lambda first_step: found.before(job, cast(Any, None), first_step)), worker


def test_a_judge_that_scores_nothing_ends_the_run_before_its_first_step(tmp_path: Path):
    before, _ = held_out(tmp_path, NAN, NAN, NAN)
    with pytest.raises(RunError, match="any of the 6 samples of the first evaluation.*no images"):
        before(0)
    # As does one of which only some are scored, or with the limit of a run that needs no reward.
    assert held_out(tmp_path, NAN, 0.0)[0](0).means["total"] == 0
    assert math.isnan(held_out(tmp_path, NAN, failure_limit=1.0)[0](0).means["total"])


def test_a_baseline_without_scores_is_measured_again(tmp_path: Path, caplog):
    """When a judge is there; until then the resumed run does not begin."""
    before, _ = held_out(tmp_path, NAN, NAN)
    with pytest.raises(RunError):
        before(0)
    with pytest.raises(RunError):
        before(7)
    before, worker = held_out(tmp_path, 0.25, NAN)
    assert before(7).means["total"] == 0.25 and worker.asked == 2
    assert "evaluated again" in caplog.text
    before, worker = held_out(tmp_path, 0.5, 0.5)
    assert before(7).means["total"] == 0.25 and worker.asked == 0  # it is kept now


DEEP = "[" * 100_000
DAMAGED_SCORES = {
    "cut off": '{"total": [0.5, ',
    "empty": "",
    "a list": "[0.5, 0.5]",
    "no total": '{"pi": [0.5, 0.5]}',
    "a number": '{"total": 0.5, "pi": [0.5, 0.5]}',
    "a text": '{"total": ["0.5", 0.5], "pi": [0.5, 0.5]}',
    "a truth": '{"total": [true, 0.5], "pi": [0.5, 0.5]}',
    "infinite": '{"total": [Infinity, 0.5], "pi": [0.5, 0.5]}',
    "out of range": '{"total": [-1e300, 0.5], "pi": [0.5, 0.5]}',
    "a huge number": '{"total": [1%s, 0.5], "pi": [0.5, 0.5]}' % ("0" * 400),
    "nested": '{"total": [[0.5], [0.5]], "pi": [0.5, 0.5]}',
    "another length": '{"total": [0.5, 0.5, 0.5], "pi": [0.5, 0.5, 0.5]}',
    "unequal lengths": '{"total": [0.5, 0.5], "pi": [0.5]}',
    "another term": '{"total": [0.5, 0.5], "sem": [0.5, 0.5]}',
    "no captions": '{"total": [], "pi": []}',
    "deep": DEEP,
    "deep inside": '{"total": [0.5, 0.5], "pi": ' + DEEP,
}


@pytest.mark.parametrize("what", DAMAGED_SCORES)
def test_a_damaged_baseline_is_measured_again(what: str, tmp_path: Path, caplog):
    (tmp_path / "eval_before.json").write_text(DAMAGED_SCORES[what])
    before, worker = held_out(tmp_path, 0.25, 0.25)
    assert before(7).means == {"total": 0.25, "pi": 0.25} and worker.asked == 2
    (line,) = caplog.text.splitlines()
    assert "eval_before.json" in line and "evaluated again" in line


@pytest.mark.parametrize("what", ["missing", "a pipe", "a device", "dangling", "bytes", "a folder"])
def test_a_baseline_that_is_no_file_is_measured_again(what: str, tmp_path: Path, caplog):
    path = tmp_path / "eval_before.json"
    {
        "missing": lambda: None,
        "a pipe": lambda: os.mkfifo(path),
        "a device": lambda: path.symlink_to("/dev/zero"),
        "dangling": lambda: path.symlink_to("nowhere"),
        "bytes": lambda: path.write_bytes(b"\xff\xfe\x00"),
        "a folder": path.mkdir,
    }[what]()
    before, worker = held_out(tmp_path, 0.25, 0.25)
    if what == "a folder":  # nothing can be written in its place
        with pytest.raises(RunError, match="eval_before.json"):
            before(7)
        return
    assert before(7).means["total"] == 0.25 and worker.asked == 2
    assert "eval_before.json" in caplog.text and "evaluated again" in caplog.text


def test_table():
    before = Evaluation({"sem": scores(0.5, 0.5)}, scores(0.25, 0.25))
    after = Evaluation({"sem": scores(0.5, 0.25)}, scores(0.5, 0.5))
    lines = format_table(before, after, (0.25, 0.25)).splitlines()
    assert lines[1].split() == ["total", "0.250", "0.500", "+0.250"]
    assert lines[2].split() == ["sem", "0.500", "0.375", "-0.125"]
    assert "total +100% on 2 held-out captions" in lines[3]
    assert "[+0.250, +0.250]" in lines[3]
    # Of 0 there is no percentage.
    before = replace(before, total=np.zeros(2, np.float32))
    assert "total +0.500 on 2 held-out captions" in format_table(before, after, (0.5, 0.5))


def test_a_baseline_without_a_score_says_so():
    before = Evaluation({"sem": scores(NAN, NAN)}, scores(NAN, NAN))
    after = Evaluation({"sem": scores(0.5, 0.25)}, scores(0.5, 0.5))
    lines = format_table(before, after, mean_interval(after.total - before.total)).splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["total", "no", "score", "0.500", "no", "score"],
        ["sem", "no", "score", "0.375", "no", "score"],
    ]
    assert lines[3] == "total has no score before on 2 held-out captions"
    assert "nan" not in format_table(after, before, (NAN, NAN))


@pytest.mark.parametrize(
    "captions, samples, rows, multiple, wanted",
    [
        (128, 4, 128, 1, 32),
        (128, 4, 130, 8, 32),
        (60, 4, 128, 8, 30),
        (60, 4, 128, 16, 20),
        (7, 4, 8, 1, 2),  # parts of 2, 2, 2 and 1
        (8, 4, 8, 16, 4),  # fewer do not divide over the mesh
        (3, 4, 128, 1, 3),
    ],
)
def test_captions_drawn_at_once(captions, samples, rows, multiple, wanted):
    assert captions_at_once(captions, samples, rows, multiple) == wanted
