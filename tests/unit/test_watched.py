"""Watched terms: their configuration, judges that fail, and their place in evaluations."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gotr1_jax.config import from_dict
from gotr1_jax.errors import InputError, RunError, Stopped
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.grpo.evaluate import Evaluation, compare_watched, format_watched
from gotr1_jax.grpo.watched import WatchedJudge, make_watched, warn_unscored, watched_identity
from gotr1_jax.io.files import plain_json
from gotr1_jax.plan import parse_plan
from gotr1_jax.rewards.base import JudgeRequest, JudgeResult
from gotr1_jax.rewards.terms import TermConfig

NAN = math.nan
REQUESTS = [JudgeRequest(c, parse_plan(c), np.zeros((2, 2, 3), np.uint8)) for c in ("a", "b", "c")]


@dataclass(frozen=True)
class Fixed:
    """A judge that gives these scores, or raises."""

    scores: tuple[float, ...] = ()
    error: Exception | None = None
    terms: tuple[str, ...] = ("taste",)
    identity: str = "fixed"

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        if self.error is not None:
            raise self.error
        return [JudgeResult({"taste": s}, rationale=f"saw\n{s}") for s in self.scores]


def test_scores_are_scaled_and_clipped_and_nan_stays():
    term = TermConfig(python="m:f", scale=0.1, clip=(0.0, 1.0), weight=2.0)
    judge = WatchedJudge("taste", Fixed((5.0, 20.0, NAN)), term)
    found = judge.score(REQUESTS)
    np.testing.assert_array_equal(found, np.float32([1.0, 2.0, NAN]))
    assert found.dtype == np.float32 and judge.score([]).shape == (0,)
    assert judge.pop_failures() == (1, "saw nan") and judge.pop_failures() == (0, "")


def test_a_watched_judge_that_fails_leaves_nan_and_a_line(caplog):
    for error in (RunError("the server at :9000 is down"), InputError("wrong length")):
        judge = WatchedJudge("taste", Fixed(error=error), TermConfig(python="m:f"))
        assert np.isnan(judge.score(REQUESTS)).all()
        warn_unscored("eval_before", [judge])
        assert f"taste could not be scored for 3 samples; most often: {error}" in caplog.text
    with pytest.raises(Stopped):
        WatchedJudge("taste", Fixed(error=Stopped("now")), TermConfig(python="m:f")).score(REQUESTS)


def test_a_watched_function_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"evaluation\.judges\.taste: .*nowhere"):
        make_watched({"taste": TermConfig(python="nowhere.py:score")}, tmp_path)
    assert make_watched({}, tmp_path / "none") == () and not (tmp_path / "none").exists()
    assert watched_identity([]) == {}


def test_evaluations_keep_watched_terms_apart_from_trained_ones():
    found = Evaluation(
        {"pi": np.float32([0.5, 1.0])}, np.float32([0.5, 1.0]),
        watched={"taste": np.float32([NAN, 3])},
        diversity={"images": np.float32([0.25, 0.75])}, overall={"commonest_boxes": 0.5},
    )  # fmt: skip
    assert found.means == {"total": 0.75, "pi": 0.75}
    assert found.values == {
        "total": 0.75, "pi": 0.75, "taste": 3.0, "diversity/images": 0.5,
        "diversity/commonest_boxes": 0.5,
    }  # fmt: skip
    assert found.metrics["watched/taste"] == 3.0 and "evaluation/taste" not in found.metrics
    again = Evaluation.from_json(json.loads(json.dumps(plain_json(found.to_json()))))
    assert again.values == found.values and set(again.terms) == {"pi"}
    assert compare_watched(found, again)["watched"] == {
        "before": {"taste": 3.0}, "after": {"taste": 3.0},
    }  # fmt: skip
    lines = format_watched(found, again).splitlines()
    assert lines[0] == "watched, never trained on"
    assert lines[1].split() == ["taste", "3.000", "3.000", "+0.000"]
    assert lines[2] == "diversity" and lines[3].split()[0] == "images"
    # Files of earlier versions have neither, and their scores any finite value.
    old = Evaluation.from_json({"total": [-7.5], "pi": [12.0]})
    assert not old.watched and format_watched(old, old) == ""


@pytest.mark.parametrize(
    "damage",
    [
        {"watched": [0.5]}, {"watched": {"taste": [0.5]}}, {"watched": {"taste": 3}},
        {"diversity": {"images": [0.5, "x"]}}, {"diversity": {"commonest_boxes": "x"}},
        {"diversity": 1},
    ],
)  # fmt: skip
def test_a_file_with_damaged_watched_terms_is_refused(damage: dict[str, Any]):
    with pytest.raises(InputError, match="the file"):
        Evaluation.from_json({"total": [0.5, 0.5], "pi": [0.5, 0.5], **damage}, "the file")


def grpo(**evaluation: Any) -> GrpoConfig:
    values: dict[str, Any] = {"run_dir": "run", "steps": 10, "evaluation": evaluation}
    if "checkpoint" in evaluation:
        values["checkpoint"] = evaluation.pop("checkpoint")
    return from_dict(GrpoConfig, values)


HUMANS = {"humans": {"python": "m.py:score"}}
FALL = {"term": "humans", "fall": 0.1}


def test_a_whole_configuration_of_watched_terms():
    config = grpo(every=2, judges=HUMANS, patience={**FALL, "action": "restore_best"})
    assert config.evaluation.judges["humans"].python == "m.py:score"
    for term in ("total", "pi", "diversity/images", "diversity/commonest_boxes"):
        assert grpo(every=2, patience={"term": term, "fall": 0.1}).evaluation.patience


@pytest.mark.parametrize(
    "evaluation, message",
    [
        ({"judges": {"pi": {"python": "m:f"}}}, "evaluation.judges holds 'pi'.*another name"),
        ({"judges": {"humans": {"judge": "main"}}}, r"judges\.humans is of the judge that the run"),
        ({"judges": {"wins": {"pairwise": {}}}}, r"judges\.wins is a win rate.*always 0\.5"),
        ({"judges": {"total": {"python": "m:f"}}}, "evaluation.judges.*'total'"),
        ({"judges": {"a b": {"python": "m:f"}}}, "evaluation.judges.*'a b'"),
        ({"judges": HUMANS, "patience": FALL}, "evaluation.patience needs evaluations.*every"),
        ({"every": 2, "patience": FALL}, "patience.term is 'humans'; choose from total, .*images"),
        (
            {"every": 2, "judges": HUMANS, "patience": {**FALL, "evaluations": 5}},
            "10 steps with evaluation.every 2 have 4 before the last",
        ),
        (
            {"every": 2, "samples": 1, "patience": {"term": "diversity/images", "fall": 0.1}},
            "evaluation.patience.term.*set samples to 2",
        ),
        (
            {
                "every": 2, "judges": HUMANS, "checkpoint": {"keep_best": False},
                "patience": {**FALL, "action": "restore_best"},
            },
            "restore_best, but checkpoint.keep_best is false",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_watched_is_refused_with_one_line(evaluation, message):
    with pytest.raises(InputError, match=message) as caught:
        grpo(**evaluation)
    assert "\n" not in str(caught.value)
