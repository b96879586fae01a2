"""A Python function as a judge.

The function gets all samples of a batch at once and returns, for each in order, either a
`JudgeResult` or a mapping from term to a number in [0, 1]; NaN where it cannot be scored:

    def judge(requests: Sequence[JudgeRequest]) -> list[dict[str, float]]:
        return [{"pi": brightness(r.image)} for r in requests]

A function that compares the samples of a caption is marked `judge.group_wise = True` (or by
`judge.python.group_wise` of the configuration): then all samples of a caption of a step are in
one batch, with equal `request.group`.
"""

from __future__ import annotations

import importlib
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from gotr1_jax.errors import InputError, RunError, Stopped
from gotr1_jax.plan import Box
from gotr1_jax.rewards.base import TERMS, JudgeRequest, JudgeResult, is_group_wise
from gotr1_jax.rewards.source_digest import source_digest

_ROUNDED_ONE = 1 + 1e-6  # what a similarity of 1 may be in float32


class PythonJudge:
    """Calls `module:function` and checks every value that it returns.

    Attributes:
        terms: those that the function scores; scores of other terms are left out.
        identity: the function's name and the `source_digest` of it and of the modules of its
            project: an edited function is another judge. A function whose scores depend on
            weights or other files names them in an attribute `identity` (a text).
        group_wise: whether whole groups must be given, by the argument or by the function's own
            attribute of this name.
    """

    def __init__(self, function: str, terms: Sequence[str], group_wise: bool = False) -> None:
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
        self.group_wise = group_wise or is_group_wise(self._function)
        self.identity = f"python {function} {source_digest(self._function)}"

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        """One result for each request; the function is never called without any.

        RunError where the function raises or exits; InputError where what it returns cannot be
        used.
        """
        if not requests:
            return []
        # Copies: what a function does to its images must not reach other judges and the report.
        own = [replace(request, image=request.image.copy()) for request in requests]
        with _failures_as_one_line(self._name):
            results = self._function(own)
        if not isinstance(results, list | tuple):
            raise self._error(f"returned {type(results).__name__}; return a list")
        if len(results) != len(requests):
            raise self._error(
                f"returned {len(results)} results for {len(requests)} samples; return one for each"
            )
        with _failures_as_one_line(self._name):  # a mapping of one's own may raise as well
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
        if not isinstance(detections, list | tuple) or not all(
            isinstance(item, tuple)
            and len(item) == 2
            and isinstance(item[0], str)
            and isinstance(item[1], Box)
            for item in detections
        ):
            raise self._error(f"detections for sample {index} is no list of (name, Box)")
        if not isinstance(result.raw_answers, Mapping):
            raise self._error(f"raw_answers for sample {index} is no mapping from term to text")
        raw_answers = {str(term): str(text) for term, text in result.raw_answers.items()}
        plain = tuple((n, Box(*(int(v) for v in (b.x1, b.y1, b.x2, b.y2)))) for n, b in detections)
        return JudgeResult(scores, plain, str(result.rationale), raw_answers)

    def _number(self, index: int, term: str, value: Any) -> float:
        if getattr(value, "shape", None) == () and hasattr(value, "item"):
            value = value.item()  # of an array of numpy, torch or jax
        real = isinstance(value, float | int | np.floating | np.integer)
        if not real or isinstance(value, bool | np.bool_):
            raise self._error(
                f"gave {term} = {value!r} ({type(value).__name__}) for sample {index}; use a float"
            )
        number = float(value)
        if 1 < number <= _ROUNDED_ONE:
            number = 1.0
        if not (math.isnan(number) or 0 <= number <= 1):
            raise self._error(f"gave {term} = {number:.9g} for sample {index}; use 0 to 1, or NaN")
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
    except BaseException as error:
        if is_from_outside(error):
            raise
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


def is_from_outside(error: BaseException) -> bool:
    """Whether foreign code was left because of a signal, not by an error or an exit of its own."""
    is_interrupt = isinstance(error, KeyboardInterrupt)
    # Where a job has replaced Python's handler, Ctrl-C raises no KeyboardInterrupt.
    return isinstance(error, Stopped) or (
        is_interrupt and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )


@contextmanager
def _failures_as_one_line(name: str) -> Iterator[None]:
    """What a function raises, as a RunError; so too its `sys.exit`, which would end the job with
    an exit code of its choice. A process that it forked does not go on with the job, and the
    working directory, from which paths may be relative, is what it was."""
    process, directory = os.getpid(), os.getcwd()
    try:
        yield
    except BaseException as error:
        if isinstance(error, InputError) or is_from_outside(error):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise RunError(
            f"judge {name} raised {type(error).__name__}: {_text(error)} "
            f"({place.filename}, line {place.lineno})"
        ) from error
    finally:
        if os.getpid() != process:
            os._exit(1)
        os.chdir(directory)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(no text)"
