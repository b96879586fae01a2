"""Judges that answer while this process does something else.

A judge that computes on the devices of this process is asked in the calling thread: programs of
several devices must be dispatched in one order, and two threads have none. All others, which wait
for a server or compute on the host, are asked in one thread of their own, one call at a time.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar

from gotr1_jax.rewards.base import Judge, JudgeRequest, JudgeResult, needs_main_thread, pop_metrics
from gotr1_jax.rewards.composite import CompositeJudge
from gotr1_jax.vlm_engine.http_client import cancel_requests

_T = TypeVar("_T")
# Seconds that the end of the context waits for a call that cannot be cancelled: a function of the
# user's. What lasts longer ends with the process.
_LAST_WAIT = 20.0


class Job(Generic[_T]):
    """A piece of work that was begun.

    Attributes:
        seconds: that it took; 0 until it has ended.
        concurrent: of these, those that it took in the other thread.
    """

    def __init__(self) -> None:
        self._future: Future[_T] = Future()
        self.seconds = self.concurrent = 0.0

    def result(self) -> _T:
        """What it returned, or raises what it raised; waits for its end."""
        return self._future.result()

    def wait(self) -> None:
        """Waits for its end, whatever that is."""
        wait([self._future])

    @property
    def has_failed(self) -> bool:
        """Whether it has ended by raising."""
        return self._future.done() and self._future.exception() is not None

    def run(self, work: Callable[[], _T], in_thread: bool = False) -> None:
        """Does the work; what it raises is kept for `result`."""
        start = time.perf_counter()
        try:
            value = work()
        except Exception as error:
            self._end(start, in_thread)
            self._future.set_exception(error)
        except BaseException as error:
            self._end(start, in_thread)
            self._future.set_exception(error)
            if not in_thread:
                raise
        else:
            self._end(start, in_thread)
            self._future.set_result(value)

    def _end(self, start: float, in_thread: bool) -> None:
        self.seconds = time.perf_counter() - start
        self.concurrent = self.seconds if in_thread else 0.0


class JudgeThread:
    """A thread that does work in the order in which it was given, as long as the context lasts.

    At the end of the context what was not begun is dropped, requests to servers are cancelled,
    and the thread ends.
    """

    def __init__(self, is_concurrent: bool = True) -> None:
        """is_concurrent: whether there is a thread; else all is done at once by the caller."""
        self.is_concurrent = is_concurrent
        self._queue: queue.SimpleQueue[tuple[Job[Any], Callable[[], Any]] | None]
        self._queue = queue.SimpleQueue()
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> JudgeThread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._thread is None:
            return
        self._is_over.set()
        self._queue.put(None)
        end = time.monotonic() + _LAST_WAIT
        while self._thread.is_alive() and time.monotonic() < end:
            # Again and again: between two calls of a judge there is no request to cancel.
            cancel_requests(self._thread)
            self._thread.join(0.05)

    def submit(self, work: Callable[[], _T]) -> Job[_T]:
        """Begins `work`, which must not start a computation on the devices."""
        job: Job[_T] = Job()
        if not self.is_concurrent:
            job.run(work)
            return job
        if self._thread is None:
            # A daemon: a function that never returns does not keep the process from ending.
            self._thread = threading.Thread(target=self._work, name="judge", daemon=True)
            self._thread.start()
        self._queue.put((job, work))
        return job

    def wait(self) -> None:
        """Waits until all that was given is done."""
        if self._thread is not None:
            self.submit(lambda: None).wait()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None and not self._is_over.is_set():
            job, work = item
            job.run(work, in_thread=True)
            del item, job, work  # images of a step are large


def begin_judging(
    judge: Judge, make_requests: Callable[[], list[JudgeRequest]], thread: JudgeThread
) -> tuple[Job[list[JudgeRequest]], list[Job[list[JudgeResult]]]]:
    """Begins to make requests and a judge's work on them; returns both.

    Of several judges together those that do not need this thread go on in the other, while the
    others are asked here. `results_of` makes one list of what they return: one job for each.
    """
    parts = _parts_of(judge)
    here = {i for i, part in enumerate(parts) if needs_main_thread(part)}
    requests: Job[list[JudgeRequest]] = Job()
    if here:
        # In the other thread they would come only after all that was begun there before.
        requests.run(make_requests)
    else:
        requests = thread.submit(make_requests)
    jobs: list[Job[list[JudgeResult]]] = [Job() for _ in parts]
    for i, part in enumerate(parts):
        if i not in here:
            jobs[i] = thread.submit(partial(_ask, part, requests))
    for i in sorted(here):
        jobs[i].run(partial(_ask, parts[i], requests))
    return requests, jobs


def begin_pop_metrics(judge: Judge, thread: JudgeThread) -> list[Job[dict[str, float]]]:
    """Begins to take a judge's own metrics (`base.pop_metrics`): those of what was begun before."""
    jobs: list[Job[dict[str, float]]] = []
    for part in _parts_of(judge):
        if needs_main_thread(part):
            jobs.append(Job())
            jobs[-1].run(partial(pop_metrics, part))
        else:
            jobs.append(thread.submit(partial(pop_metrics, part)))
    return jobs


def results_of(judge: Judge, jobs: Sequence[Job[list[JudgeResult]]]) -> list[JudgeResult]:
    """One result for each request, of the jobs of `begin_judging`; waits for them."""
    results = [job.result() for job in jobs]
    return judge.merge(results) if isinstance(judge, CompositeJudge) else results[0]


def _parts_of(judge: Judge) -> tuple[Judge, ...]:
    return judge.parts if isinstance(judge, CompositeJudge) else (judge,)


def _ask(judge: Judge, requests: Job[list[JudgeRequest]]) -> list[JudgeResult]:
    given = requests.result()
    return judge.judge(given) if given else []
