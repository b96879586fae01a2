"""Settings of the same experiment that fit: mesh, remat and micro-batch, the quickest first.

Only how the work is laid out is changed, never what is computed: captions, samples, lengths and
the rows of an update stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from gotr1_jax.ahead.grpo import Models
from gotr1_jax.ahead.measure import Compiler
from gotr1_jax.ahead.report import Report, compile_job
from gotr1_jax.ahead.target import Target
from gotr1_jax.errors import InputError
from gotr1_jax.schema import GrpoConfig, MeshConfig, SftConfig

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
            values["rollout.decode_batch"] = self.config.rollout.decode_batch
        return " ".join(f"--{key} {value}" for key, value in values.items())


def suggest(config: Config, target: Target, models: Models) -> Suggestion | None:
    """The first setting that fits, of at most MOST_TRIES; None if there is none.

    The given setting comes first. Then meshes from the least to the most split, and for each the
    passes from the quickest to the most sparing one. A mesh on which the lasting arrays or the
    sampler do not fit is left at once.
    """
    compiler, tried = Compiler(target), 0
    lost: set[tuple[int, int, int]] = set()
    for candidate in candidates(config, len(target.devices)):
        mesh = candidate.mesh
        sizes = (mesh.data, mesh.fsdp, mesh.tensor)
        if sizes in lost:
            continue
        if tried == MOST_TRIES:
            return None
        try:
            report = compile_job(candidate, target, models, compiler, stop_early=True)
        except InputError:
            continue  # sizes that do not divide over this mesh
        tried += 1
        if report.programs and report.whole_fits:
            return Suggestion(candidate, report, tried)
        if not report.programs or report.programs[-1].program.name not in _PASSES:
            lost.add(sizes)
    return None


_PASSES = ("update", "old log-probabilities", "sft step")


def candidates(config: Config, devices: int) -> Iterator[Config]:
    """Settings to try, in order; the given one first."""
    yield config
    for mesh in meshes(devices):
        rows = mesh.data * mesh.fsdp
        for remat, micro in passes(config, rows):
            yield with_settings(config, mesh, remat, micro)


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
    """The configuration with another layout; batches of decoding divide over the mesh too."""
    mesh = replace(mesh, cpu_devices=config.mesh.cpu_devices)
    if isinstance(config, SftConfig):
        return replace(config, mesh=mesh, remat=remat, micro_batch=micro)
    rows = mesh.data * mesh.fsdp
    batch = config.rollout.decode_batch
    return replace(
        config,
        mesh=mesh,
        policy=replace(config.policy, remat=remat),
        update=replace(config.update, micro_batch=micro),
        rollout=replace(config.rollout, decode_batch=-(-batch // rows) * rows),
    )


def _names(config: Config) -> tuple[str, str]:
    if isinstance(config, SftConfig):
        return "remat", "micro_batch"
    return "policy.remat", "update.micro_batch"


def _remat(config: Config) -> str:
    return config.remat if isinstance(config, SftConfig) else config.policy.remat


def _micro(config: Config) -> int:
    return config.micro_batch if isinstance(config, SftConfig) else config.update.micro_batch
