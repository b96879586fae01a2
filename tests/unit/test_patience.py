"""Patience: falls, recoveries and the end of a run, by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from gotr1_jax.config import from_dict
from gotr1_jax.errors import InputError
from gotr1_jax.grpo.patience import Patience, PatienceConfig

NAN = math.nan


def run(values: list[float], stored: Any = None, first: int = 0, **settings: Any) -> Any:
    """The step after which the run ends (None: it does not), its notes, and the patience."""
    config = PatienceConfig(**{"term": "humans", "fall": 0.1, **settings})
    patience, notes, failures = Patience(config, stored), [], []
    failures.append(patience.begin({config.term: values[0]}))
    for step, value in enumerate(values[1 + first :], start=first + 1):
        failures.append(patience.add(10 * step, {config.term: value}, notes.append))
        if patience.state.acted is not None:
            break
    return patience.state.acted, notes, patience, [f for f in failures if f]


@pytest.mark.parametrize(
    "values, settings, wanted",
    [
        # Two in a row below 0.9 - 0.1; a fall of exactly 0.1 counts.
        ([0.5, 0.9, 0.8, 0.7], {}, 30),
        # A recovery between them begins the count again.
        ([0.5, 0.9, 0.7, 0.85, 0.7, 0.75], {}, 50),
        # What was not scored neither counts nor interrupts.
        ([0.5, 0.9, 0.7, NAN, 0.7], {}, 40),
        ([0.5, 0.9, 0.81, 0.81], {}, None),
        # Compared with the start, later bests do not matter.
        ([0.5, 0.9, 0.5, 0.45], {"below": "start"}, None),
        ([0.5, 0.9, 0.4, 0.3], {"below": "start"}, 30),
        # 20 % of the best, which is 4: below 3.2.
        ([4.0, 3.3, 3.2, 3.1], {"fall": 0.2, "relative": True}, 30),
        ([-4.0, -4.5, -4.8, -4.9], {"fall": 0.2, "relative": True}, 30),
        ([0.5, 0.3], {"evaluations": 1}, 10),
        # Of a share of the commonest, a rise is the fall.
        ([0.1, 0.15, 0.3, 0.3], {"term": "diversity/commonest_boxes"}, 30),
        ([0.3, 0.15, 0.1, 0.05], {"term": "diversity/commonest_layout"}, None),
        ([0.0, 0.0, 0.0, 0.0], {"relative": True}, None),
    ],
)
def test_when_a_run_ends(values, settings, wanted):
    assert run(values, **settings)[0] == wanted


def test_it_says_when_the_value_begins_to_fall_recovers_and_ends_the_run():
    _, notes, _, _ = run([0.5, 0.9, 0.7, 0.85, 0.7, 0.75], action="restore_best")
    assert notes == [
        "patience: humans 0.700 is 0.200 below its best, 0.900 at step 10 (1 of 2 evaluations) "
        "at step 20",
        "patience: humans has recovered to 0.850 at step 30",
        "patience: humans 0.700 is 0.200 below its best, 0.900 at step 10 (1 of 2 evaluations) "
        "at step 40",
        "patience: humans 0.750 is 0.150 below its best, 0.900 at step 10 (2 of 2 evaluations) "
        "at step 50",
        "patience: the run ended after step 50, as humans had fallen in 2 evaluations in a row; "
        "it goes back to the weights of step 10, its best",
    ]


def test_of_equal_bests_the_last_counts_as_checkpoints_keep_it():
    _, _, patience, _ = run([0.5, 0.9, 0.9, 0.1])
    assert patience.state.best_step == 20
    _, _, opposite, _ = run(
        [0.5, 0.2, 0.4], term="diversity/commonest_boxes", action="restore_best"
    )
    assert opposite.state.best_step == 10 and opposite.score == pytest.approx(-0.4)


@pytest.mark.parametrize("cut", range(4))
def test_a_resumed_run_decides_the_same(cut):
    values = [0.5, 0.9, 0.7, 0.85, 0.7, 0.75]
    whole = run(values)
    first = run(values[: cut + 1])[2]
    stored = json.loads(json.dumps(first.to_json()))
    again = run(values, stored, cut)
    assert again[0] == whole[0] and again[2].state == whole[2].state
    assert first.to_json()["state"].keys() == vars(whole[2].state).keys()


def test_other_limits_count_anew_and_another_value_is_another_patience():
    stored = run([0.5, 0.9, 0.7, 0.7])[2].to_json()
    assert Patience(PatienceConfig("humans", 0.1), stored).state.acted == 30
    wider = Patience(PatienceConfig("humans", 0.5), stored)
    assert wider.state.acted is None and wider.state.best == pytest.approx(0.9)
    assert wider.state.falling == 0 and not wider.is_new
    assert Patience(PatienceConfig("total", 0.1), stored).is_new
    # Until now the checkpoints were kept by the total.
    restoring = Patience(PatienceConfig("humans", 0.1, action="restore_best"), stored)
    assert math.isnan(restoring.state.best) and restoring.state.start == 0.5
    assert Patience(None, stored).to_json() is None


def test_a_value_that_cannot_be_measured_ends_the_run_with_its_name():
    failures = run([NAN, 0.5])[3]
    assert len(failures) == 1 and "humans" in failures[0] and "correct its judge" in failures[0]
    assert "evaluation.samples" in run([0.5, NAN], term="diversity/images")[3][0]
    assert Patience(None).add(1, {}, print) is None and Patience(None).begin({}) is None


@pytest.mark.parametrize(
    "values", [{"fall": 0}, {"fall": -1}, {"evaluations": 0}, {"action": "pause"}, {"term": ""}]
)
def test_limits_of_the_configuration(values):
    with pytest.raises(InputError, match=next(iter(values))):
        from_dict(PatienceConfig, {"term": "humans", "fall": 0.1, **values})
