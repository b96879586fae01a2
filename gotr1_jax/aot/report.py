"""Compiles a job for one target; its report as JSON and as text."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from jax.sharding import Mesh

from gotr1_jax.aot.grpo import compile_grpo
from gotr1_jax.aot.hlo import CollectiveTraffic
from gotr1_jax.aot.job import JobCompiler, JobTooLarge, ModelSizes, Report
from gotr1_jax.aot.measure import Compiler
from gotr1_jax.aot.sft import compile_sft
from gotr1_jax.aot.target import Target, with_cudnn
from gotr1_jax.errors import InputError
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.models.attention import attention_used, choose_attention
from gotr1_jax.sft.config import SftConfig

_GB = 1e9


def compile_job(
    config: GrpoConfig | SftConfig, target: Target, sizes: ModelSizes,
    compiler: Compiler | None = None, stop_early: bool = False, only: str = "",
) -> Report:  # fmt: skip
    """Compile a job's programs for all devices of a target.

    Args:
      config: of the job.
      target: the devices.
      sizes: of models whose checkpoints are not on this machine.
      compiler: reuses what it has compiled; None: a new one.
      stop_early: end with the first program that does not fit.
      only: compile only programs whose names have this in them.

    Raises InputError for sizes that do not divide over the mesh.
    """
    choose_attention(config.mesh.attention, target.chip.platform)
    job = JobCompiler(Compiler(target) if compiler is None else compiler, stop_early, only)
    with suppress(JobTooLarge), with_cudnn(target):
        if isinstance(config, GrpoConfig):
            compile_grpo(config, sizes, job)
        else:
            compile_sft(config, sizes, job)
    if not job.report.programs and job.report.left_out:
        names = ", ".join(dict.fromkeys(job.report.left_out))
        raise InputError(f"--only {only}: no program has that in its name; they are: {names}")
    return job.report


def to_json(report: Report) -> dict[str, Any]:
    """Plain values for `--json`."""
    target, rollout = report.target, report.job.rollout_mesh
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
                "collectives": p.traffic and {kind: asdict(t) for kind, t in p.traffic.items()},
                "output_bytes": p.output_bytes - p.alias_bytes,
                "with_the_rest_bytes": report.total_bytes(p),
                "seconds_at_least": p.seconds(target),
                "times_a_step": p.program.runs_per_step,
            }
            for p in report.programs
        ],
        "whole_job": {
            "mesh": dict(report.job.mesh.shape),
            "slices": target.slices,
            "rollout_mesh": rollout and dict(rollout.shape),
            "moved_bytes": dict(report.job.moved),
            "lasting_bytes": {name: report.job.persistent[name] for name in report.job.always},
            "peak_bytes": report.peak_bytes,
            "left_out": list(report.left_out),
            "fits": None if report.left_out else report.job_fits,
            "step_seconds_at_least": None if report.left_out else report.step_seconds,
            "remarks": list(report.notes),
            "attention": _attention(),
        },
    }


def to_text(report: Report) -> str:
    """A table for the terminal; GB are 10^9 bytes on one device."""
    target, limit = report.target, report.target.chip.hbm_bytes
    mesh = _sizes(report.job.mesh)
    if report.job.rollout_mesh is not None:
        mesh += f" trains, {_sizes(report.job.rollout_mesh)} samples"
    several = f" in {target.slices} slices" if target.slices > 1 else ""
    lines = [
        f"{target.name}: {len(target.devices)} devices{several} of {_gb(limit)} GB; mesh {mesh}",
        f"{'program':30}{'args':>8}{'temps':>8}{'outs':>8}{'peak':>8}{'total':>8}  fits"
        f"{'TFLOP':>10}{'>= ms':>9}  collectives",
    ]
    for p in report.programs:
        seconds = p.seconds(target)
        fits = "yes" if report.fits(p) and report.total_bytes(p) <= limit else "NO"
        sizes = (
            p.argument_bytes, p.temp_bytes, p.output_bytes - p.alias_bytes, p.peak_bytes,
            report.total_bytes(p),
        )  # fmt: skip
        columns = "".join(f"{_gb(size):>8}" for size in sizes)
        time = "?" if seconds is None else f"{seconds * 1e3:.1f}"
        lines.append(
            f"{p.program.name:30}{columns}  {fits:>4}{p.flops / 1e12:>10.3g}{time:>9}  "
            f"{_traffic(p.traffic)}"
        )
    kept = ", ".join(f"{n} {_gb(report.job.persistent[n])}" for n in report.job.always)
    lines.append(f"always in memory: {kept} GB")
    lines.append(f"attention by {_attention()}")
    for name, size in report.job.moved.items():
        lines.append(f"moved between the meshes: {name}, {_gb(size)} GB to each device and step")
    if report.left_out:
        return "\n".join([*lines, f"not compiled: {', '.join(report.left_out)}"])
    verdict = "fits" if report.job_fits else "DOES NOT FIT"
    lines.append(f"whole job: {_gb(report.peak_bytes)} of {_gb(limit)} GB: {verdict}")
    if report.step_seconds is not None:
        lines.append(
            f"a step takes at least {report.step_seconds:.3g} s (by peak FLOP/s and bandwidth; "
            "plans of full length; one batch of questions for the judge)"
        )
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])


def _attention() -> str:
    used = attention_used()
    return f"{used} (its workspace is not counted)" if "cudnn" in used.split("; ") else used


def _sizes(mesh: Mesh) -> str:
    return " x ".join(f"{name} {size}" for name, size in mesh.shape.items())


def _gb(size: float) -> str:
    return f"{size / _GB:.2f}" if size < 100 * _GB else f"{size / _GB:.0f}"


def _traffic(traffic: Mapping[str, CollectiveTraffic] | None) -> str:
    if traffic is None:
        return "unknown: compiler and jaxlib have different versions"
    parts = (
        f"{kind} {t.count} x, {_gb(t.bytes)} GB"
        + (f" (DCN {t.dcn_count} x, {_gb(t.dcn_bytes)} GB)" if t.dcn_count else "")
        for kind, t in traffic.items()
    )
    return ", ".join(parts) or "-"
