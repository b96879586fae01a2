"""Settings of the same experiment that fit: mesh, remat and micro-batch, the quickest first.

Only how the work is laid out is changed, never what is computed: captions, samples, lengths and
the rows of an update stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from gotr1_jax.aot.grpo import Models
from gotr1_jax.aot.measure import Compiler
from gotr1_jax.aot.report import Report, compile_job
from gotr1_jax.aot.target import Target
from gotr1_jax.errors import InputError
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.parallel.config import MeshConfig
from gotr1_jax.parallel.mesh import row_multiple
from gotr1_jax.sft.config import SftConfig

Config = GrpoConfig | SftConfig
REMATS = ("none", "dots", "full")
MOST_TRIES = 24


@dataclass(frozen=True)
class Suggestion:
    """A setting that fits, with its report; `tried` settings were looked at."""

    config: Config
    report: Report
    tried: int

    @property
    def overrides(self) -> str:
        """What to append to the command."""
        mesh, (remat, micro) = self.config.mesh, _names(self.config)
        values = {
            "mesh.data": mesh.data, "mesh.fsdp": mesh.fsdp, "mesh.tensor": mesh.tensor,
            remat: _remat(self.config), micro: _micro(self.config),
        }  # fmt: skip
        if isinstance(self.config, GrpoConfig):
            rollout = self.config.rollout
            values["rollout.decode_batch"] = rollout.decode_batch
            values["rollout.captions_at_once"] = rollout.captions_at_once
        return " ".join(f"--{key} {value}" for key, value in values.items())


def suggest(config: Config, target: Target, models: Models) -> Suggestion | None:
    """The first setting that fits, of at most MOST_TRIES; None if there is none.

    The given setting comes first. Then meshes from the least to the most split, and for each the
    passes from the quickest to the most sparing one. Where an update fits and a rollout does not,
    fewer captions are drawn at once; a mesh on which that does not help is left.
    """
    compiler, tried = Compiler(target), 0

    def look(candidate: Config) -> tuple[Config, Report | None]:
        """It, or one that draws less at once, and its report; None: sizes that do not divide."""
        nonlocal tried
        while True:
            try:
                report = compile_job(candidate, target, models, compiler, stop_early=True)
            except InputError:
                return candidate, None
            tried += 1
            less = _less_at_once(candidate, report)
            if _fits(report) or less is None or tried == MOST_TRIES:
                return candidate, report
            candidate = less

    for settings in _by_mesh(config, len(target.devices)):
        for setting in settings:
            candidate, report = look(setting)
            if report is not None and _fits(report):
                return Suggestion(candidate, report, tried)
            if tried == MOST_TRIES:
                return None
            if report is None or not _is_pass_too_large(report):
                break  # no other pass on this mesh helps
    return None


def _by_mesh(config: Config, devices: int) -> Iterator[Iterator[Config]]:
    """For each mesh the settings to try, in order; the given one comes first, alone."""
    yield iter([config])
    for mesh in meshes(devices):
        kinds = passes(config, mesh.data * mesh.fsdp)
        yield (with_settings(config, mesh, remat, micro) for remat, micro in kinds)


def _fits(report: Report) -> bool:
    return bool(report.programs) and report.whole_fits


def _is_pass_too_large(report: Report) -> bool:
    """Whether it is the update that does not fit, which other passes may mend."""
    passing = ("update", "old log-probabilities", "sft step")
    return bool(report.programs) and report.programs[-1].program.name in passing


def _less_at_once(config: Config, report: Report) -> GrpoConfig | None:
    """Half as many captions drawn at once, or images decoded, where that is what does not fit.

    None: it is something else, or there are no fewer.
    """
    if isinstance(config, SftConfig) or not report.programs or _is_pass_too_large(report):
        return None
    rollout, mesh = config.rollout, report.job.mesh
    if report.programs[-1].program.name == "image decoder":
        if rollout.decode_batch <= mesh.local_mesh.size:
            return None
        return replace(config, rollout=replace(rollout, decode_batch=rollout.decode_batch // 2))
    captions = rollout.captions_at_once or rollout.captions_per_step
    if captions % 2 or captions // 2 * rollout.samples_per_caption % row_multiple(mesh):
        return None
    return replace(config, rollout=replace(rollout, captions_at_once=captions // 2))


def meshes(devices: int) -> Iterator[MeshConfig]:
    """Parameters over all devices; more and more of the splitting is of features, not rows."""
    tensor = 1
    while tensor <= devices and tensor <= 8:
        if devices % tensor == 0:
            yield MeshConfig(data=1, fsdp=devices // tensor, tensor=tensor)
        tensor *= 2


def passes(config: Config, rows: int) -> Iterator[tuple[str, int]]:
    """Remat and micro-batch: nothing made twice in one pass first, row by row last."""
    micro = _micro(config)
    sizes = [micro]
    while sizes[-1] % 2 == 0 and sizes[-1] // 2 >= rows:
        sizes.append(sizes[-1] // 2)
    # Making activations again costs a third of a pass at most; smaller passes read weights anew.
    yield from ((remat, micro) for remat in REMATS)
    yield from (("full", size) for size in sizes[1:])


def with_settings(config: Config, mesh: MeshConfig, remat: Any, micro: int) -> Any:
    """The configuration with another layout."""
    mesh = replace(mesh, cpu_devices=config.mesh.cpu_devices)
    if isinstance(config, SftConfig):
        return replace(config, mesh=mesh, remat=remat, micro_batch=micro)
    return replace(
        config,
        mesh=mesh,
        policy=replace(config.policy, remat=remat),
        update=replace(config.update, micro_batch=micro),
    )


def _names(config: Config) -> tuple[str, str]:
    if isinstance(config, SftConfig):
        return "remat", "micro_batch"
    return "policy.remat", "update.micro_batch"


def _remat(config: Config) -> str:
    return config.remat if isinstance(config, SftConfig) else config.policy.remat


def _micro(config: Config) -> int:
    return config.micro_batch if isinstance(config, SftConfig) else config.update.micro_batch
