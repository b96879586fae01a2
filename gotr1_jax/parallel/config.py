"""Configuration of the mesh and of processes that train together."""

from __future__ import annotations

from dataclasses import dataclass

from gotr1_jax.config import positive
from gotr1_jax.errors import InputError


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one axis may be -1: all remaining devices."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    # Number of CPU devices if there is no accelerator. One per core shards the batch over cores,
    # which helps if single operations do not use all cores.
    cpu_devices: int = 1


@dataclass(frozen=True)
class DistributedConfig:
    """Processes that train together; all null: detected from the environment (Slurm, TPU)."""

    # host:port where process 0 listens, reachable from all; needs the next two.
    coordinator: str | None = None
    # Number of processes.
    processes: int | None = None
    # Index of this one, from 0.
    process: int | None = None
    # The other processes end this many seconds after the last heartbeat of one.
    heartbeat_seconds: int = 100

    def check(self) -> None:
        positive("distributed", heartbeat_seconds=self.heartbeat_seconds)
        given = [self.coordinator, self.processes, self.process]
        if given == [None, None, None]:
            return
        if self.coordinator is None or self.processes is None or self.process is None:
            raise InputError(
                f"distributed.coordinator is {self.coordinator}, distributed.processes "
                f"{self.processes}, distributed.process {self.process}; give all three or none"
            )
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise InputError(
                f"distributed.coordinator is {self.coordinator!r}; give host:port, like "
                "10.0.0.1:8476"
            )
        positive("distributed", processes=self.processes)
        if not 0 <= self.process < self.processes:
            raise InputError(
                f"distributed.process is {self.process}, distributed.processes is "
                f"{self.processes}; use 0 to {self.processes - 1}"
            )
