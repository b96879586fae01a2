"""Finds a mesh, remat policy and micro-batch with which a job fits, the fastest first.

The experiment stays the same: captions, samples, lengths and rows of an update are not changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from gotr1_jax.aot.job import ModelSizes, Report
from gotr1_jax.aot.measure import Compiler
from gotr1_jax.aot.report import compile_job
from gotr1_jax.aot.target import Target
from gotr1_jax.errors import InputError
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.parallel.config import MeshConfig
from gotr1_jax.parallel.mesh import row_multiple
from gotr1_jax.sft.config import SftConfig

Config = GrpoConfig | SftConfig
REMATS = ("none", "dots", "full")
MAX_ATTEMPTS = 24


@dataclass(frozen=True)
class Suggestion:
    """A configuration that fits and its report, found after `attempts` compilations."""

    config: Config
    report: Report
    attempts: int

    @property
    def overrides(self) -> str:
        """The changed keys as options of the command line."""
        mesh = self.config.mesh
        values = {f"mesh.{name}": getattr(mesh, name) for name in ("data", "fsdp", "tensor")}
        values |= _settings(self.config)
        if isinstance(self.config, GrpoConfig):
            rollout = self.config.rollout
            values["rollout.decode_batch"] = rollout.decode_batch
            values["rollout.captions_at_once"] = rollout.captions_at_once
        return " ".join(f"--{key} {value}" for key, value in values.items())


def suggest(config: Config, target: Target, models: ModelSizes) -> Suggestion | None:
    """The first configuration that fits, of at most MAX_ATTEMPTS; None: there is none.

    The given one is tried first. Then come meshes with a growing `tensor` axis, and for each mesh
    remat and micro-batch from the fastest to the smallest memory. Where the update fits and the
    rollout does not, fewer captions are sampled at once; if that does not help, the next mesh
    follows.
    """
    if getattr(config.mesh, "rollout", None) is not None:
        raise InputError(
            "--suggest looks for one mesh of all devices; leave mesh.rollout and mesh.train out"
        )
    compiler, attempts = Compiler(target), 0

    def attempt(candidate: Config) -> tuple[Config, Report | None]:
        """The candidate, perhaps with a smaller rollout, and its report; None: does not divide."""
        nonlocal attempts
        while True:
            try:
                report = compile_job(candidate, target, models, compiler, stop_early=True)
            except InputError:
                return candidate, None
            attempts += 1
            smaller = _smaller_rollout(candidate, report)
            if _fits(report) or smaller is None or attempts == MAX_ATTEMPTS:
                return candidate, report
            candidate = smaller

    for candidates in _by_mesh(config, target):
        for candidate in candidates:
            candidate, report = attempt(candidate)
            if report is not None and _fits(report):
                return Suggestion(candidate, report, attempts)
            if attempts == MAX_ATTEMPTS:
                return None
            if report is None or not _update_is_too_large(report):
                break  # remat and micro-batch do not help
    return None


def _by_mesh(config: Config, target: Target) -> Iterator[Iterator[Config]]:
    """For each mesh the configurations to try, in order; the given one comes first, alone."""
    yield iter([config])
    apart = target.chip.platform == "tpu" and config.mesh.slices != 1
    for mesh in meshes(len(target.devices), target.slices if apart else 1):
        settings = remat_and_micro_batches(config, mesh.data * mesh.fsdp)
        yield (with_settings(config, mesh, remat, micro) for remat, micro in settings)


def _fits(report: Report) -> bool:
    return bool(report.programs) and report.job_fits


def _update_is_too_large(report: Report) -> bool:
    """Whether the update does not fit, so that remat or a smaller micro-batch may help."""
    updates = ("update", "old log-probabilities", "sft step")
    return bool(report.programs) and report.programs[-1].program.name in updates


def _smaller_rollout(config: Config, report: Report) -> GrpoConfig | None:
    """Halve the captions sampled (or images decoded) at once, if that program does not fit.

    None: something else does not fit, or the number cannot be halved.
    """
    if isinstance(config, SftConfig) or not report.programs or _update_is_too_large(report):
        return None
    rollout, mesh = config.rollout, report.job.mesh
    if report.programs[-1].program.name == "image decoder":
        if rollout.decode_batch <= mesh.local_mesh.size:
            return None
        return replace(config, rollout=replace(rollout, decode_batch=rollout.decode_batch // 2))
    captions = rollout.captions_at_once or rollout.captions_per_step
    plans = rollout.samples_per_caption // rollout.images_per_plan
    if captions % 2 or captions // 2 * plans % row_multiple(mesh):
        return None
    return replace(config, rollout=replace(rollout, captions_at_once=captions // 2))


def meshes(devices: int, slices: int = 1) -> Iterator[MeshConfig]:
    """Meshes with data parallelism over slices alone, with a growing `tensor` axis."""
    tensor, devices = 1, devices // slices
    while tensor <= devices and tensor <= 8:
        if devices % tensor == 0:
            yield MeshConfig(data=slices, fsdp=devices // tensor, tensor=tensor)
        tensor *= 2


def remat_and_micro_batches(config: Config, rows: int) -> Iterator[tuple[str, int]]:
    """Pairs (remat, micro-batch), from the fastest to the smallest memory."""
    _, micro = _settings(config).values()
    sizes = [micro]
    while sizes[-1] % 2 == 0 and sizes[-1] // 2 >= rows:
        sizes.append(sizes[-1] // 2)
    # Remat costs at most a third of the time; small micro-batches read the weights again and again.
    yield from ((remat, micro) for remat in REMATS)
    yield from (("full", size) for size in sizes[1:])


def with_settings(config: Config, mesh: MeshConfig, remat: Any, micro: int) -> Any:
    """The configuration with another mesh, remat policy and micro-batch."""
    axes: Any = replace(config.mesh, data=mesh.data, fsdp=mesh.fsdp, tensor=mesh.tensor)
    if isinstance(config, SftConfig):
        return replace(config, mesh=axes, remat=remat, micro_batch=micro)
    return replace(
        config,
        mesh=axes,
        policy=replace(config.policy, remat=remat),
        update=replace(config.update, micro_batch=micro),
    )


def _settings(config: Config) -> dict[str, Any]:
    """Remat and micro-batch, by their keys."""
    if isinstance(config, SftConfig):
        return {"remat": config.remat, "micro_batch": config.micro_batch}
    return {"policy.remat": config.policy.remat, "update.micro_batch": config.update.micro_batch}
