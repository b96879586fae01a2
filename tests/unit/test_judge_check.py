"""`gotr1 judge --check`, and what functions of one's own may return."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gotr1_jax.cli import run
from gotr1_jax.rewards.check import read_requests
from gotr1_jax.rewards.factory import make_judge
from gotr1_jax.rewards.judge_config import JudgeConfig
from gotr1_jax.rewards.python import PythonJudge
from gotr1_jax.rewards.terms import TermConfig

FILE = """
import numpy as np
from helper_of_mine import FACTOR

def mean(requests):
    "mean of the image"
    return np.stack([r.image for r in requests]).mean((1, 2, 3)) / FACTOR

def two(requests):
    return {"first": mean(requests), "second": [float("nan")] * len(requests)}

def rank(requests):
    order = np.argsort([r.image.mean() for r in requests])
    return [float(i) for i in order]

def random(requests):
    return np.random.random(len(requests))

def no_plan(requests):
    return [1 / len(r.plan.objects) for r in requests]

def infinite(requests):
    return np.full(len(requests), np.inf)

def column(requests):
    return np.zeros((len(requests), 1))

def texts(requests):
    return ["good" for r in requests]

def one(request):
    return request.image.mean()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a user's file and a module beside it."""
    (tmp_path / "json.py").write_text(FILE)  # the name of a module that is imported already
    (tmp_path / "helper_of_mine.py").write_text("FACTOR = 100\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
    return tmp_path


def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch, capsys) -> None:
    page = (Path(__file__).parents[2] / "docs/rewards.md").read_text(encoding="utf-8")
    (tmp_path / "my_rewards.py").write_text(page.split("```python\n")[1].split("```")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
    assert run(["judge", "--check", "my_rewards.py:colourful"]) == 0
    assert "meaning: how far the colours" in capsys.readouterr().out


def test_a_file_is_found_whatever_its_name(folder: Path) -> None:
    requests = read_requests()
    assert len(requests) == 8 and [r.group for r in requests] == [0, 0, 1, 1, 2, 2, 3, 3]
    judge = PythonJudge("json.py:mean", ["brightness"])
    assert judge.meanings == {"brightness": "mean of the image"}
    expected = [r.image.mean() / 100 for r in requests]
    assert [r.scores["brightness"] for r in judge.judge(requests)] == pytest.approx(expected)
    absolute = PythonJudge(f"{folder / 'json.py'}:mean", ["b"])
    assert absolute.judge(requests[:1])[0].scores["b"] == pytest.approx(expected[0])


def test_terms_of_one_function_are_one_judge(folder: Path) -> None:
    terms = {name: TermConfig(python="json.py:two") for name in ("first", "second")}
    judge = make_judge(JudgeConfig(terms=("sem", "pi")), terms={**terms, "pi": TermConfig()})
    assert judge.terms == ("sem", "pi", "first", "second")
    scores = judge.judge(read_requests()[:2])[1].scores
    assert scores["first"] > 0 and np.isnan(scores["second"]) and 0 <= scores["sem"] <= 1
    alone = make_judge(JudgeConfig(kind="none"), terms={"first": terms["first"]})
    assert alone.terms == ("first",)


@pytest.mark.parametrize(
    ("function", "code", "message"),
    [
        ("mean", 0, "no mistake found on 8 samples"),
        ("mean", 0, "each alone: the same values"),
        ("random", 0, "OTHER values"),
        ("rank", 1, "other values when the samples come in another order"),
        ("no_plan", 1, "ZeroDivisionError"),
        ("infinite", 1, "gave infinite = inf for sample 0; use a finite number"),
        ("column", 1, "an array of shape (8, 1) for 8 samples; return shape (8,)"),
        ("texts", 1, "gave texts = 'good' (str) for sample 0"),
        ("one", 1, "raised AttributeError: 'list' object has no attribute 'image'"),
        ("two", 1, "gave no two, but first, second"),
        ("absent", 1, "has no function absent"),
    ],
)
def test_check(function: str, code: int, message: str, folder: Path, capsys) -> None:
    assert run(["judge", "--check", f"json.py:{function}"]) == code
    assert message in capsys.readouterr().out
