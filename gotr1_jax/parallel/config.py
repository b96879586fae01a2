"""Configuration of the mesh and of processes that train together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from gotr1_jax.config import CheckedConfig
from gotr1_jax.errors import ConfigError
from gotr1_jax.limits import Range

# Who computes attention over whole rows, see `models.attention`.
AttentionKind = Literal["auto", "xla", "cudnn", "splash"]
# Devices along an axis.
_AxisSize = Annotated[int, Range("[1, 1048576]", also=(-1,))]


@dataclass(frozen=True)
class MeshConfig(CheckedConfig):
    """Devices along each mesh axis, and kernels; one axis may be -1: all remaining devices."""

    # Devices that share the batch.
    data: _AxisSize = -1
    # Devices that share the batch and the parameters.
    fsdp: _AxisSize = 1
    # Devices that share the features of every layer.
    tensor: _AxisSize = 1
    # Slices of a TPU (or groups of hosts with a slower network between them), over which data is
    # divided: then data alone communicates between them. -1: as the TPU's devices say. 1: all axes
    # may communicate between slices.
    slices: Annotated[int, Range("[1, 4096]", also=(-1,))] = -1
    # Number of CPU devices if there is no accelerator. One per core shards the batch over cores,
    # which helps if single operations do not use all cores.
    cpu_devices: Annotated[int, Range("[1, 4096]")] = 1
    # Who computes attention over whole rows (training, prompts, questions, vision towers): auto,
    # which is cudnn on NVIDIA GPUs, splash on TPUs and xla elsewhere; or one of these. xla also
    # computes what a kernel does not take, such as float32 on a GPU, and one token at a time.
    attention: AttentionKind = "auto"


@dataclass(frozen=True)
class MeshSizesConfig(CheckedConfig):
    """Devices along each axis of a mesh of its own."""

    # As in mesh.
    data: Annotated[int, Range("[1, 1048576]")] = 1
    # As in mesh.
    fsdp: Annotated[int, Range("[1, 1048576]")] = 1
    # As in mesh.
    tensor: Annotated[int, Range("[1, 1048576]")] = 1

    @property
    def size(self) -> int:
        """Devices."""
        return self.data * self.fsdp * self.tensor


@dataclass(frozen=True)
class SplitMeshConfig(MeshConfig):
    """Devices along each mesh axis, and kernels; rollouts may have devices of their own."""

    # Devices of which rollouts, image decoder and judges in the process have a mesh of their own:
    # the last ones of every process. null: they use the mesh that trains.
    rollout: MeshSizesConfig | None = None
    # The mesh that trains, on devices that rollout leaves. null: by data, fsdp and tensor above,
    # on all that it leaves.
    train: MeshSizesConfig | None = None

    def check(self) -> None:
        """A mesh of its own for the training is one beside rollout's."""
        if self.train is not None and self.rollout is None:
            raise ConfigError("mesh.train is given and mesh.rollout is null; give both or neither")


@dataclass(frozen=True)
class DistributedConfig(CheckedConfig):
    """Processes that train together; all null: detected from the environment (Slurm, TPU)."""

    # host:port where process 0 listens, reachable from all; needs the other two.
    coordinator: str | None = None
    # Number of processes.
    processes: Annotated[int, Range("[1, 1048576]")] | None = None
    # Index of this one, from 0.
    process: Annotated[int, Range("[0, 1048576]")] | None = None
    # The other processes end this many seconds after the last heartbeat of one.
    heartbeat_seconds: Annotated[int, Range("[1, 1e6]")] = 100

    def check(self) -> None:
        """All three of a process, or none."""
        given = [self.coordinator, self.processes, self.process]
        if given == [None, None, None]:
            return
        if self.coordinator is None or self.processes is None or self.process is None:
            raise ConfigError(
                f"coordinator is {self.coordinator}, processes {self.processes}, process "
                f"{self.process}; give all three or none"
            )
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(
                f"coordinator is {self.coordinator!r}; give host:port, like 10.0.0.1:8476"
            )
        if self.process >= self.processes:
            raise ConfigError(
                f"process is {self.process}, processes is {self.processes}; use 0 to "
                f"{self.processes - 1}"
            )
