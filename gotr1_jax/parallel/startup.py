"""Set-up before the first use of a device: processes, CPU devices, allocator, compile cache."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from importlib.util import find_spec

import jax

from gotr1_jax.errors import RunError
from gotr1_jax.parallel.cluster import find_cluster
from gotr1_jax.parallel.compile_cache import AUTO, use_compile_cache
from gotr1_jax.parallel.config import DistributedConfig

_LOG = logging.getLogger(__name__)

_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD, _ARENA_MAX = -4, -1, -2, -8


def keep_freed_memory() -> None:
    """Make glibc's malloc keep freed memory; no effect with other C libraries.

    XLA's CPU backend allocates its temporaries at every step. By default glibc returns them to the
    kernel and gets zeroed pages again: 250 000 page faults per step of the embedded model, which
    take longer than the arithmetic when several processes compete.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for option, value in (
        (_MMAP_MAX, 0),
        (_TRIM_THRESHOLD, 2**31 - 1),
        (_TOP_PAD, 256 << 20),
        (_ARENA_MAX, 1),
    ):
        mallopt(option, value)


def start_processes(config: DistributedConfig | None = None) -> int:
    """Join the processes of this run, if there are several; call before `start_devices`.

    `jax.devices()` then lists the devices of all. Without a coordinator the cluster is detected
    (`parallel.cluster`). Returns the number of processes; raises RunError if joining fails.
    """
    config = config or DistributedConfig()
    given = config.coordinator is not None
    cluster = None if given else find_cluster()
    if given:
        count, name = config.processes or 1, f"coordinator {config.coordinator}"
    else:
        count, name = (cluster.processes, cluster.name) if cluster is not None else (1, "")
    if count == 1:
        return 1
    # JAX gives every Slurm task one GPU, even if it is the only task on its host; an empty list
    # gives it all.
    alone = cluster is not None and cluster.alone_on_host
    all_devices = alone and "JAX_LOCAL_DEVICE_IDS" not in os.environ
    try:
        jax.distributed.initialize(
            coordinator_address=config.coordinator,
            num_processes=config.processes,
            process_id=config.process,
            local_device_ids=[] if all_devices else None,
            cluster_detection_method="deactivate" if given else None,
            heartbeat_timeout_seconds=config.heartbeat_seconds,
        )
    except (ValueError, RuntimeError) as error:
        raise RunError(
            f"{count} processes ({name}) could not be joined: {error}; check that all of them "
            "were started and can reach process 0"
        ) from error
    _LOG.info("joined %d processes (%s)", count, name)
    return count


def start_devices(cpu_devices: int = 1, compile_cache: str = AUTO, processes: int = 1) -> None:
    """Set the number of CPU devices and the cache of compiled programs (`use_compile_cache`), and
    tune malloc on CPUs; call before the first use of JAX."""
    only_cpu = os.environ.get("JAX_PLATFORMS", "") == "cpu"
    if only_cpu or not _has_accelerator():
        keep_freed_memory()
    jax.config.update("jax_num_cpu_devices", cpu_devices)
    use_compile_cache(compile_cache, processes)


def _has_accelerator() -> bool:
    """Whether a JAX plugin for an accelerator is installed; starts no device."""
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin", "libtpu", "jax_rocm7_plugin")
    return any(find_spec(name) is not None for name in plugins)


def default_dtype() -> str:
    """Default dtype of activations: bfloat16 on accelerators, float32 on CPUs."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"
