"""The device mesh: axes `data` (rows), `fsdp` (rows and parameters), `tensor` (features)."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gotr1_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")
ROWS = PartitionSpec(("data", "fsdp"))


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """A mesh over `devices` (default: all); one axis may be -1, for the devices that are left."""
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise InputError(f"mesh {sizes}: sizes are 1 or more, and at most one is -1")
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if free:
        if len(devices) % fixed:
            raise InputError(f"mesh {sizes} does not divide the {len(devices)} devices")
        sizes[free[0]] = len(devices) // fixed
    elif fixed > len(devices):
        raise InputError(f"mesh {sizes} needs {fixed} devices, there are {len(devices)}")
    count = int(np.prod(list(sizes.values())))
    return Mesh(np.array(devices[:count]).reshape([sizes[a] for a in AXES]), AXES)


def rows(mesh: Mesh) -> NamedSharding:
    """Arrays whose leading axis is rows of the batch."""
    return NamedSharding(mesh, ROWS)


def replicated(mesh: Mesh) -> NamedSharding:
    """Arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def row_multiple(mesh: Mesh) -> int:
    """A batch must hold a multiple of this many rows."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
