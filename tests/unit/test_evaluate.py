"""Evaluations: the paired interval by hand, what goes to a file, the table."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from gotr1_jax.grpo.evaluate import Evaluation, captions_at_once, format_table
from gotr1_jax.io.files import plain_json
from gotr1_jax.trainer import bootstrap
from gotr1_jax.trainer.bootstrap import gain_interval, mean_interval


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


def test_table():
    before = Evaluation({"sem": scores(0.5, 0.5)}, scores(0.25, 0.25))
    after = Evaluation({"sem": scores(0.5, 0.25)}, scores(0.5, 0.5))
    lines = format_table(before, after, (0.25, 0.25)).splitlines()
    assert lines[1].split() == ["total", "0.250", "0.500", "+0.250"]
    assert lines[2].split() == ["sem", "0.500", "0.375", "-0.125"]
    assert "total +100% on 2 held-out captions" in lines[3]
    assert "[+0.250, +0.250]" in lines[3]


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
