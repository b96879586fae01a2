"""A Python function as a judge.

The function gets all samples of a batch at once and returns, for each in order, either a
`JudgeResult` or a mapping from term to a number in [0, 1]; NaN where it cannot be scored:

    def judge(requests: Sequence[JudgeRequest]) -> list[dict[str, float]]:
        return [{"pi": brightness(r.image)} for r in requests]
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gotr1_jax.errors import InputError, RunError
from gotr1_jax.plan import Box
from gotr1_jax.rewards.base import TERMS, JudgeRequest, JudgeResult


class PythonJudge:
    """Calls `module:function` and checks every value that it returns.

    Attributes:
        terms: those that the function scores; scores of other terms are left out.
        identity: the function's name and the SHA-256 of its file: an edited function is another
            judge. The modules that it imports are not part of it.
    """

    def __init__(self, function: str, terms: Sequence[str]) -> None:
        """InputError where there is no such function, or `terms` holds no known term."""
        unknown = [t for t in terms if t not in TERMS]
        if unknown or not terms:
            raise InputError(
                f"the terms of {function} are {', '.join(terms) or 'not given'}; name those that "
                f"it scores, out of {', '.join(TERMS)}"
            )
        self.terms: tuple[str, ...] = tuple(terms)
        self._name = function
        self._function = load_function(function)
        self.identity = f"python {function} {_file_digest(self._function)}"

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        """One result for each request.

        RunError where the function raises; InputError where what it returns cannot be used.
        """
        try:
            results = self._function(requests)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise RunError(
                f"judge {self._name} raised {type(error).__name__}: {error} "
                f"({place.filename}, line {place.lineno})"
            ) from error
        if not isinstance(results, list | tuple):
            raise self._error(f"returned {type(results).__name__}; return a list")
        if len(results) != len(requests):
            raise self._error(
                f"returned {len(results)} results for {len(requests)} samples; return one for each"
            )
        return [self._check(i, result) for i, result in enumerate(results)]

    def _check(self, index: int, result: Any) -> JudgeResult:
        if not isinstance(result, JudgeResult):
            result = JudgeResult(scores=result)
        if not isinstance(result.scores, Mapping):
            raise self._error(
                f"returned {type(result.scores).__name__} for sample {index}; return a mapping "
                "from term to score, or a JudgeResult"
            )
        missing = [t for t in self.terms if t not in result.scores]
        if missing:
            raise self._error(
                f"gave no {', '.join(missing)} for sample {index}; NaN means: cannot be scored"
            )
        scores = {t: self._number(index, t, result.scores[t]) for t in self.terms}
        detections = result.detections
        if not all(
            isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Box)
            for item in detections
        ):
            raise self._error(f"detections for sample {index} is no list of (name, Box)")
        return JudgeResult(scores, tuple(detections), str(result.rationale), result.raw_answers)

    def _number(self, index: int, term: str, value: Any) -> float:
        real = isinstance(value, float | int | np.floating | np.integer)
        if not real or isinstance(value, bool | np.bool_):
            raise self._error(
                f"gave {term} = {value!r} ({type(value).__name__}) for sample {index}; use a float"
            )
        number = float(value)
        if not (math.isnan(number) or 0 <= number <= 1):
            raise self._error(f"gave {term} = {number:g} for sample {index}; use 0 to 1, or NaN")
        return number

    def _error(self, what: str) -> InputError:
        return InputError(f"judge {self._name} {what}")


def load_function(name: str) -> Callable[..., Any]:
    """The function that "module:function" names; the working directory is searched too."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute or not attribute.isidentifier():
        raise InputError(f"judge.python.function is {name!r}; write it as module:function")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(
            f"module {module_name} of the judge {name} cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(here)
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InputError(f"module {module_name} has no function {attribute}")
    return function


def _file_digest(function: Callable[..., Any]) -> str:
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
        return hashlib.sha256(Path(file or "").read_bytes()).hexdigest()[:16]
    except (OSError, TypeError):
        return "unknown"
