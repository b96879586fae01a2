"""What functions as judges do besides returning scores, and numbers of other libraries."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from lookup_engine import request

from gotr1_jax.errors import InputError, RunError
from gotr1_jax.rewards.python import PythonJudge


def judge_of(function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> PythonJudge:
    judge = PythonJudge("json:dumps", ["pi"])
    monkeypatch.setattr(judge, "_function", function)
    return judge


@pytest.mark.parametrize(
    ("value", "score"),
    [
        (np.float32(0.5), 0.5),
        (np.array(0.5), 0.5),
        (jnp.float32(0.5), 0.5),
        (np.float32(-3.5), -3.5),
        (1e30, 1e30),
        (np.array(True), None),
        (np.array([0.5]), None),
        (1e39, None),
        (-(10**400), None),
        (float("inf"), None),
    ],
)
def test_numbers_of_other_libraries(value: Any, score: float | None, monkeypatch) -> None:
    judge = judge_of(lambda requests: [{"pi": value} for _ in requests], monkeypatch)
    if score is None:
        with pytest.raises(InputError, match="gave pi = .* for sample 0"):
            judge.judge([request("a")])
    else:
        assert judge.judge([request("a")])[0].scores == {"pi": score}


def test_a_function_changes_neither_images_nor_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images go to other judges and the report, and a run's directory may be relative."""

    def function(requests):
        requests[0].image[:] = 7
        os.chdir(tmp_path)
        return [{"pi": 0.5}]

    asked, before = request("a", shade=51), os.getcwd()
    judge_of(function, monkeypatch).judge([asked])
    assert (asked.image == 51).all() and os.getcwd() == before


def test_a_forked_process_does_not_go_on_with_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would write the same metrics and checkpoints once more."""
    own = os.getpid()

    def function(requests):
        monkeypatch.setattr(os, "getpid", lambda: own + 1)  # as in the child of a fork
        return [{"pi": 0.5}]

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit):
        judge_of(function, monkeypatch).judge([request("a")])


def test_an_error_without_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    class OddError(Exception):
        def __str__(self) -> str:
            raise TypeError("no text")

    def function(requests):
        raise OddError

    with pytest.raises(RunError, match="raised OddError: .no text. "):
        judge_of(function, monkeypatch).judge([request("a")])
