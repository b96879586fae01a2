"""Watched terms: their configuration, judges that fail, and their place in evaluations."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gotr1_jax.config import from_dict
from gotr1_jax.errors import InputError, RunError, Stopped, UnreachableError
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.grpo.evaluate import Evaluation, compare_watched, format_watched
from gotr1_jax.grpo.watched import WatchedJudge, make_watched, warn_unscored, watched_identity
from gotr1_jax.io.files import plain_json
from gotr1_jax.plan import parse_plan
from gotr1_jax.rewards.base import JudgeRequest, JudgeResult
from gotr1_jax.rewards.factory import make_judge
from gotr1_jax.rewards.judge_config import JudgeConfig
from gotr1_jax.rewards.stages import stage_of
from gotr1_jax.rewards.terms import TermConfig

NAN = math.nan
TASTE = TermConfig(python="m:f")
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
    judge = WatchedJudge("taste", term, lambda: Fixed((5.0, 20.0, NAN)))
    found = judge.score(REQUESTS)
    np.testing.assert_array_equal(found, np.float32([1.0, 2.0, NAN]))
    assert found.dtype == np.float32 and judge.score([]).shape == (0,)
    assert judge.pop_failures() == (1, "saw nan") and judge.pop_failures() == (0, "")


def test_a_watched_judge_that_fails_leaves_nan_and_a_line(caplog):
    for error in (RunError("the server at :9000 is down"), InputError("wrong length")):
        judge = WatchedJudge("taste", TASTE, partial(Fixed, error=error))
        assert np.isnan(judge.score(REQUESTS)).all()
        warn_unscored("eval_before", [judge])
        assert f"taste could not be scored for 3 samples; most often: {error}" in caplog.text
    with pytest.raises(Stopped):
        WatchedJudge("taste", TASTE, lambda: Fixed(error=Stopped("now"))).score(REQUESTS)


def test_a_watched_function_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"evaluation\.judges\.taste: .*nowhere"):
        make_watched({"taste": TermConfig(python="nowhere.py:score")}, tmp_path)
    assert make_watched({}, tmp_path / "none") == () and not (tmp_path / "none").exists()
    assert watched_identity([]) == {}


def test_a_server_that_does_not_answer_is_a_warning_and_is_asked_again(caplog):
    asked = []

    def make() -> Fixed:
        asked.append(1)
        if len(asked) < 3:
            raise UnreachableError("nobody at :9000")
        return Fixed((1.0, 2.0, 3.0))

    with pytest.raises(UnreachableError):
        WatchedJudge("taste", TASTE, make)
    judge = WatchedJudge("taste", TermConfig(python="m:f", meaning="mine"), make, is_needed=False)
    assert "judges.taste has no scores until its server answers: nobody at :9000" in caplog.text
    assert watched_identity([judge]) == {} and judge.meaning == "mine"
    asked.pop()
    # Once an evaluation, however many parts it has.
    assert np.isnan([judge.score(REQUESTS), judge.score(REQUESTS)]).all() and len(asked) == 2
    assert judge.pop_failures() == (6, "nobody at :9000")
    np.testing.assert_array_equal(judge.score(REQUESTS), np.float32([1, 2, 3]))
    assert judge.pop_failures() == (0, "") and len(asked) == 3
    assert list(watched_identity([judge])) == ["watched term taste"]


def test_only_the_server_of_patience_must_answer_when_a_run_starts(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"http://127.0.0.1:{port}/score"
    http = from_dict(TermConfig, {"http": {"url": url, "model": "ocr", "retries": 0}})
    (judge,) = make_watched({"ocr": http}, tmp_path)
    assert np.isnan(judge.score(REQUESTS)).all() and "does not answer" in judge.pop_failures()[1]
    with pytest.raises(RunError, match=r"evaluation\.judges\.ocr: .*does not answer.*start it"):
        make_watched({"ocr": http}, tmp_path, needed=["ocr"])


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
    name = "a_watched_term_with_a_long_name"
    (_, line) = format_watched(
        Evaluation({}, np.float32([1]), watched={name: np.float32([-250000])}),
        Evaluation({}, np.float32([1]), watched={name: np.float32([NAN])}),
    ).splitlines()
    assert line.split() == [name, "-2.5e+05", "no", "score", "no", "score"]
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


@pytest.mark.parametrize("term, total", [("wins", "wins * sem"), ("total", "wins")])
def test_patience_with_a_win_rate_is_refused(term: str, total: str):
    values = {
        "run_dir": "run", "steps": 10,
        "reward": {
            "total": total,
            "terms": {
                "sem": {"judge": "main"},
                "wins": {"pairwise": {"by": "scores", "of": "sem"}},
            },
        },
        "evaluation": {"every": 2, "patience": {"term": term, "fall": 0.1}},
    }  # fmt: skip
    with pytest.raises(InputError, match=rf"patience\.term is {term}, a win rate .*always 0\.5"):
        from_dict(GrpoConfig, values)


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
                "every": 2, "samples": 1, "captions": 1,
                "patience": {"term": "diversity/commonest_boxes", "fall": 0.1},
            },
            "compares samples; set samples to 2",
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


def test_the_exact_judge_is_watched_beside_another_and_looks_once(monkeypatch):
    seen = []

    def judge_sample(caption, plan, image):
        seen.append(caption)
        scores = {"sem": 0.1, "spa": 0.2, "ri": 0.3, "pi": 0.4, "verdict": 1.0}
        return SimpleNamespace(scores=scores, detections=(), rationale="")

    monkeypatch.setattr("gotr1_jax.rewards.shapes.judge_sample", judge_sample)
    terms = {
        "exact_pi": {"shapes": {"score": "pi"}},
        "exact_sem": {"shapes": {"score": "sem"}, "scale": 2.0},
    }
    config = from_dict(GrpoConfig, {"run_dir": "a", "evaluation": {"judges": terms}})
    judges = make_watched(config.evaluation.judges, Path("unused"))
    found = [judge.score(REQUESTS).tolist() for judge in judges]
    np.testing.assert_allclose(found, [[0.4] * 3, [0.2] * 3], rtol=1e-6)
    assert seen == ["a", "b", "c"]
    # One that comes or goes makes the other no other term.
    (alone,) = make_watched({"exact_pi": config.evaluation.judges["exact_pi"]}, Path("unused"))
    assert alone.identity == judges[0].identity
    assert alone.meaning == "exact judge: the caption is true of the image"
    with pytest.raises(InputError, match="judges.a.shapes.score is 'p'.*choose from sem"):
        from_dict(
            GrpoConfig,
            {"run_dir": "a", "evaluation": {"judges": {"a": {"shapes": {"score": "p"}}}}},
        )


def test_the_exact_judge_is_a_term_of_a_reward_too():
    exact = from_dict(TermConfig, {"shapes": {"score": "sem"}})
    assert stage_of("mine", exact) == "plan"
    judge = make_judge(JudgeConfig(terms=("pi",)), terms={"mine": exact})
    assert judge.terms == ("pi", "mine")
    caption = "a red circle"
    request = JudgeRequest(caption, parse_plan(""), np.zeros((128, 128, 3), np.uint8))
    assert judge.judge([request])[0].scores == {"pi": 0.0, "mine": 0.0}
