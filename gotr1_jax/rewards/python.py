"""A Python function as a judge.

The function gets a list of all samples of a batch and returns their scores, in order: finite
numbers of any range; NaN where a sample cannot be scored:

    def score(requests: list[JudgeRequest]) -> list[float]:
        return [brightness(r.image) for r in requests]

Instead of a list or an array (B,) of one term it may return a mapping from term to such a list, or
for each sample a mapping from term to number or a `JudgeResult`. `docs/rewards.md` tells more.

A function that compares the samples of a caption is marked `score.group_wise = True` (or by
`judge.python.group_wise` of the configuration): then all samples of a caption of a step are in
one batch, with equal `request.group`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gotr1_jax.errors import ConfigError, InputError
from gotr1_jax.plan import Box
from gotr1_jax.rewards.base import JudgeRequest, JudgeResult, is_group_wise, needs_main_thread
from gotr1_jax.rewards.expression import LARGEST
from gotr1_jax.rewards.own_function import failures_as_one_line, load_function, split_name
from gotr1_jax.rewards.source_digest import source_digest
from gotr1_jax.rewards.terms import check_names


class PythonJudge:
    """Calls `file.py:function` or `module:function` and checks every value that it returns.

    Attributes:
        terms: those that the function scores; scores of other terms are left out.
        function: its name, as given.
        meanings: the function's attribute `meaning` (a text), or the first line of its docstring.
        identity: the function's name and the `source_digest` of it and of the modules of its
            project: an edited function is another judge. A function whose scores depend on
            weights or other files names them in an attribute `identity` (a text).
        group_wise: whether whole groups must be given, by the argument or by the function's own
            attribute of this name.
        needs_main_thread: whether it must be called there, by the function's own attribute of this
            name.
    """

    def __init__(self, function: str, terms: Sequence[str], group_wise: bool = False) -> None:
        """InputError where there is no such function, or `terms` holds no name of a term."""
        split_name(function)
        try:
            check_names(terms)
        except ConfigError as error:
            raise InputError(f"the terms of {function} hold {error}") from error
        if not terms:
            raise InputError(f"the terms of {function} are not given; name those that it scores")
        self.terms: tuple[str, ...] = tuple(terms)
        self.function = function
        self._function = load_function(function)
        _check_signature(function, self._function)
        self.group_wise = group_wise or is_group_wise(self._function)
        self.needs_main_thread = needs_main_thread(self._function)
        self.identity = f"python {function} {source_digest(self._function)}"
        self.meanings = dict.fromkeys(self.terms, _meaning(self._function))

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        """One result for each request; the function is never called without any.

        RunError where the function raises or exits; InputError where what it returns cannot be
        used.
        """
        if not requests:
            return []
        # Copies: what a function does to its images must not reach other judges and the report.
        own = [replace(request, image=request.image.copy()) for request in requests]
        with failures_as_one_line(f"judge {self.function}"):
            results = self._by_sample(self._function(own), len(requests))
            # A mapping of one's own may raise as well.
            return [self._check(i, result) for i, result in enumerate(results)]

    def _by_sample(self, returned: Any, samples: int) -> Sequence[Any]:
        """What the function returned as one mapping, result or number for each sample."""
        if isinstance(returned, Mapping):
            missing = [t for t in self.terms if t not in returned]
            if missing:
                given = ", ".join(str(name)[:80] for name in returned) or "nothing"
                raise self._error(f"gave no {', '.join(missing)}, but {given}")
            columns = {t: self._column(returned[t], samples, f" of {t}") for t in self.terms}
            return [{t: columns[t][i] for t in self.terms} for i in range(samples)]
        return self._column(returned, samples, "")

    def _column(self, returned: Any, samples: int, of: str) -> Sequence[Any]:
        """One value a sample, from a list or an array of numpy, jax or torch."""
        if hasattr(returned, "detach"):  # torch: also on a device, or with a gradient
            returned, shape = returned.detach().cpu().tolist(), tuple(returned.shape)
        elif hasattr(returned, "shape") and hasattr(returned, "dtype"):
            array = np.asarray(returned)
            returned, shape = list(array) if array.ndim else array, array.shape
        else:
            shape = (samples,)
        if len(shape) != 1:
            raise self._error(
                f"returned an array of shape {shape}{of} for {samples} samples; return "
                f"shape ({samples},)"
            )
        if not isinstance(returned, list | tuple):
            raise self._error(
                f"returned {type(returned).__name__}{of}; return a list or an array with one value "
                "for each sample"
            )
        if len(returned) != samples:
            raise self._error(
                f"returned {len(returned)} results{of} for {samples} samples; return one for each"
            )
        return returned

    def _check(self, index: int, result: Any) -> JudgeResult:
        if not isinstance(result, JudgeResult):
            if len(self.terms) == 1 and not isinstance(result, Mapping):
                result = {self.terms[0]: self._number(index, self.terms[0], result)}
            result = JudgeResult(scores=result)
        if not isinstance(result.scores, Mapping):
            raise self._error(
                f"returned {type(result.scores).__name__} for sample {index}; return a mapping "
                f"with {', '.join(self.terms)}, or a JudgeResult"
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
        if abs(value) > LARGEST:
            raise self._error(
                f"gave {term} = {str(value)[:40]} for sample {index}; use a finite number up to "
                "1e30, or NaN where it cannot be scored"
            )
        return float(value)

    def _error(self, what: str) -> InputError:
        return InputError(f"judge {self.function} {what}")


def _check_signature(name: str, function: Callable[..., Any]) -> None:
    """InputError for a function that cannot be called with a list of requests alone."""
    if inspect.iscoroutinefunction(function):
        raise InputError(f"judge {name} is async; write a plain function (def)")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a function in C
        return
    try:
        signature.bind([])
    except TypeError as error:
        raise InputError(
            f"judge {name} is called with one argument, the list of requests, but takes {signature}"
        ) from error


def _meaning(function: Callable[..., Any]) -> str:
    """One line about a function's score."""
    while isinstance(function, functools.partial) and not hasattr(function, "meaning"):
        function = function.func  # its own docstring is that of functools
    text = getattr(function, "meaning", None) or getattr(function, "__doc__", None) or ""
    lines = text.strip().splitlines() if isinstance(text, str) else []
    return lines[0][:200] if lines else ""
