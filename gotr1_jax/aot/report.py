"""All programs of a job on one target, and whether the job fits as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gotr1_jax.aot.grpo import Job, Models, grpo
from gotr1_jax.aot.hlo import Traffic, as_json
from gotr1_jax.aot.measure import Compiler, Measured, Program
from gotr1_jax.aot.sft import sft
from gotr1_jax.aot.target import Target
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.sft.config import SftConfig

_GB = 1e9


@dataclass(frozen=True)
class Report:
    """What a job needs on a target.

    Attributes:
      target: where.
      job: its mesh, and what lies in memory all the time.
      programs: measured, in the order in which they were compiled.
    """

    target: Target
    job: Job
    programs: tuple[Measured, ...]

    def with_the_rest(self, program: Measured) -> int:
        """Bytes on one device while a program runs, everything beside it included."""
        beside = sum(self.job.lasting[name] for name in program.program.beside)
        held = sum(self.job.lasting[name] for name in program.program.holds)
        # What the program holds of the lasting trees is counted among its arguments.
        return beside + max(0, program.peak_bytes - min(held, program.argument_bytes))

    def fits(self, program: Measured) -> bool:
        """Whether a program fits, taken by itself."""
        return not program.failed and program.peak_bytes <= self.target.chip.hbm_bytes

    @property
    def peak_bytes(self) -> int:
        """Of the whole job on one device."""
        return max((self.with_the_rest(p) for p in self.programs), default=self.lasting_bytes)

    @property
    def lasting_bytes(self) -> int:
        """Of everything that stays in memory between programs."""
        return sum(self.job.lasting[name] for name in self.job.always)

    @property
    def whole_fits(self) -> bool:
        """Whether every program fits with everything that lies beside it."""
        return (
            not any(p.failed for p in self.programs)
            and self.peak_bytes <= self.target.chip.hbm_bytes
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the numbers leave out."""
        share = self.peak_bytes / self.target.chip.hbm_bytes
        if self.target.chip.platform != "cuda" or not 0.75 < share <= 1:
            return self.job.remarks
        return (
            *self.job.remarks,
            f"JAX takes 75 % of a GPU's memory unless told otherwise: this job needs {share:.0%}; "
            "set XLA_PYTHON_CLIENT_MEM_FRACTION",
        )

    @property
    def step_seconds(self) -> float | None:
        """The least time of a step; None: the chip's numbers are not known."""
        parts = [(p.seconds(self.target), p.program.times) for p in self.programs]
        if not parts or any(seconds is None for seconds, _ in parts):
            return None
        return sum(seconds * times for seconds, times in parts if seconds is not None)


class _Full(Exception):
    """A program does not fit, and nothing more is to be known."""


def compile_job(
    config: GrpoConfig | SftConfig, target: Target, models: Models,
    compiler: Compiler | None = None, stop_early: bool = False,
) -> Report:  # fmt: skip
    """Compile a job's programs for a target.

    Args:
      config: of the job.
      target: where; its devices are all taken.
      models: sizes that the configuration does not tell.
      compiler: remembers what it has compiled; None: a new one.
      stop_early: end with the first program that does not fit.

    Raises InputError for sizes that do not go with the mesh.
    """
    compiler = Compiler(target) if compiler is None else compiler
    measured: list[Measured] = []
    jobs: list[Job] = []

    def run(program: Program) -> Any:
        found, outputs = compiler(program)
        measured.append(found)
        if stop_early:
            so_far = Report(target, jobs[0], tuple(measured))
            if not so_far.whole_fits:
                raise _Full
        return outputs

    steps = grpo(config, models, target, run) if isinstance(config, GrpoConfig) else sft(
        config, models, target, run
    )  # fmt: skip
    jobs.append(next(steps))
    report = Report(target, jobs[0], ())
    if stop_early and report.lasting_bytes > target.chip.hbm_bytes:
        return report
    try:
        for _ in steps:
            raise AssertionError("a job is described once")
    except _Full:
        pass
    return Report(target, jobs[0], tuple(measured))


def to_json(report: Report) -> dict[str, Any]:
    """Plain values; `whole_job` and what follows it are beyond what each program needs."""
    target = report.target
    return {
        "topology": target.name,
        "chips": len(target.devices),
        "hbm_bytes": target.chip.hbm_bytes,
        "programs": [
            {
                "name": p.program.name,
                "argument_bytes": p.argument_bytes,
                "temp_bytes": p.temp_bytes,
                "peak_bytes": p.peak_bytes,
                "fits": report.fits(p),
                "flops": p.flops,
                "collectives": None if p.traffic is None else as_json(p.traffic),
                "output_bytes": p.output_bytes - p.alias_bytes,
                "with_the_rest_bytes": report.with_the_rest(p),
                "seconds_at_least": p.seconds(target),
                "times_a_step": p.program.times,
            }
            for p in report.programs
        ],
        "whole_job": {
            "mesh": dict(report.job.mesh.shape),
            "lasting_bytes": {name: report.job.lasting[name] for name in report.job.always},
            "peak_bytes": report.peak_bytes,
            "fits": report.whole_fits,
            "step_seconds_at_least": report.step_seconds,
            "remarks": list(report.remarks),
        },
    }


def to_text(report: Report) -> str:
    """For a terminal; GB are 10^9 bytes on one device."""
    target, limit = report.target, report.target.chip.hbm_bytes
    mesh = " x ".join(f"{name} {size}" for name, size in report.job.mesh.shape.items())
    lines = [
        f"{target.name}: {len(target.devices)} devices of {_gb(limit)} GB; mesh {mesh}",
        f"{'program':28}{'args':>8}{'temps':>8}{'outs':>8}{'peak':>8}{'+ rest':>8}  fits"
        f"{'TFLOP':>10}{'>= ms':>9}  collectives",
    ]
    for p in report.programs:
        seconds = p.seconds(target)
        fits = "yes" if report.fits(p) and report.with_the_rest(p) <= limit else "NO"
        sizes = (
            p.argument_bytes, p.temp_bytes, p.output_bytes - p.alias_bytes, p.peak_bytes,
            report.with_the_rest(p),
        )  # fmt: skip
        columns = "".join(f"{_gb(size):>8}" for size in sizes)
        time = "?" if seconds is None else f"{seconds * 1e3:.1f}"
        lines.append(
            f"{p.program.name:28}{columns}  {fits:>4}{p.flops / 1e12:>10.3g}{time:>9}  "
            f"{_traffic(p.traffic)}"
        )
    kept = ", ".join(f"{n} {_gb(report.job.lasting[n])}" for n in report.job.always)
    lines.append(f"always in memory: {kept} GB")
    verdict = "fits" if report.whole_fits else "DOES NOT FIT"
    lines.append(f"the job as a whole: {_gb(report.peak_bytes)} of {_gb(limit)} GB: {verdict}")
    if report.step_seconds is not None:
        lines.append(
            f"a step takes {report.step_seconds:.3g} s at least (peak FLOP/s and memory bandwidth "
            "alone; plans of full length; the judge: one batch of questions)"
        )
    return "\n".join([*lines, *(f"note: {remark}" for remark in report.remarks)])


def _gb(size: float) -> str:
    return f"{size / _GB:.2f}" if size < 100 * _GB else f"{size / _GB:.0f}"


def _traffic(traffic: Mapping[str, Traffic] | None) -> str:
    if traffic is None:
        return "not known: the compiler is of another version than jaxlib"
    parts = traffic.items()
    return ", ".join(f"{kind} {t.count} x, {_gb(t.bytes)} GB" for kind, t in parts) or "-"
