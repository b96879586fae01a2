"""The programs of a job compiled one after the other, and whether the job fits as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jax.sharding import Mesh

from gotr1_jax.aot.measure import Compiler, Program, ProgramCost
from gotr1_jax.aot.target import Target


@dataclass(frozen=True)
class ModelSizes:
    """Sizes given on the command line; None: from the configuration."""

    policy: str | None = None
    judge: str | None = None


@dataclass(frozen=True)
class JobMemory:
    """The arrays of a job that outlive a program.

    Attributes:
      mesh: of the policy.
      persistent: bytes on one device of each tree that outlives the programs that use it, by name.
      always: names of those that are in memory during the whole job.
      notes: what the numbers leave out.
      rollout_mesh: that samples; None: the same.
      moved: bytes that one device receives from the other mesh in a step, by name.
    """

    mesh: Mesh
    persistent: dict[str, int]
    always: tuple[str, ...]
    notes: tuple[str, ...] = ()
    rollout_mesh: Mesh | None = None
    moved: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What a job needs on a target.

    Attributes:
      target: the devices.
      job: its mesh and persistent arrays.
      programs: their costs, in the order of compilation.
      left_out: names of programs that were not to be compiled.
    """

    target: Target
    job: JobMemory
    programs: tuple[ProgramCost, ...] = ()
    left_out: tuple[str, ...] = ()

    def total_bytes(self, cost: ProgramCost) -> int:
        """Bytes on one device while a program runs, with all other arrays in memory."""
        persistent, program = self.job.persistent, cost.program
        resident = sum(persistent[name] for name in program.resident)
        arguments = sum(persistent[name] for name in program.persistent_args)
        # Persistent trees among the arguments are in both sums: count them once.
        return resident + max(0, cost.peak_bytes - min(arguments, cost.argument_bytes))

    def fits(self, cost: ProgramCost) -> bool:
        """Whether a program fits by itself."""
        return not cost.failed and cost.peak_bytes <= self.target.chip.hbm_bytes

    @property
    def peak_bytes(self) -> int:
        """Of the whole job on one device."""
        default = self.always_bytes if self.job.rollout_mesh is None else 0
        return max(map(self.total_bytes, self.programs), default=default)

    @property
    def always_bytes(self) -> int:
        """Bytes of the trees that are in memory during the whole job, on all meshes."""
        return sum(self.job.persistent[name] for name in self.job.always)

    @property
    def job_fits(self) -> bool:
        """Whether every program fits together with all other arrays in memory."""
        failed = any(cost.failed for cost in self.programs)
        return not failed and self.peak_bytes <= self.target.chip.hbm_bytes

    @property
    def notes(self) -> tuple[str, ...]:
        """What the numbers leave out."""
        share = self.peak_bytes / self.target.chip.hbm_bytes
        if self.target.chip.platform != "cuda" or not 0.75 < share <= 1:
            return self.job.notes
        return (
            *self.job.notes,
            f"JAX takes 75 % of a GPU's memory by default, this job needs {share:.0%}: set "
            "XLA_PYTHON_CLIENT_MEM_FRACTION",
        )

    @property
    def step_seconds(self) -> float | None:
        """Least time of a step; None: the chip's peak numbers are unknown."""
        total = 0.0
        for cost in self.programs:
            seconds = cost.seconds(self.target)
            if seconds is None:
                return None
            total += seconds * cost.program.runs_per_step
        return total if self.programs else None


class JobTooLarge(Exception):
    """The job does not fit, and the rest is not compiled."""


class JobCompiler:
    """Compiles a job's programs and collects them in `report`.

    stop_early: raise JobTooLarge as soon as something does not fit.
    only: compile only programs whose names have this in them; "": all.
    """

    def __init__(self, compiler: Compiler, stop_early: bool, only: str = "") -> None:
        self.target, self._compiler, self._stop_early = compiler.target, compiler, stop_early
        self._only = only
        self.report: Report

    def start(self, job: JobMemory) -> None:
        """Call it once, before the first program."""
        self.report = Report(self.target, job)
        self._check()

    def compile(self, name: str, function: Any, *args: Any, **fields: Any) -> Any:
        """Compile a `Program` with these fields; returns its outputs as shapes."""
        if self._only not in name:
            self.report = replace(self.report, left_out=(*self.report.left_out, name))
            return function.trace(*args, **fields.get("static", {})).out_info
        cost, outputs = self._compiler(Program(name, function, args, **fields))
        self.report = replace(self.report, programs=(*self.report.programs, cost))
        self._check()
        return outputs

    def _check(self) -> None:
        if self._stop_early and not self.report.job_fits:
            raise JobTooLarge
