"""What has to be said to the process and to JAX before the first device is touched."""

from __future__ import annotations

import ctypes
import logging
import os
import sys

import jax

from gotr1_jax.errors import RunError
from gotr1_jax.parallel.cluster import find_cluster

_LOG = logging.getLogger(__name__)

_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD, _ARENA_MAX = -4, -1, -2, -8


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what it frees; does nothing elsewhere.

    XLA's CPU backend allocates its temporaries anew at every step. By default glibc gives them
    back to the kernel and takes them zeroed again: a quarter of a million page faults a step of
    the embedded model, which take longer than the arithmetic when several processes compete.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # another C library: nothing to tune
    for option, value in (
        (_MMAP_MAX, 0),
        (_TRIM_THRESHOLD, 2**31 - 1),
        (_TOP_PAD, 256 << 20),
        (_ARENA_MAX, 1),
    ):
        mallopt(option, value)


def start_processes(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    heartbeat_seconds: int = 100,
) -> int:
    """Call before `start_devices`: joins the processes that were started together, if any.

    Devices of all of them are then in `jax.devices()`. Without a coordinator the environment
    says whether there are others (Slurm steps, TPU slices on GKE and of Cloud TPU VMs); a process
    that is alone returns at once and starts nothing.

    Args:
        coordinator: "host:port" of process 0, where it listens; the next two go with it.
        processes: how many there are.
        process: index of this one, 0 to processes - 1.
        heartbeat_seconds: a process that is not heard of for so long ends the others.

    Returns: how many processes there are. Raises RunError when they do not come together.
    """
    cluster = None if coordinator is not None else find_cluster()
    if coordinator is not None:
        count, name = processes or 1, f"coordinator {coordinator}"
    elif cluster is not None:
        count, name = cluster.processes, cluster.name
    else:
        count, name = 1, ""
    if count == 1:
        return 1
    # JAX gives every task of Slurm one GPU, also where a task has its host to itself; an empty list
    # is no restriction.
    alone = cluster is not None and cluster.alone_on_host
    everything = alone and "JAX_LOCAL_DEVICE_IDS" not in os.environ
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator,
            num_processes=processes,
            process_id=process,
            local_device_ids=[] if everything else None,
            cluster_detection_method=None if coordinator is None else "deactivate",
            heartbeat_timeout_seconds=heartbeat_seconds,
        )
    except (ValueError, RuntimeError) as error:
        raise RunError(
            f"{count} processes ({name}) could not be joined: {error}; look whether all of them "
            "were started and can reach process 0"
        ) from error
    _LOG.info("joined %d processes (%s)", count, name)
    return count


def start_devices(cpu_devices: int = 1) -> None:
    """Call once, before JAX is used: splits the CPU, if that is what the work will run on."""
    only_cpu = os.environ.get("JAX_PLATFORMS", "") == "cpu"
    if only_cpu or not _has_accelerator():
        keep_freed_memory()
    jax.config.update("jax_num_cpu_devices", cpu_devices)


def _has_accelerator() -> bool:
    """Whether a JAX plugin for an accelerator is installed; touches no device."""
    from importlib.util import find_spec

    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin", "libtpu", "jax_rocm7_plugin")
    return any(find_spec(name) is not None for name in plugins)


def default_dtype() -> str:
    """What a model computes in unless told otherwise: bfloat16 on accelerators, float32 on CPUs."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"
