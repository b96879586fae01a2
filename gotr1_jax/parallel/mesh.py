"""The device mesh: axes `data` (batch), `fsdp` (batch and parameters), `tensor` (features)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gotr1_jax.errors import InputError
from gotr1_jax.parallel.config import MeshConfig, SplitMeshConfig

AXES = ("data", "fsdp", "tensor")
ROWS = PartitionSpec(("data", "fsdp"))


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None,
    slices: int = -1,
) -> Mesh:  # fmt: skip
    """A mesh over `devices` (default: all); one axis may be -1: all remaining devices.

    Devices of a process are adjacent and `tensor` is the innermost axis, so that its communication
    stays on one host if possible. `data` is the outermost one and divides over the slices, so that
    it alone communicates over the data center network (DCN).

    slices: in how many slices the devices are; -1: as a TPU's devices say, else 1. With 1 all axes
    may cross slices.

    `jax.experimental.mesh_utils.create_hybrid_device_mesh` lays slices out in the same way, but in
    a slice it mixes the devices of processes, whose own would be no block of the mesh; the TPU's
    compiler makes the same program of both orders.

    Raises InputError for sizes that do not fit the devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    # TPU slices number chips by position, not by host.
    devices.sort(key=lambda device: (_slice_of(device), device.process_index))
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
    chosen = devices[:count]
    idle = {d.process_index for d in devices} - {d.process_index for d in chosen}
    if idle:
        raise InputError(
            f"mesh {sizes} takes {count} of {len(devices)} devices and leaves process {min(idle)} "
            "without any; use all devices, or start fewer processes"
        )
    _check_slices(sizes, chosen, slices)
    return Mesh(np.array(chosen).reshape([sizes[a] for a in AXES]), AXES)


def job_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh on which a job trains; InputError as of `make_mesh` and `rollout_mesh`."""
    devices, _ = _divide_devices(config, devices)
    sizes: Any = getattr(config, "train", None) or config
    return make_mesh(sizes.data, sizes.fsdp, sizes.tensor, devices, config.slices)


def rollout_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh | None:
    """The mesh of a job's rollouts, whose devices no other one has; None: that of `job_mesh`.

    Raises InputError for sizes that do not fit the devices.
    """
    _, devices = _divide_devices(config, devices)
    if not isinstance(config, SplitMeshConfig) or config.rollout is None:
        return None
    sizes = config.rollout
    return make_mesh(sizes.data, sizes.fsdp, sizes.tensor, devices, 1)


def _divide_devices(
    config: MeshConfig, devices: Sequence[Any] | None
) -> tuple[list[Any], list[Any]]:
    """The devices that train and those that sample; every process has some of both."""
    devices = list(jax.devices() if devices is None else devices)
    if not isinstance(config, SplitMeshConfig) or config.rollout is None:
        return devices, []
    by_process: dict[int, list[Any]] = {}
    for device in devices:
        by_process.setdefault(device.process_index, []).append(device)
    count, processes = config.rollout.size, len(by_process)
    share = count // processes
    if count % processes or any(len(own) <= share for own in by_process.values()):
        raise InputError(
            f"mesh.rollout takes {count} of {len(devices)} devices; each of {processes} processes "
            "gives as many of its own and keeps some to train with: make it smaller, or a multiple "
            f"of {processes}"
        )
    if processes > 1 and devices[0].platform == "tpu":
        raise InputError(
            "mesh.rollout on TPUs needs one process: the compiler takes no mesh that has a part of "
            "every host's chips; leave it out"
        )
    parts = by_process.values()
    return [d for own in parts for d in own[:-share]], [d for own in parts for d in own[-share:]]


def _slice_of(device: Any) -> int:
    """The number of a TPU's slice; other devices have none."""
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else 0


def _check_slices(sizes: Mapping[str, int], devices: Sequence[Any], slices: int) -> None:
    """InputError unless only `data` crosses the slices of the devices, which are in their order."""
    found = Counter(map(_slice_of, devices))
    if slices == -1:
        slices = len(found)
    if len(found) > 1 and slices not in (1, len(found)):
        raise InputError(
            f"mesh.slices is {slices}, but the devices are in {len(found)} slices; give "
            f"{len(found)} or -1, or 1 to let all axes cross slices"
        )
    if sizes["data"] % slices or (slices == len(found) and len(set(found.values())) > 1):
        raise InputError(
            f"mesh {dict(sizes)}: data does not divide over {slices} slices of equal size, so that "
            f"fsdp or tensor would communicate between them; make data a multiple of {slices}, or "
            "set mesh.slices to 1 to accept that"
        )


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays whose leading axis is the batch."""
    return NamedSharding(mesh, ROWS)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays that are replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put_global(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Put a host array, the same in every process, on the devices without communication."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def row_multiple(mesh: Mesh) -> int:
    """Number of shards of the batch axis, which must divide the batch size."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def warm_up_collectives(mesh: Mesh) -> None:
    """Connect the CPU devices of several processes for every set of mesh axes.

    Every process calls it. Otherwise Gloo times out if one process first uses a group of devices
    30 s after another, for example because it compiles longer.
    """
    if jax.process_count() == 1 or jax.default_backend() != "cpu":
        return
    groups = [axes for n in range(1, len(AXES) + 1) for axes in combinations(AXES, n)]

    def reduce(x: jax.Array) -> list[jax.Array]:
        return [jax.lax.psum(x, axes) for axes in groups]

    unsharded = PartitionSpec()
    program = jax.shard_map(reduce, mesh=mesh, in_specs=unsharded, out_specs=unsharded)
    jax.block_until_ready(jax.jit(program)(np.ones(1, np.float32)))


def local_mesh(mesh: Mesh) -> Mesh:
    """The sub-mesh of this process's devices, for programs that it runs alone.

    Raises InputError if they are not a block of the mesh.
    """
    try:
        return mesh.local_mesh
    except ValueError as error:
        raise InputError(
            f"the devices of process {jax.process_index()} are not a block of the mesh "
            f"{dict(mesh.shape)}; choose sizes so that each process has full rows or columns"
        ) from error


def data_parallel_mesh(mesh: Mesh) -> Mesh:
    """The same devices with all of them along `data`, for programs with replicated parameters."""
    return Mesh(mesh.devices.reshape(-1, 1, 1), mesh.axis_names)


def assigned_rows(count: int, mesh: Mesh) -> np.ndarray:
    """Indices of the rows, of `count` on the mesh, assigned to this process; ascending, int64.

    Each row is assigned to exactly one process that holds it. Rows that several processes hold,
    because `tensor` spans them, are divided among these.
    """
    holders: dict[tuple[int, int], set[int]] = {}
    indices: Mapping[Any, Any] = row_sharding(mesh).devices_indices_map((count,))
    for device, index in indices.items():
        start, stop = _bounds(index, count)
        holders.setdefault((start, stop), set()).add(device.process_index)
    own = [np.zeros(0, np.int64)]
    for (start, stop), processes in sorted(holders.items()):
        shares = np.array_split(np.arange(start, stop), len(processes))
        own += [s for p, s in zip(sorted(processes), shares) if p == jax.process_index()]
    return np.concatenate(own)


def assigned_groups(count: int, size: int) -> np.ndarray:
    """Indices of the rows of whole groups assigned to this process; ascending, int64.

    `count` rows are groups of `size` neighbours, each assigned to exactly one process, whatever
    devices hold them; a process may have none.
    """
    rows = np.arange(count).reshape(-1, size)
    return np.array_split(rows, jax.process_count())[jax.process_index()].reshape(-1)


def fetch_any_rows(x: jax.Array, wanted: np.ndarray) -> np.ndarray:
    """Rows `wanted` of an array (B, ...) wherever they are; every process calls it.

    Of several processes each gets the whole array first: for token ids, not for images.
    """
    if x.is_fully_addressable:
        return np.asarray(x)[wanted]
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))[wanted]


def addressable_rows(count: int, mesh: Mesh) -> np.ndarray:
    """Indices of the rows, of `count` on the mesh, on this process's devices; ascending, int64."""
    indices = row_sharding(mesh).addressable_devices_indices_map((count,)).values()
    return np.unique(np.concatenate([np.arange(*_bounds(index, count)) for index in indices]))


def fetch_rows(x: jax.Array, wanted: np.ndarray) -> np.ndarray:
    """Rows `wanted` of an array (B, ...) sharded by rows; all are on this process's devices."""
    out = np.empty((len(wanted), *x.shape[1:]), x.dtype)
    for shard in x.addressable_shards:
        start, stop = _bounds(shard.index, x.shape[0])
        here = (wanted >= start) & (wanted < stop)
        if here.any():
            out[here] = np.asarray(shard.data)[wanted[here] - start]
    return out


def _bounds(index: Any, count: int) -> tuple[int, int]:
    """First row and end of a device's shard of `count` rows."""
    start, stop, _ = index[0].indices(count)
    return start, stop
