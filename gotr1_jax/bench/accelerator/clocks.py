"""Seconds of compilation and of execution, and the most memory that was in use."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import jax

from gotr1_jax.sampler.sampler import Sampler, SamplerPrograms

_COMPILE = "/jax/core/compile/backend_compile_duration"
_LOWER = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_CACHE_HIT = "/jax/compilation_cache/cache_hits"
_LARGE = 0.05  # seconds; shorter compilations are of single operations
_PERIOD = 0.002  # seconds between two looks at the memory


class CompileClock:
    """Compilations of this process since it was made.

    Attributes:
      seconds: of lowering and compiling, reading from the persistent cache included.
      programs: that took longer than single operations do.
      from_cache: that were read; the cache keeps long compilations only.
    """

    def __init__(self) -> None:
        self.seconds, self.programs, self.from_cache = 0.0, 0, 0
        jax.monitoring.register_event_duration_secs_listener(self._on_seconds)
        jax.monitoring.register_event_listener(self._on_event)

    def _on_seconds(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event in (_COMPILE, _LOWER):
            self.seconds += duration_secs
        self.programs += event == _COMPILE and duration_secs > _LARGE

    def _on_event(self, event: str, **_: str | int) -> None:
        self.from_cache += event == _CACHE_HIT


class MemoryWatch:
    """A context in which the memory in use on a device is looked at every two milliseconds.

    Attributes:
      start_bytes: in use at the beginning; None: the device does not say.
      peak_bytes: the most in use. The allocator's own peak where that rose, which misses nothing;
        else the largest that was seen.
      is_exact: whether it is the allocator's.
    """

    def __init__(self, device: Any) -> None:
        self._device, self._end = device, threading.Event()
        self.start_bytes: int | None = None
        self.peak_bytes: int | None = None
        self.is_exact = False

    def __enter__(self) -> MemoryWatch:
        stats = self._device.memory_stats() or {}
        self.start_bytes = self.peak_bytes = stats.get("bytes_in_use")
        self._before = stats.get("peak_bytes_in_use", 0)
        if self.start_bytes is not None:
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._end.set()
        if self.start_bytes is None:
            return
        self._thread.join()
        peak = (self._device.memory_stats() or {}).get("peak_bytes_in_use", 0)
        if peak > self._before:
            self.peak_bytes, self.is_exact = peak, True

    def _look(self) -> None:
        while not self._end.wait(_PERIOD):
            now = (self._device.memory_stats() or {}).get("bytes_in_use", 0)
            self.peak_bytes = max(self.peak_bytes or 0, now)


@dataclass(frozen=True)
class Timing:
    """Seconds of one piece of work, done several times.

    Attributes:
      first: of the first call, without its compilations.
      compile: of the compilations.
      programs, from_cache: how many, see `CompileClock`.
      repeats: of each later call.
    """

    first: float
    compile: float
    programs: int
    from_cache: int
    repeats: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """The fastest later call; without one the first."""
        return min(self.repeats, default=self.first)

    def values(self) -> dict[str, Any]:
        """For the record."""
        return {
            "seconds": self.seconds,
            "first_seconds": self.first,
            "repeats_seconds": list(self.repeats),
            "compile_seconds": self.compile,
            "programs": self.programs,
            "programs_from_cache": self.from_cache,
        }


def measure(run: Callable[[], Any], clock: CompileClock, repeats: int) -> Timing:
    """Call `run` once to compile and warm up, then `repeats` times; each waits for its result."""
    compiled, programs, hits = clock.seconds, clock.programs, clock.from_cache

    def once() -> float:
        start = time.perf_counter()
        jax.block_until_ready(run())
        return time.perf_counter() - start

    first = once()
    compiled, programs = clock.seconds - compiled, clock.programs - programs
    hits = clock.from_cache - hits
    later = tuple(once() for _ in range(repeats))
    return Timing(max(0.0, first - compiled), compiled, programs, hits, later)


class PhaseClock:
    """The ends of the programs of a sampler's call, which waits for each of them.

    Waiting costs nothing that counts: the loops are few and long.
    """

    def __init__(self, sampler: Sampler) -> None:
        self.ends: list[tuple[str, float]] = []
        programs = {
            field.name: self._timed(field.name, getattr(sampler.programs, field.name))
            for field in fields(SamplerPrograms)
        }
        sampler.programs = SamplerPrograms(**programs)

    def end_of(self, name: str) -> float:
        """When the last call of a program ended, `time.perf_counter`."""
        return next(end for known, end in reversed(self.ends) if known == name)

    def _timed(self, name: str, program: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = jax.block_until_ready(program(*args, **kwargs))
            self.ends.append((name, time.perf_counter()))
            return result

        return call
