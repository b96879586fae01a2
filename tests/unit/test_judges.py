"""Judges of one's own, judges together, kept results, and judges from a configuration."""

from __future__ import annotations

import functools
import importlib
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from lookup_engine import request

from gotr1_jax.config import from_dict, to_yaml
from gotr1_jax.errors import InputError, RunError, Stopped
from gotr1_jax.plan import Box
from gotr1_jax.rewards.base import JudgeRequest, JudgeResult, result_from_json, result_to_json
from gotr1_jax.rewards.composite import (
    CachedJudge,
    CompositeJudge,
    request_key,
)
from gotr1_jax.rewards.factory import make_judge
from gotr1_jax.rewards.judge_config import JudgeConfig
from gotr1_jax.rewards.multimodal.terms import MultimodalJudge
from gotr1_jax.rewards.python import PythonJudge
from gotr1_jax.rewards.shapes import ShapesJudge
from gotr1_jax.rewards.source_digest import source_digest
from gotr1_jax.trainer.stopping import StopSignals
from gotr1_jax.vlm_engine.answer_cache import AnswerCache

FILE = """
import numpy as np
from gotr1_jax.plan import Box
from gotr1_jax.rewards import JudgeResult

def bright(requests):
    return [{"pi": float(r.image.mean()) / 255, "other": 7} for r in requests]

def full(requests):
    return tuple(JudgeResult({"ri": np.float32(0.5), "pi": float("nan")},
                             [("cat", Box(1, 2, 3, 4))], "why", {"ri": "why"}) for r in requests)

def fails(requests):
    raise KeyError("nothing there")

def exits(requests):
    raise SystemExit(0)

def interrupts(requests):
    raise KeyboardInterrupt

def gives_up(requests):
    raise GeneratorExit

def strict(requests):
    return [{"pi": min(r.image.min() for r in requests) / 255.0} for r in requests]

number = 3
def generator(requests): yield {"pi": 1.0}
def short(requests): return []
def no_mapping(requests): return [[0.5] for _ in requests]
def missing(requests): return [{"sem": 0.5} for _ in requests]
def above(requests): return [{"pi": 1e39} for _ in requests]
def infinite(requests): return [{"pi": float("inf")} for _ in requests]
def text(requests): return [{"pi": "0.5"} for _ in requests]
def nothing(requests): return [{"pi": None} for _ in requests]
def truth(requests): return [{"pi": True} for _ in requests]
def array(requests): return [{"pi": np.ones(1)} for _ in requests]
def words(requests): return [JudgeResult({"pi": 1.0}, raw_answers="why") for _ in requests]
def no_box(requests): return [JudgeResult({"pi": 1.0}, ((1, 2, 3, 4),)) for _ in requests]
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The functions above as a module of the working directory."""
    name = f"my_judge_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return name


def test_a_function_of_ones_own(module: str) -> None:
    judge = PythonJudge(f"{module}:bright", ["pi"])
    assert judge.judge([]) == []
    dark, light = judge.judge([request("a"), request("b", shade=51)])
    assert (dark.scores, light.scores) == ({"pi": 0.0}, {"pi": 0.2})  # what else it gives is left
    (result,) = PythonJudge(f"{module}:full", ["ri", "pi"]).judge([request("a")])
    assert result.scores["ri"] == 0.5 and math.isnan(result.scores["pi"])
    assert result.detections == (("cat", Box(1, 2, 3, 4)),) and result.rationale == "why"


def test_an_edited_function_is_another_judge(module: str, tmp_path: Path) -> None:
    first = PythonJudge(f"{module}:bright", ["pi"]).identity
    with open(tmp_path / f"{module}.py", "a") as file:
        file.write("# changed\n")
    assert PythonJudge(f"{module}:bright", ["pi"]).identity != first


def test_what_scores_depend_on_is_part_of_the_identity(tmp_path: Path) -> None:
    """Helpers of the same project count, installed packages do not."""
    package = tmp_path / "own_judges"
    package.mkdir()
    for name, text in {
        "__init__": "",
        "helper": "import numpy\nfrom own_judges import deep\n",
        "deep": "LEVEL = 1\n",
        "main": "from own_judges.helper import deep\n"
        "def score(requests): return []\n"
        "class Model:\n    def __call__(self, requests): return []\nmodel = Model()\n",
        "beside": "",
    }.items():
        (package / f"{name}.py").write_text(text)
    first = PythonJudge("own_judges.main:score", ["pi"]).identity
    importlib.import_module("own_judges.beside")
    main = sys.modules["own_judges.main"]
    an_object = source_digest(main.model)
    assert "unknown" not in an_object
    assert source_digest(functools.partial(main.score, 1)) != source_digest(main.score)
    assert source_digest(getattr) != source_digest(getattr)  # nothing is known of it

    (package / "beside.py").write_text("A = 1\n")
    assert PythonJudge("own_judges.main:score", ["pi"]).identity == first
    (package / "deep.py").write_text("LEVEL = 2\n")
    assert PythonJudge("own_judges.main:score", ["pi"]).identity != first
    assert source_digest(main.model) != an_object
    second = PythonJudge("own_judges.main:score", ["pi"]).identity
    main.score.identity = "weights of May"
    assert PythonJudge("own_judges.main:score", ["pi"]).identity != second


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("generator", "returned generator; return a list"),
        ("short", "returned 0 results for 1 samples"),
        ("no_mapping", "gave pi = .0.5. .list. for sample 0"),
        ("missing", "gave no pi for sample 0"),
        ("above", "pi = 1e[+]39 for sample 0; use a finite number"),
        ("infinite", "pi = inf for sample 0"),
        ("text", "pi = '0.5' .str. for sample 0; use a float"),
        ("nothing", "pi = None .NoneType. for sample 0"),
        ("truth", "pi = True .bool. for sample 0"),
        ("array", "pi = array.* .ndarray. for sample 0"),
        ("words", "raw_answers for sample 0"),
        ("no_box", "detections for sample 0"),
    ],
)
def test_what_a_function_returns_is_checked(module: str, function: str, message: str) -> None:
    judge = PythonJudge(f"{module}:{function}", ["pi"])
    with pytest.raises(InputError, match=f"judge {module}:{function} .*{message}"):
        judge.judge([request("a")])


def test_a_function_that_raises(module: str) -> None:
    judge = PythonJudge(f"{module}:fails", ["pi"])
    with pytest.raises(RunError, match=f"{module}:fails raised KeyError.*{module}.py, line 14"):
        judge.judge([request("a")])


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("exits", "SystemExit"),
        ("interrupts", "KeyboardInterrupt"),
        ("gives_up", "GeneratorExit"),
    ],
)
def test_a_function_that_exits_is_a_failure_of_the_judge(
    module: str, function: str, error: str
) -> None:
    """Else the command would end with the code that the function chose: 0."""
    judge = PythonJudge(f"{module}:{function}", ["pi"])
    with StopSignals(), pytest.raises(RunError, match=f"{module}:{function} raised {error}"):
        judge.judge([request("a")])


def test_ctrl_c_and_a_stop_pass_through_a_function(module: str, monkeypatch) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        PythonJudge(f"{module}:interrupts", ["pi"]).judge([request("a")])
    judge = PythonJudge(f"{module}:bright", ["pi"])

    def stopped(requests):
        raise Stopped("stopped by SIGTERM")

    monkeypatch.setattr(judge, "_function", stopped)
    with pytest.raises(Stopped):
        judge.judge([request("a")])


def test_a_module_that_exits_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "leaving_judge.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(InputError, match="leaving_judge.*cannot be imported: SystemExit"):
        PythonJudge("leaving_judge:f", ["pi"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bright", "or module:function"),
        (":bright", "or module:function"),
        ("{}:", "or module:function"),
        ("no_such_module_here:f", "cannot be imported: ModuleNotFoundError"),
        ("{}:absent", "has no function absent"),
        ("{}:number", "has no function number"),
    ],
)
def test_functions_that_are_not_there(module: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PythonJudge(name.format(module), ["pi"])


def test_a_module_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "broken_judge.py").write_text("def f(:\n")
    with pytest.raises(InputError, match="broken_judge.*SyntaxError"):
        PythonJudge("broken_judge:f", ["pi"])


def test_terms_must_be_known(module: str) -> None:
    for terms in ([], ["no name"]):
        with pytest.raises(InputError, match="name those that it scores|no name of a term"):
            PythonJudge(f"{module}:bright", terms)


class Fixed:
    """Gives every sample the same; counts the samples."""

    def __init__(self, **scores: float) -> None:
        self.terms = tuple(scores)
        self.detecting_terms = ("ri",)
        self.identity = f"fixed {scores}"
        self.seen: list[JudgeRequest] = []
        self._scores = scores

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        self.seen += requests
        detections = (
            (("cat", Box(0, 0, 9, 9)),) if "ri" in self.terms else (("dog", Box(0, 0, 5, 5)),)
        )
        raw_answers = {t: f"{t}!" for t in self.terms}
        return [
            JudgeResult(self._scores, detections, " ".join(self.terms), raw_answers)
            for _ in requests
        ]


def test_terms_from_several_judges() -> None:
    judge = CompositeJudge(
        [(Fixed(pi=0.1, sem=0.2), ["sem"]), (Fixed(ri=0.3, pi=0.4), ["pi", "ri"])]
    )
    assert judge.terms == ("sem", "pi", "ri")
    first, second = judge.judge([request("a"), request("b")])
    assert first == second and first.scores == {"sem": 0.2, "pi": 0.4, "ri": 0.3}
    # Boxes of whoever scores ri; only the words of the terms that are taken.
    assert first.detections == (("cat", Box(0, 0, 9, 9)),) and first.rationale == "pi sem | ri pi"
    assert first.raw_answers == {"sem": "sem!", "pi": "pi!", "ri": "ri!"}
    assert judge.pop_metrics() == {}
    assert judge.judge([]) == []


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "at least one"),
        ([(Fixed(pi=1), ["ri"])], "does not score ri; it scores pi"),
        ([(Fixed(pi=1), ["pi"]), (Fixed(pi=0), ["pi"])], "two judges give pi"),
    ],
)
def test_judges_that_do_not_go_together(parts, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CompositeJudge(parts)


def test_results_are_kept_by_content(tmp_path: Path) -> None:
    a, b = request("a"), request("b")
    inner = Fixed(pi=0.25)
    assert CachedJudge(inner, AnswerCache(tmp_path)).judge([a, b, a])[2].scores == {"pi": 0.25}
    assert len(inner.seen) == 2
    again = CachedJudge(later := Fixed(pi=0.25), AnswerCache(tmp_path))
    assert again.judge([b, a]) == inner.judge([b, a]) and later.seen == []
    changed = [request("a", "another"), request("c"), request("a", shade=1)]
    again.judge(changed)
    assert len(later.seen) == 3
    other = Fixed(pi=0.5)
    assert CachedJudge(other, AnswerCache(tmp_path)).judge([a])[0].scores == {"pi": 0.5}
    # What could not be scored is judged again.
    for _ in range(2):
        unsure = Fixed(pi=math.nan)
        CachedJudge(unsure, AnswerCache(tmp_path)).judge([a])
        assert len(unsure.seen) == 1


def test_no_judge_is_asked_about_nothing(module: str, tmp_path: Path) -> None:
    """A resume finds every answer in the cache; a function need not expect an empty list."""
    strict = PythonJudge(f"{module}:strict", ["pi"])  # raises ValueError without a sample
    for _ in range(2):
        judge = CachedJudge(strict, AnswerCache(tmp_path))
        assert judge.judge([request("a", shade=51)])[0].scores == {"pi": 0.2}

    class Counted(Fixed):
        def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
            assert requests
            return super().judge(requests)

    cached = CachedJudge(Counted(ri=1.0), AnswerCache(tmp_path))
    parts = CompositeJudge([(cached, ["ri"]), (Counted(pi=0.5), ["pi"])])
    for judge in (cached, parts, strict, ShapesJudge()):
        assert judge.judge([]) == []


def test_keys_tell_samples_apart() -> None:
    judge, one = Fixed(pi=1), request("a")
    wide = JudgeRequest(one.caption, one.plan, one.image.reshape(200, 100, 3))
    keys = {request_key(r, judge) for r in (one, request("a"), request("b"), wide)}
    assert len(keys) == 3
    assert request_key(one, Fixed(pi=0.5)) not in keys


def test_results_as_json() -> None:
    result = JudgeResult({"pi": math.nan, "ri": np.float32(0.5)}, (("a", Box(1, 2, 3, 4)),), "w", {"ri": "s"})  # fmt: skip  # noqa: E501
    back = result_from_json(result_to_json(result))
    assert math.isnan(back.scores["pi"]) and back.scores["ri"] == 0.5
    assert (back.detections, back.rationale, back.raw_answers) == (
        result.detections,
        "w",
        {"ri": "s"},
    )


def test_results_and_caches_of_earlier_versions_are_read(tmp_path) -> None:
    old = {
        "scores": {"pi": 0.5, "ri": None},
        "located": [{"name": "cat", "box": [1, 2, 3, 4]}],
        "words": "why",
        "said": {"pi": "0.5"},
    }
    result = result_from_json(old)
    assert result.detections == (("cat", Box(1, 2, 3, 4)),)
    assert (result.rationale, result.raw_answers) == ("why", {"pi": "0.5"})
    cache, judge, one = AnswerCache(tmp_path), Fixed(pi=1), request("a")
    cache.add({request_key(one, judge): old})
    (kept,) = CachedJudge(judge, AnswerCache(tmp_path)).judge([one])
    assert (kept.scores["pi"], kept.detections, kept.rationale) == (0.5, result.detections, "why")


def configure(**values) -> JudgeConfig:
    return from_dict(JudgeConfig, values, "judge.")


HTTP = {"url": "http://127.0.0.1:1/v1", "model": "m"}


def test_judges_from_a_configuration(module: str, tmp_path: Path) -> None:
    assert isinstance(make_judge(configure()), ShapesJudge)
    http = make_judge(configure(kind="http", http=HTTP, terms=["pi", "verdict"]))
    assert isinstance(http, MultimodalJudge) and http.terms == ("pi", "verdict")
    assert make_judge(configure(kind="http", http=HTTP)).terms == ("sem", "spa", "ri", "pi")
    own = {"kind": "python", "python": {"function": f"{module}:bright"}, "terms": ["pi"]}
    both = configure(terms=["sem", "spa", "ri"], also=[own], cache={"folder": str(tmp_path / "c")})
    judge = make_judge(both)
    assert judge.terms == ("sem", "spa", "ri", "pi")
    caption = "a red circle"
    (result,) = judge.judge([request("x", caption, 51)])
    assert result.scores["pi"] == 0.2 and result.scores["sem"] == 0
    assert len(AnswerCache(tmp_path / "c")) == 1
    with pytest.raises(InputError, match="nowhere"):
        make_judge(configure(kind="hps", hps={"checkpoint": "nowhere"}))
    # The folder of a command is used where the configuration names none; shapes needs none.
    make_judge(configure(**own), tmp_path / "d").judge([request("x")])
    make_judge(configure(), tmp_path / "e")
    assert len(AnswerCache(tmp_path / "d")) == 1 and not (tmp_path / "e").exists()
    assert configure(**yaml.safe_load(to_yaml(both))) == both


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "oracle"}, "judge.kind is 'oracle'"),
        ({"kind": "http"}, "give judge.http.url"),
        ({"kind": "python", "terms": ["pi"]}, "give judge.python.function"),
        ({"kind": "python", "python": {"function": "a:b"}}, "and judge.terms"),
        ({"kind": "hps"}, "give judge.hps.checkpoint"),
        ({"terms": ["hps"]}, "the kind shapes does not score"),
        ({"http": {"url": "x", "model": "m"}}, "judge.http.url is 'x'"),
        ({"also": [{"terms": ["pi"]}]}, "judge.also gives pi a second time"),
        ({"terms": ["pi"], "also": [{"terms": ["ri"], "cache": {"folder": "x"}}]}, "judge.also"),
        ({"questions": {"canvas": 10}}, "canvas is 10"),
        ({"questions": {"max_objects": 0}}, "max_objects is 0"),
        ({"cache": {"max_bytes": 0}}, "max_bytes is 0"),
    ],
)
def test_configurations_that_cannot_work(values, message: str) -> None:
    with pytest.raises(InputError, match=message):
        configure(**values)
