"""`gotr1 judge --check`, and what functions of one's own may return."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from gotr1_jax.cli import run
from gotr1_jax.errors import InputError
from gotr1_jax.rewards.check import SAMPLES
from gotr1_jax.rewards.factory import check_functions, make_judge
from gotr1_jax.rewards.judge_config import JudgeConfig, PythonConfig
from gotr1_jax.rewards.judging import read_requests
from gotr1_jax.rewards.python import PythonJudge
from gotr1_jax.rewards.stored_samples import find_samples
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

def pair(requests, images):
    return [0.0 for r in requests]

async def later(requests):
    return [0.0 for r in requests]

def torch_column(requests):
    import torch
    return torch.zeros(len(requests), 1)

class Scorer:
    def __call__(self, requests):
        return [0.0 for r in requests]

def two_lines(requests):
    raise ValueError("one\\ntwo")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a user's file and a module beside it."""
    (tmp_path / "json.py").write_text(FILE)  # the name of a module that is imported already
    (tmp_path / "helper_of_mine.py").write_text("FACTOR = 100\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "helper_of_mine", raising=False)  # of another test's folder
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
    requests = read_requests(find_samples(SAMPLES))
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
    scores = judge.judge(read_requests(find_samples(SAMPLES))[:2])[1].scores
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


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("one", "gets the list of all requests"),
        ("pair", "takes (requests, images)"),
        ("later", "is async; write a plain function"),
        ("torch_column", "array of shape (8, 1) for 8 samples; return shape (8,)"),
        ("Scorer", "Scorer of json.py is a class; write mine = Scorer() below it"),
        ("two_lines", "raised ValueError: one two ("),
        ("absent", "json.py has no function absent"),
    ],
)
def test_a_mistake_is_one_line_and_told_once(
    function: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["judge", "--check", f"json.py:{function}"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("mistake: ") and message in line


def test_a_file_without_a_function_is_no_name(folder: Path, capsys) -> None:
    assert run(["judge", "--check", "json.py"]) == 1
    assert "'json.py' names no function; write it as" in capsys.readouterr().out


def test_modules_of_one_name_beside_two_files(folder: Path) -> None:
    """The second file must not get the module of the first."""
    PythonJudge("json.py:mean", ["mean"])
    (folder / "other").mkdir()
    for name in ("json.py", "helper_of_mine.py"):
        (folder / "other" / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(InputError, match="imports helper_of_mine, which is .* by now, not .*other"):
        PythonJudge("other/json.py:mean", ["mean"])


def test_a_path_in_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert PythonJudge("~/json.py:two", ["first"]).terms == ("first",)


def test_missing_functions_are_known_before_anything_runs(folder: Path) -> None:
    (folder / "heavy.py").write_text("raise SystemExit('run')\ndef f(r): ...\ng = f\n")
    (folder / "broken.py").write_text("def f(:\n")

    def check(function: str) -> None:
        judge = JudgeConfig(kind="python", terms=("x",), python=PythonConfig(function))
        check_functions(JudgeConfig(), {"y": TermConfig(python=function)})
        check_functions(judge)

    check("heavy.py:f")
    check("heavy.py:g")
    check("some.module:f")  # a module is found when it is imported
    check_functions(JudgeConfig(python=PythonConfig("none.py:f")))  # of another kind: not used
    for function, message in {
        "heavy.py:h": "heavy.py has no function h",
        "none.py:f": f"there is no file none.py in {folder}: it was to hold none.py:f",
        "broken.py:f": "broken.py of broken.py:f cannot be imported: SyntaxError",
    }.items():
        with pytest.raises(InputError, match=re.escape(message)):
            check(function)
